"""Conversation and endpoint in front of a made-up vLLM server, and the two commands with the real one."""

import asyncio
import functools
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import psutil
import pytest
from fastapi import FastAPI

from srl.config import Config, ConfigError
from srl.main import main
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.rollout.loop import Limits
from srl.serving import backend
from srl.serving.app import Request, answer, create_app, opened
from srl.serving.backend import Sample, Silence, complete, connect, free_port, vllm_server
from srl.serving.conversation import Writing, converse, kind_at_end, turns_of
from srl.tasks.problems import Problem, chain_problems
from srl.trajectory import StopReason, Trajectory, TurnKind

QUESTION = "Start at 47: (1) +38 = ?"
WRONG = r"Start at 47 (1) +38 a = 84. The answer is \boxed{84}"
RIGHT = r"Start at 47 (1) +38 a = 85. The answer is \boxed{85}"
CHAIN = f"{WRONG}\nStart at 47 (1) +38: 7 + 8 = 15, 4 + 3 + 1 = 8, 85 = 84: 5 - 4 = 1 no. [VERIFY] wrong\n{RIGHT}"


ROOMY = Limits(512)

HEALTHY = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
DYING = HEALTHY.replace(".serve_forever()", ".handle_request(); print('RuntimeError: no memory'); sys.exit(7)")


