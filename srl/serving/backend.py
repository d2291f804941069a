"""vLLM's own OpenAI-compatible server as a child process, and its completions by token ids."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from srl.config import Config, ConfigError
from srl.rollout.engine import device_options, prepare_environment

STOP_SECONDS = 20
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled token; `logprob` is the model's own at temperature 1. `last_by_length` ends a generation that was cut off."""

    token_id: int
    logprob: float
    last_by_length: bool = False


@dataclass(slots=True)
class Silence:
    """For how long generations have waited for a token and none of any has come.

    A token that nobody has taken yet is no silence: a client that does not read its stream says nothing of the engine. One that
    leaves does not end it either: the next wait goes on counting where the last one stopped.
    """

    waiting: int = 0  # generations
    since: float = 0.0  # time.monotonic() of the last token, or of the beginning of the present waits
    before: float = 0.0  # seconds of earlier waits that ended without a token

    def seconds(self) -> float:
        """0 while nothing waits."""
        return self.before + time.monotonic() - self.since if self.waiting else 0.0

    async def heard(self, samples: AsyncIterator[Sample]) -> AsyncIterator[Sample]:
        """The same samples, listened to."""
        async with aclosing(samples):
            while True:
                with self._one_waits():
                    sample = await anext(samples, None)
                if sample is None:
                    return
                self.since, self.before = time.monotonic(), 0.0
                yield sample

    @contextmanager
    def _one_waits(self) -> Iterator[None]:
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.before += time.monotonic() - self.since


class ServerError(RuntimeError):
    """vLLM's server refused, failed or was not heard; `status` is what HTTP calls that."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """vLLM's server, of which nobody else starts another when it dies."""

    url: str
    process: subprocess.Popen
    log: Path

    def check(self) -> None:
        """Raises ConfigError with the end of its log when it has stopped."""
        if (code := self.process.poll()) is not None:
            how = f"stopped with {code}" if code >= 0 else f"was killed ({signal.Signals(-code).name})"
            raise ConfigError(f"vLLM's server {how}: {last_error(self.log)} (whole log: {self.log})")


@contextmanager
def vllm_server(model: str, config: Config) -> Iterator[Server]:
    """A server with the model, on a free local port; it ends with the block.

    Raises ConfigError as `Server.check` if it stops, and if it is not there after rollout.start_timeout_s.
    """
    port, log = free_port(), Path(tempfile.mkdtemp(prefix="srl-serve-")) / "vllm.log"
    on_gpu = config.rollout.gpus > 0
    prepare_environment(on_gpu)
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    if not on_gpu:
        environment["OMP_NUM_THREADS"] = str(config.rollout.threads)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(model, port, config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other when it is done
            preexec_fn=end_with_parent,
        )
    server, was_up = Server(f"http://127.0.0.1:{port}", process, log), False
    try:
        wait_until_up(server, config.rollout.start_timeout_s)
        was_up = True
        yield server
        server.check()
    finally:
        if was_up and process.poll() is None:  # else its log is what the error points to
            shutil.rmtree(log.parent, ignore_errors=True)
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """With the processes that it started, which may outlive it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_with_parent() -> None:
    """In the child: be told to end when this process dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def command(model: str, port: int, config: Config) -> list[str]:
    """With the options of a rollout engine, and none of the model's own habits of sampling: what the server samples is what was
    trained and evaluated."""
    rollout = config.rollout
    options = {
        "model": model, "served_model_name": "srl", "host": "127.0.0.1", "port": port, "dtype": config.model.dtype,
        "max_model_len": config.model.max_length, "max_num_seqs": rollout.max_sequences, "generation_config": "vllm",
        **device_options(config.model, rollout),
    }  # fmt: skip
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *(flag(name, value) for name, value in options.items())]


def flag(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    return f"--{name}={value}" if not isinstance(value, bool) else f"--{name}" if value else f"--no-{name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(server: Server, limit: float) -> None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        server.check()
        try:
            if httpx.get(f"{server.url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise ConfigError(f"rollout.start_timeout_s={limit:g}: vLLM's server is not up (its log: {server.log})")


def last_error(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if "Error" in line and " WARNING " not in line]
    return lines[-1].strip()[:300] if lines else "no error in its log"


def connect(url: str, config: Config) -> httpx.AsyncClient:
    """A client with as many connections as requests, each used once: vLLM closes those that have been idle for as long as httpx
    would keep them, and a request on one that is being closed fails. The address is our own: no proxy of the environment stands
    before it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(config.rollout.timeout_s), limits=limits, trust_env=False)


async def complete(
    client: httpx.AsyncClient,
    token_ids: list[int],
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop_ids: list[int],
    top_p: float = 1.0,
) -> AsyncIterator[Sample]:
    """Tokens of one generation as they are sampled. Raises ServerError."""
    body = {
        "model": "srl", "prompt": token_ids, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p,
        "stop_token_ids": stop_ids, "stream": True, "return_token_ids": True, "logprobs": 0, "skip_special_tokens": False,
    }  # fmt: skip
    if seed is not None and temperature > 0:
        body["seed"] = seed
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")[:300]
                raise ServerError(response.status_code, f"vLLM's server answers {response.status_code}: {text}")
            async for line in response.aiter_lines():
                for sample in samples_in(line):
                    yield sample
    except httpx.TimeoutException:
        limit = client.timeout.read
        raise ServerError(504, f"vLLM's server has said nothing for rollout.timeout_s={limit:g}") from None
    except httpx.TransportError as error:
        raise ServerError(503, f"vLLM's server cannot be reached: {error or type(error).__name__}") from None


def samples_in(line: str) -> Iterator[Sample]:
    """Of one line of the stream."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    found = json.loads(line.removeprefix("data: "))
    if "error" in found:
        raise ServerError(500, f"vLLM's server: {found['error']}")
    for choice in found["choices"]:
        ids = choice.get("token_ids") or []
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            yield Sample(token, logprob, place + 1 == len(ids) and choice["finish_reason"] == "length")
