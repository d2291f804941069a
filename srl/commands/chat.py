"""chat: ask a problem in the terminal and watch attempt, verdict and revision come."""

import argparse
import asyncio
import os
import sys

from srl.commands.numbers import at_least
from srl.commands.serve import add_model, checked
from srl.config import Config, ConfigError

COLOURS = {"attempt": "34", "verdict": "33", "revision": "35", "instruction": "90"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--temperature", type=at_least(0, float), default=0.0, help="0 is greedy (default)")
    parser.add_argument("--question", action="append", default=[], help="ask this and leave; may be repeated")


def run(options: argparse.Namespace, config: Config) -> None:
    """Questions from `--question`, else line by line from the terminal or standard input until its end."""
    from srl.observe.progress import say
    from srl.serving.backend import ServerError, vllm_server

    model, chat, protocol = checked(options, config)
    say(f"starting vLLM with {options.model}")
    with vllm_server(model, config) as server:
        for question in options.question or questions():
            try:
                asyncio.run(ask(question, server.url, chat, config, protocol, options.temperature))
            except (ConfigError, ServerError) as error:
                server.check()
                say(f"cannot ask this: {error}")


def questions():
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            print("\nproblem (Ctrl-D ends): ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


async def ask(question: str, url: str, chat, config: Config, protocol: str, temperature: float) -> None:
    """Print one trajectory while it is sampled, then what it comes to."""
    from srl.protocols.protocol import build_protocol
    from srl.rollout.loop import limits
    from srl.serving.backend import complete, connect
    from srl.serving.conversation import converse
    from srl.trajectory import Trajectory

    trajectory = Trajectory("chat", "chat", question, "", chat.opening(question))
    bounds = limits(config)
    async with connect(url, config) as client:

        def generate(token_ids: list[int], max_tokens: int):
            return complete(client, token_ids, max_tokens, temperature, None, chat.stop_ids, bounds.top_p)

        rules = build_protocol(protocol, config, chat)
        kind = None
        async for piece in converse(trajectory, rules, chat, generate, grammar=config.protocol.grammar, limits=bounds):
            if piece.kind != kind:
                print(("\n" if kind else "") + painted(f"[{piece.kind}]", piece.kind), flush=True)
                kind = piece.kind
            print(painted(piece.text.lstrip("\n") if piece.text.startswith("\n") else piece.text, kind), end="", flush=True)
    final = trajectory.final()
    print(f"\nanswer: {final.answer if final else None} (stopped: {str(trajectory.stop_reason).replace('_', ' ')})", flush=True)


def painted(text: str, kind: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\033[{COLOURS[kind]}m{text}\033[0m"