@pytest.mark.parametrize(("program", "left"), [(HEALTHY, 0), ("raise ValueError('no room')", 1)])
def test_the_log_of_the_server_stays_only_where_an_error_points_to_it(program: str, left: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-c", program, str(port)])
    refused = pytest.raises(ConfigError, match=r"ValueError: no room \(whole log: .*vllm.log\)") if left else nullcontext()
    with refused, vllm_server("", Config()):
        assert len(list(tmp_path.glob("srl-serve-*"))) == 1
    assert len(list(tmp_path.glob("srl-serve-*/vllm.log"))) == left


def test_serve_ends_and_says_why_when_vllm_has_died(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    """Nobody starts it again here; an orchestrator does, once this process has ended with an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-uc", DYING, str(port)])
    assert main(["serve", "--model", "embedded", f"--port={free_port()}"]) == 2
    assert "srl: vLLM's server stopped with 7: RuntimeError: no memory (whole log: " in capsys.readouterr().err


def test_the_log_of_a_server_that_was_killed_is_kept_for_whoever_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "print(' WARNING might cause OSError', flush=True)" + HEALTHY
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-c", program, str(port)])
    said = "vLLM's server was killed (SIGKILL): no error in its log (whole log: "
    with pytest.raises(ConfigError, match=re.escape(said)) as refused, vllm_server("", Config()) as server:
        server.process.kill()
        server.process.wait()
    assert Path(str(refused.value).split()[-1].rstrip(")")).is_file()


def test_a_proxy_of_the_environment_does_not_stand_before_the_server_that_was_started_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-c", HEALTHY, str(port)])
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        for variable in (name, name.lower()):
            monkeypatch.setenv(variable, "" if name == "NO_PROXY" else "http://127.0.0.1:9")  # nobody listens at port 9

    async def found(url: str) -> int:
        async with connect(url, Config()) as client:
            return (await client.get("/health")).status_code

    with vllm_server("", Config(rollout={"start_timeout_s": 20})) as server:
        assert asyncio.run(found(server.url)) == 200


@pytest.mark.parametrize("threads", [1, 3])
def test_vllms_server_computes_with_as_many_threads_as_an_engine(threads: int, tmp_path: Path, monkeypatch):
    note = f"import os; open({str(tmp_path / 'threads')!r}, 'w').write(os.environ.get('OMP_NUM_THREADS', 'any'))"
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-c", note + HEALTHY, str(port)])
    with vllm_server("", Config(rollout={"threads": threads})):
        assert (tmp_path / "threads").read_text() == str(threads)


def tokens(chat: Chat, text: str) -> list[int]:
    return [*chat.tokenizer(text, add_special_tokens=False).input_ids, chat.end_id]


def scripted(chat: Chat, *texts: str):
    """A `generate` that says these texts one after the other, and remembers what it was given."""
    asked: list[list[int]] = []

    async def generate(token_ids: list[int], max_tokens: int) -> AsyncIterator[Sample]:
        asked.append(token_ids)
        ids = tokens(chat, texts[len(asked) - 1])
        for place, token in enumerate(ids[:max_tokens]):
            yield Sample(token, -0.25, last_by_length=place + 1 == max_tokens < len(ids))

    return generate, asked


def talk(chat: Chat, protocol: str, *texts: str, limits: Limits = ROOMY):
    trajectory = Trajectory("t", "t", QUESTION, "", chat.opening(QUESTION))
    generate, asked = scripted(chat, *texts)

    async def collect():
        rules = build_protocol(protocol, Config(), chat)
        return [p async for p in converse(trajectory, rules, chat, generate, grammar="verify", limits=limits)]

    return trajectory, asyncio.run(collect()), asked


def test_a_long_chain_is_told_by_kind_while_it_comes_and_cut_into_turns_at_its_end(chat: Chat):
    trajectory, pieces, _ = talk(chat, "long_chain", CHAIN)
    assert [turn.kind for turn in trajectory.turns] == [TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION]
    assert trajectory.final().answer == "85" and trajectory.stop_reason is StopReason.ROUNDS
    kinds = list(dict.fromkeys(piece.kind for piece in pieces))
    assert kinds == ["attempt", "verdict", "revision"] and len(pieces) > 20
    assert "".join(piece.text for piece in pieces) == chat.decode(tokens(chat, CHAIN))


def test_the_next_turn_is_asked_after_exactly_the_tokens_so_far(chat: Chat):
    trajectory, pieces, asked = talk(chat, "prompted", WRONG, "[VERIFY] wrong", RIGHT)
    assert [turn.kind.value for turn in trajectory.turns] == ["attempt", "instruction", "verdict", "instruction", "revision"]
    assert len(asked) == 3 and asked[2] == trajectory.token_ids()[: len(asked[2])]
    assert next(piece.text for piece in pieces if piece.kind is TurnKind.INSTRUCTION) == "Check the solution."


def test_a_generation_that_is_cut_off_stops_with_length(chat: Chat):
    trajectory, _, _ = talk(chat, "long_chain", CHAIN, limits=Limits(len(chat.opening(QUESTION)) + 9))
    assert trajectory.stop_reason is StopReason.LENGTH and trajectory.sampled_tokens() == 9


def test_a_conversation_ends_under_the_limits_of_a_rollout(chat: Chat):
    few, _, asked = talk(
        chat, "prompted", WRONG, "[VERIFY] wrong", RIGHT, limits=Limits(512, max_tokens=len(tokens(chat, WRONG)))
    )
    assert few.stop_reason is StopReason.TOKENS and len(asked) == 1 and few.final().answer == "84"
    cut, _, _ = talk(chat, "long_chain", CHAIN, limits=Limits(512, max_tokens=9))
    assert cut.stop_reason is StopReason.TOKENS and cut.sampled_tokens() == 9
    late, pieces, _ = talk(chat, "long_chain", CHAIN, limits=Limits(512, max_seconds=1e-9))
    assert late.stop_reason is StopReason.TIME and not late.turns and not pieces


def test_a_turn_that_is_not_cut_is_told_as_what_it_is_to_its_end(chat: Chat):
    """After the line of a box, a chain checks; an attempt sampled on its own goes on."""
    longer = f"{WRONG}\nThe answer is 84"
    _, pieces, _ = talk(chat, "prompted", longer, "[VERIFY] wrong", RIGHT)
    assert list(dict.fromkeys(piece.kind for piece in pieces)) == ["attempt", "instruction", "verdict", "revision"]
    assert "".join(piece.text for piece in pieces if piece.kind is TurnKind.ATTEMPT) == longer


def test_what_comes_after_the_users_second_message_is_told_as_a_revision(chat: Chat):
    first = f"{WRONG}\nStart [VERIFY] wrong"
    trajectory, pieces, _ = talk(chat, "two_turn", first, f"{RIGHT}\nStart [VERIFY] correct")
    kinds = [turn.kind for turn in trajectory.turns]
    assert kinds == ["attempt", "verdict", "instruction", "revision", "verdict"]
    assert [kind for kind, _ in itertools.groupby(piece.kind for piece in pieces)] == kinds


def test_text_is_told_in_whole_characters_that_add_up_to_what_was_sampled():
    class Bytes:
        """A token for each byte, as the rarest characters have it."""

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode("utf-8", "replace")

    text = "a = 84 ∑ €😀  b\n\n\\boxed{ü}"
    writing = Writing(Bytes())
    pieces = [writing.add(token) for token in text.encode()]
    assert "".join(pieces) == writing.text == text and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Start at 47", "attempt"),
        (WRONG, "attempt"),
        (WRONG + "\nStart", "verdict"),
        (WRONG + "\n[VERIFY] wrong", "verdict"),
        (WRONG + "\n[VERIFY] wrong\nStart", "revision"),
        (CHAIN + "\n[VERIFY] correct", "verdict"),
        (RIGHT + "\n[VERIFY] correct. Well done", "verdict"),
    ],
)
def test_the_kind_of_what_is_being_written(text: str, kind: str):
    assert kind_at_end(text, "verify", TurnKind.ATTEMPT) == kind


def line_of(token: int, finish: str | None = None) -> str:
    choice = {"token_ids": [token], "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


class Upstream:
    """vLLM's server as far as it is used: a stream of tokens, its health and its models. Keeps what it was asked."""

    def __init__(self, chat: Chat, text: str):
        self.ids = tokens(chat, text)
        self.asked: list[dict] = []
        self.failure: Exception | httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.failure is not None:
            return self.failure
        if request.url.path != "/v1/completions":
            return httpx.Response(200, json={"path": request.url.path})
        self.asked.append(json.loads(request.content))
        most = self.asked[-1]["max_tokens"]
        lines = [line_of(token) for token in self.ids[:most]]
        lines[-1] = line_of(self.ids[:most][-1], "length" if most < len(self.ids) else "stop")
        return httpx.Response(200, text="".join(lines) + "data: [DONE]\n\n")


@pytest.fixture
def upstream(chat: Chat) -> Upstream:
    return Upstream(chat, CHAIN)


@pytest.fixture
def app(chat: Chat, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    behind = httpx.AsyncClient(transport=httpx.MockTransport(upstream), base_url="http://vllm")
    monkeypatch.setattr("srl.serving.app.connect", lambda url, config: behind)
    return create_app("http://vllm", chat, Config(), "long_chain")


@pytest.fixture
def endpoint(app: FastAPI):
    """Calls the application without a network."""

    def call(method: str, path: str, **body) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://srl") as client:
                return await client.request(method, path, json=body or None)

        return asyncio.run(once())

    return call


def asked(content: str = QUESTION, **more) -> dict:
    return {"model": "srl", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": content}], **more}


def test_the_endpoint_returns_the_final_answer_and_the_turns(endpoint):
    found = endpoint("POST", "/v1/chat/completions", **asked()).json()
    message = found["choices"][0]["message"]
    assert message["content"] == RIGHT and message["final_answer"] == "85" and message["stop_reason"] == "rounds"
    assert [turn["kind"] for turn in message["turns"]] == ["attempt", "verdict", "revision"]
    assert message["turns"][1]["verdict"] == "wrong" and message["turns"][0]["answer"] == "84"
    assert found["object"] == "chat.completion" and found["usage"]["completion_tokens"] > 40


def test_the_stream_has_text_by_kind_and_ends_with_the_turns(endpoint):
    response = endpoint("POST", "/v1/chat/completions", **asked(stream=True))
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    kinds = list(dict.fromkeys(chunk["delta"]["kind"] for chunk in chunks if "kind" in chunk["delta"]))
    assert kinds == ["attempt", "verdict", "revision"]
    assert chunks[-1]["finish_reason"] == "stop" and chunks[-1]["delta"]["final_answer"] == "85"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (asked("Start at 47: " * 600), "leaves no room"),
        (asked("Σ∞"), "no tokens"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the last one must be the user's"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "the last one must be the user's",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content"),
        (asked(n=2), "n: "),
        (asked(temperature=-1), "temperature: "),
        (asked(max_tokens=0), "max_tokens: "),
        (asked(seed="x"), "seed: "),
        ({"model": "srl"}, "messages: "),
    ],
)
def test_what_cannot_be_asked_is_a_bad_request_that_says_why_as_openai_does(endpoint, wrong: dict, named: str):
    response = endpoint("POST", "/v1/chat/completions", **wrong)
    error = response.json()["error"]
    assert response.status_code == 400 and named in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", 400)


def test_half_a_character_is_a_bad_request(app: FastAPI):
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://srl") as client:
            text = json.dumps({"messages": [{"role": "user", "content": "\ud800"}]})
            return await client.post("/v1/chat/completions", content=text, headers={"content-type": "application/json"})

    assert asyncio.run(once()).status_code == 400


def test_text_in_parts_is_text_and_null_is_as_good_as_absent(endpoint, upstream: Upstream, chat: Chat):
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    nothing = dict.fromkeys(["temperature", "n", "stream", "seed", "max_tokens", "top_p", "stop", "stream_options"])
    message = {"role": "user", "content": parts}
    assert endpoint("POST", "/v1/chat/completions", messages=[message], **nothing).status_code == 200
    assert upstream.asked[0]["prompt"] == chat.opening(QUESTION)


def test_messages_before_the_last_one_are_the_conversation_so_far(endpoint, upstream: Upstream, chat: Chat):
    before = [{"role": "user", "content": "Start at 46: (1) +38 = ?"}, {"role": "assistant", "content": WRONG}]
    last = {"role": "user", "content": QUESTION}
    assert endpoint("POST", "/v1/chat/completions", messages=[*before, last]).status_code == 200
    assert upstream.asked[0]["prompt"] == [
        *chat.opening(before[0]["content"]), *tokens(chat, WRONG), *chat.opening(QUESTION)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_more_tokens_are_sampled_than_the_request_allows(endpoint, upstream: Upstream, name: str):
    found = endpoint("POST", "/v1/chat/completions", **asked(**{name: 7})).json()
    assert upstream.asked[0]["max_tokens"] == 7 and found["usage"]["completion_tokens"] == 7
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["choices"][0]["message"]["stop_reason"] == "tokens"


def test_a_seed_gives_every_turn_a_seed_of_its_own_and_every_request_the_same(chat: Chat, upstream: Upstream):
    upstream.ids = tokens(chat, f"{WRONG} [VERIFY] wrong")
    behind = httpx.AsyncClient(transport=httpx.MockTransport(upstream), base_url="http://vllm")
    request = Request(**asked(temperature=1.0, seed=2**70))

    async def whole() -> None:
        sample = functools.partial(complete, behind)
        async for _ in answer(opened(request, chat, Config()), request, sample, chat, Config(), "prompted"):
            pass

    asyncio.run(whole())
    asyncio.run(whole())
    seeds = [body["seed"] for body in upstream.asked]
    assert len(seeds) == 6 and seeds[:3] == seeds[3:] and len(set(seeds)) == 3 and max(seeds) < 2**63


def test_top_p_is_the_requests_or_that_of_rollouts(endpoint, upstream: Upstream):
    for more, expected in (({}, 1.0), ({"top_p": 0.5}, 0.5)):
        endpoint("POST", "/v1/chat/completions", **asked(**more))
        assert upstream.asked[-1]["top_p"] == expected


@pytest.mark.parametrize(
    ("failure", "status", "named"),
    [
        (httpx.ConnectError("refused"), 503, "cannot be reached: refused"),
        (httpx.ReadTimeout("late"), 504, "rollout.timeout_s"),
        (httpx.Response(400, text="too long"), 400, "too long"),
        (httpx.Response(200, text='data: {"error": "EngineCore died"}\n\n'), 500, "EngineCore died"),
    ],
)
def test_a_failure_of_vllms_server_is_told_with_its_status_and_in_a_stream(endpoint, upstream: Upstream, failure, status, named):
    upstream.failure = failure
    response = endpoint("POST", "/v1/chat/completions", **asked())
    assert response.status_code == status and named in response.json()["error"]["message"]
    lines = [line for line in endpoint("POST", "/v1/chat/completions", **asked(stream=True)).text.split("\n") if line]
    assert named in json.loads(lines[-2].removeprefix("data: "))["error"]["message"] and lines[-1] == "data: [DONE]"


def test_health_is_bad_where_vllms_server_is_gone(endpoint, upstream: Upstream):
    upstream.failure = httpx.ConnectError("refused")
    assert endpoint("GET", "/health").status_code == 503


def test_openais_client_reads_answers_streams_usage_and_errors(app: FastAPI, upstream: Upstream):
    async def talked() -> None:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://srl")
        async with openai.AsyncOpenAI(base_url="http://srl/v1", api_key="none", http_client=http, max_retries=0) as client:
            create = functools.partial(client.chat.completions.create, **asked())
            whole = await create()
            assert whole.choices[0].message.content == RIGHT and whole.choices[0].message.final_answer == "85"
            chunks = [chunk async for chunk in await create(stream=True, stream_options={"include_usage": True})]
            assert chunks[-1].usage == whole.usage and not chunks[-1].choices
            assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].choices[0].delta.final_answer == "85"
            with pytest.raises(openai.BadRequestError, match="n: Input should be less than or equal to 1"):
                await create(n=2)
            upstream.failure = httpx.ConnectError("refused")
            with pytest.raises(openai.APIError, match="cannot be reached: refused"):
                [chunk async for chunk in await create(stream=True)]

    asyncio.run(talked())


def test_what_a_client_that_has_left_asked_for_is_no_longer_sampled(chat: Chat, monkeypatch: pytest.MonkeyPatch):
    class Endless(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield line_of(10).encode()
                await asyncio.sleep(0.01)

        async def aclose(self) -> None:
            self.closed = True

    stream = Endless()
    behind = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=stream)), base_url="http://vllm"
    )
    monkeypatch.setattr("srl.serving.app.connect", lambda url, config: behind)
    app = create_app("http://vllm", chat, Config(), "long_chain")
    heard = [{"type": "http.request", "body": json.dumps(asked()).encode()}, {"type": "http.disconnect"}]

    async def receive() -> dict:
        await asyncio.sleep(0.05)
        return heard.pop(0)

    async def send(message: dict) -> None: ...

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "http_version": "1.1",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    assert stream.closed


