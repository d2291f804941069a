"""serve: an OpenAI-compatible endpoint that answers, judges and corrects."""

import argparse

from srl.config import Config, ConfigError

CONVERSATIONS = ("long_chain", "two_turn", "prompted", "intrinsic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """What `chat` and `serve` both ask for: who answers, and in which form."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="Hugging Face folder or hub name, such as RUN/checkpoints/rl"
    )
    parser.add_argument("--protocol", help="default: as trained; `prompted` for a model that was not trained to judge itself")


def run(options: argparse.Namespace, config: Config) -> None:
    import uvicorn

    from srl.observe.progress import say
    from srl.protocols.chat import Chat, model_folder
    from srl.serving.app import create_app
    from srl.serving.backend import vllm_server

    model = model_folder(options.model)
    chat = Chat(model, config.prompts)
    protocol = checked_protocol(options.protocol or config.own_protocol)
    say(f"starting vLLM with {options.model}")
    with vllm_server(model, config) as url:
        say(f"listening on http://{options.host}:{options.port}/v1")
        uvicorn.run(create_app(url, chat, config, protocol), host=options.host, port=options.port, log_level="warning")


def checked_protocol(name: str) -> str:
    if name not in CONVERSATIONS:
        raise ConfigError(f"--protocol {name}: choose one of {', '.join(CONVERSATIONS)}, which need no gold answer and no judge")
    return name
