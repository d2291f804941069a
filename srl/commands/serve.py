"""serve: an OpenAI-compatible endpoint that answers, judges and corrects."""

import argparse
import socket
import threading
from typing import Any

from srl.commands.numbers import at_least
from srl.config import Config, ConfigError

CONVERSATIONS = ("long_chain", "two_turn", "prompted", "intrinsic")
LEAVE_SECONDS = 20  # for what is being answered when it is stopped; Kubernetes kills after 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=at_least(1), default=8000, help="port to listen on (default: 8000)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """What `chat` and `serve` both ask for: who answers, and in which form."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="Hugging Face folder or hub name; RUN/checkpoints/rl is asked under the settings of RUN, others under --config",
    )
    parser.add_argument("--protocol", help="default: as trained; `prompted` for a model that was not trained to judge itself")


def run(options: argparse.Namespace, config: Config) -> None:
    """Ends when vLLM does: whoever started it, such as Kubernetes, knows when to start it again. Raises ConfigError then."""
    import uvicorn

    from srl.observe.progress import say
    from srl.serving.app import create_app
    from srl.serving.backend import vllm_server

    check_address(options.host, options.port)
    model, chat, protocol = checked(options, config)
    say(f"starting vLLM with {options.model}")
    with vllm_server(model, config) as server:
        app = create_app(server.url, chat, config, protocol)
        front = uvicorn.Server(
            uvicorn.Config(
                app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=LEAVE_SECONDS
            )
        )

        def end_with_vllm() -> None:
            server.process.wait()
            front.should_exit = True

        threading.Thread(target=end_with_vllm, daemon=True, name="end-with-vllm").start()
        say(f"listening on http://{options.host}:{options.port}/v1")
        front.run()


def checked(options: argparse.Namespace, config: Config) -> tuple[str, Any, str]:
    """Folder or hub name of the model, its `Chat`, the protocol. Raises ConfigError before vLLM starts."""
    from srl.learner.model import check_folder
    from srl.protocols.chat import Chat, model_folder

    protocol = options.protocol or config.own_protocol
    if protocol not in CONVERSATIONS:
        ways = ", ".join(CONVERSATIONS)
        raise ConfigError(f"--protocol {protocol}: choose one of {ways}, which need no gold answer and no judge")
    model = model_folder(options.model)
    check_folder(model, "--model")
    return model, Chat(model, config.prompts), protocol


def check_address(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen at that address."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}") from None