def test_models_and_health_are_those_of_vllm(endpoint):
    assert endpoint("GET", "/v1/models").json() == {"path": "/v1/models"}
    assert endpoint("GET", "/health").status_code == 200


class Generation(httpx.AsyncByteStream):
    """One whose tokens come when the test says so."""

    def __init__(self):
        self.begun, self.tokens = asyncio.Event(), asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun.set()
        while True:
            yield await self.tokens.get()
            self.tokens.task_done()

    async def token(self) -> None:
        """Returns when the next one is waited for."""
        self.tokens.put_nowait(line_of(10).encode())
        await asyncio.wait_for(self.tokens.join(), 20)


class Served:
    """serve with rollout.hang_s=120 in front of a vLLM that calls itself healthy whatever its engine does."""

    def __init__(self, chat: Chat, monkeypatch: pytest.MonkeyPatch):
        self.now, self.generations = 0.0, list[Generation]()
        monkeypatch.setattr(backend, "time", SimpleNamespace(monotonic=lambda: self.now))
        behind = httpx.AsyncClient(transport=httpx.MockTransport(self._vllm), base_url="http://vllm")
        monkeypatch.setattr("srl.serving.app.connect", lambda url, config: behind)
        app = create_app("http://vllm", chat, Config(rollout={"hang_s": 120}), "long_chain")
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://srl")

    def _vllm(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/completions":
            return httpx.Response(200)
        self.generations.append(Generation())
        return httpx.Response(200, stream=self.generations[-1])

    async def ask(self) -> tuple[asyncio.Future, Generation]:
        """Returns when its first token is waited for."""
        count = len(self.generations)
        question = asyncio.ensure_future(self.client.post("/v1/chat/completions", json=asked()))
        while len(self.generations) == count:
            await asyncio.sleep(0)
        await asyncio.wait_for(self.generations[-1].begun.wait(), 20)
        return question, self.generations[-1]

    async def health(self, now: float) -> str:
        """Empty when it is good, else why not."""
        self.now = now
        found = await self.client.get("/health")
        assert found.status_code in (200, 503)
        return "" if found.status_code == 200 else found.json()["error"]["message"]


async def leave(question: asyncio.Future) -> None:
    question.cancel()
    with suppress(asyncio.CancelledError):
        await question


def test_health_is_bad_while_questions_are_open_and_no_token_of_any_comes(chat: Chat, monkeypatch: pytest.MonkeyPatch):
    async def story(served: Served) -> None:
        first, generation = await served.ask()
        assert await served.health(100) == ""
        second, _ = await served.ask()
        assert await served.health(120) == ""
        assert (await served.health(121)).endswith("no token has come for 121.0 s, generations that wait for one: 2")
        served.now = 100
        await generation.token()
        assert await served.health(220) == ""
        assert await served.health(220.5) == (
            "rollout.hang_s=120: no token has come for 120.5 s, generations that wait for one: 2"
        )
        await generation.token()
        assert await served.health(340.5) == ""
        await leave(first)
        await leave(second)
        assert await served.health(1000) == "", "nobody waits"
        await leave((await served.ask())[0])

    asyncio.run(story(Served(chat, monkeypatch)))


def test_health_of_a_server_whose_tokens_come_is_good_while_another_question_still_waits(chat: Chat, monkeypatch):
    async def story(served: Served) -> None:
        (first, generation), (second, _) = await served.ask(), await served.ask()
        for now in range(60, 601, 60):
            assert await served.health(now) == ""
            await generation.token()
        await leave(first)
        await leave(second)

    asyncio.run(story(Served(chat, monkeypatch)))


def test_clients_that_give_up_early_do_not_hide_an_engine_that_hangs(chat: Chat, monkeypatch: pytest.MonkeyPatch):
    async def story(served: Served) -> None:
        for begin in (0, 1000):  # 50 s each, and what lies between them is no wait
            served.now = begin
            question, _ = await served.ask()
            assert await served.health(begin + 50) == ""
            await leave(question)
        served.now = 2000
        question, generation = await served.ask()
        assert await served.health(2020) == ""
        assert "no token has come for 121.0 s, generations that wait for one: 1" in await served.health(2021)
        await generation.token()
        assert await served.health(2022) == ""
        await leave(question)

    asyncio.run(story(Served(chat, monkeypatch)))


def test_a_client_that_does_not_read_its_stream_is_no_silence_of_the_engine(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(backend, "time", clock)
    silence = Silence()

    async def samples() -> AsyncIterator[Sample]:
        for token in (1, 2):
            clock.now += 7
            assert silence.waiting == 1 and silence.seconds() == 7
            yield Sample(token, -0.5)

    async def story() -> None:
        async for _ in silence.heard(samples()):
            clock.now += 500
            assert silence.waiting == 0 and silence.seconds() == 0

    asyncio.run(story())


@pytest.mark.parametrize(("path", "status"), [("/health", 503), ("/v1/models", 504)])
def test_a_server_that_accepts_and_never_answers_is_told_as_one_soon(chat: Chat, monkeypatch, path: str, status: int):
    monkeypatch.setattr("srl.serving.app.ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = create_app(f"http://127.0.0.1:{silent.getsockname()[1]}", chat, Config(), "long_chain")

        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://srl") as client:
                return await asyncio.wait_for(client.get(path), 20)

        found = asyncio.run(once())
    assert found.status_code == status
    assert found.json()["error"]["message"] == f"vLLM's server has not answered {path} for 0.2 s"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Chat]]:
    """The address of vLLM's server with the embedded model, whose generation_config.json would spoil its answers."""
    folder = tmp_path_factory.mktemp("model") / "base"
    shutil.copytree(model_folder("embedded"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 20.0}))
    with vllm_server(str(folder), Config()) as server:
        yield server.url, Chat(str(folder), Config().prompts)


def test_vllms_own_server_samples_the_tokens_that_it_is_asked_for(vllm: tuple[str, Chat]):
    url, base = vllm
    trajectory = Trajectory("t", "t", QUESTION, "", base.opening(QUESTION))

    async def whole() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            rules = build_protocol("prompted", Config(), base)

            def generate(token_ids: list[int], max_tokens: int):
                return complete(client, token_ids, max_tokens, 0.0, None, base.stop_ids)

            async for _ in converse(trajectory, rules, base, generate, grammar="verify", limits=Limits(512)):
                pass

    asyncio.run(whole())
    assert trajectory.final().answer == "85" and trajectory.stop_reason in (StopReason.VERIFIED, StopReason.ROUNDS)
    assert [turn["kind"] for turn in turns_of(trajectory)][:3] == ["attempt", "instruction", "verdict"]
    assert all(turn.sampled for turn in trajectory.turns if turn.kind is not TurnKind.INSTRUCTION)


def test_vllms_own_server_survives_more_seeded_requests_than_fit_into_one_of_its_steps(vllm: tuple[str, Chat]):
    """60 prompts of 80 tokens: a step that takes 2,048 of them would cut one in two, which its random generator cannot follow."""
    url, base = vllm
    prompt = base.opening(QUESTION) * 8

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def one(seed: int) -> int:
                return len([sample async for sample in complete(client, prompt, 8, 1.0, seed, base.stop_ids)])

            return await asyncio.gather(*(one(seed) for seed in range(60)))

    assert len(prompt) == 80 and all(0 < count <= 8 for count in asyncio.run(all_at_once()))


def test_the_server_ends_with_the_process_that_started_it_even_when_that_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    program = f"""
import pathlib, subprocess, time
from srl.serving.backend import end_with_parent
child = subprocess.Popen(["sleep", "600"], preexec_fn=end_with_parent)
pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    pid = int(pid_file.read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `python -m srl.main serve` with the embedded model, which is asked for its verdicts."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    line = [sys.executable, "-m", "srl.main", "serve", "--model", "embedded", "--protocol", "prompted", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + Config().rollout.start_timeout_s  # when it gives up itself
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code in (0, 130), log.read_text()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, problem: Problem, **more) -> dict:
    body = {"messages": [{"role": "user", "content": problem.question}], **more}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=120).raise_for_status().json()


@pytest.mark.long
def test_serve_holds_whole_conversations_on_the_real_vllm(served: str):
    """Sampled answers to ten problems: some are verified at once, others are found wrong and written again."""
    problems = chain_problems("test", 10, 3, 4, 4)
    messages = [ask(served, problem, temperature=1.0, seed=7)["choices"][0]["message"] for problem in problems]
    kinds = {tuple(turn["kind"] for turn in message["turns"]) for message in messages}
    verified = ("attempt", "instruction", "verdict")
    assert kinds == {verified, (*verified, "instruction", "revision")}
    for message in messages:
        turns, answers = message["turns"], [turn for turn in message["turns"] if "answer" in turn]
        assert message["stop_reason"] == ("verified" if len(turns) == 3 else "rounds")
        assert turns[2]["verdict"] == ("correct" if len(turns) == 3 else "wrong")
        assert message["final_answer"] == answers[-1]["answer"] and message["content"] == answers[-1]["text"]
        assert f"boxed{{{message['final_answer']}}}" in message["content"]


@pytest.mark.long
def test_a_streamed_conversation_is_the_one_that_is_returned_whole(served: str):
    problem = chain_problems("test", 10, 3, 4, 4)[0]
    whole = ask(served, problem, temperature=1.0, seed=5)
    assert ask(served, problem, temperature=1.0, seed=5)["choices"] == whole["choices"]
    body = {"messages": [{"role": "user", "content": problem.question}], "temperature": 1.0, "seed": 5, "stream": True}
    text = httpx.post(f"{served}/chat/completions", json=body, timeout=120).text
    *chunks, done = [line.removeprefix("data: ") for line in text.splitlines() if line]
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    assert done == "[DONE]" and all(deltas[-1][name] == message[name] for name in ("turns", "final_answer", "stop_reason"))
    attempt = "".join(delta["content"] for delta in deltas if delta.get("kind") == "attempt")
    assert attempt.strip() == message["turns"][0]["text"]
