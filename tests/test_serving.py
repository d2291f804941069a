"""Conversation and endpoint in front of a made-up vLLM server, and the two commands with the real one."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import psutil
import pytest

from srl.config import Config, ConfigError
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.serving import backend
from srl.serving.app import create_app
from srl.serving.backend import Sample, complete, free_port, vllm_server
from srl.serving.conversation import converse, kind_at_end, turns_of
from srl.tasks.problems import Problem, chain_problems
from srl.trajectory import StopReason, Trajectory, TurnKind

QUESTION = "Start at 47: (1) +38 = ?"
WRONG = r"Start at 47 (1) +38 a = 84. The answer is \boxed{84}"
RIGHT = r"Start at 47 (1) +38 a = 85. The answer is \boxed{85}"
CHAIN = f"{WRONG}\nStart at 47 (1) +38: 7 + 8 = 15, 4 + 3 + 1 = 8, 85 = 84: 5 - 4 = 1 no. [VERIFY] wrong\n{RIGHT}"


HEALTHY = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.mark.parametrize(("program", "left"), [(HEALTHY, 0), ("raise ValueError('no room')", 1)])
def test_the_log_of_the_server_stays_only_where_an_error_points_to_it(program: str, left: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backend, "command", lambda model, port, config: [sys.executable, "-c", program, str(port)])
    refused = pytest.raises(ConfigError, match=r"ValueError: no room \(whole log: .*vllm.log\)") if left else nullcontext()
    with refused, vllm_server("", Config()):
        assert len(list(tmp_path.glob("srl-serve-*"))) == 1
    assert len(list(tmp_path.glob("srl-serve-*/vllm.log"))) == left


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


def talk(chat: Chat, protocol: str, *texts: str, max_length: int = 512):
    trajectory = Trajectory("t", "t", QUESTION, "", chat.opening(QUESTION))
    generate, asked = scripted(chat, *texts)

    async def collect():
        rules = build_protocol(protocol, Config(), chat)
        return [p async for p in converse(trajectory, rules, chat, generate, grammar="verify", max_length=max_length)]

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
    trajectory, _, _ = talk(chat, "long_chain", CHAIN, max_length=len(chat.opening(QUESTION)) + 9)
    assert trajectory.stop_reason is StopReason.LENGTH and trajectory.sampled_tokens() == 9


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


def upstream(chat: Chat, text: str) -> httpx.MockTransport:
    """vLLM's server as far as it is used: a stream of tokens, its health and its models."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/completions":
            return httpx.Response(200, json={"path": request.url.path})
        asked = json.loads(request.content)
        assert asked["return_token_ids"] and asked["prompt"] == chat.opening(QUESTION)
        ids = tokens(chat, text)
        lines = []
        for place, token in enumerate(ids):
            last = place + 1 == len(ids)
            choice = {"token_ids": [token], "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": "stop" if last else None}
            lines.append(f"data: {json.dumps({'choices': [choice]})}\n\n")
        return httpx.Response(200, text="".join(lines) + "data: [DONE]\n\n")

    return httpx.MockTransport(respond)


@pytest.fixture
def endpoint(chat: Chat, monkeypatch: pytest.MonkeyPatch):
    """Calls the application without a network."""
    real = httpx.AsyncClient
    behind = real(transport=upstream(chat, CHAIN), base_url="http://vllm")
    monkeypatch.setattr("srl.serving.app.httpx.AsyncClient", lambda **_: behind)
    app = create_app("http://vllm", chat, Config(), "long_chain")

    def call(method: str, path: str, **body) -> httpx.Response:
        async def once() -> httpx.Response:
            async with real(transport=httpx.ASGITransport(app=app), base_url="http://srl") as client:
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


def test_what_cannot_be_asked_is_a_bad_request(endpoint):
    assert endpoint("POST", "/v1/chat/completions", **asked("Σ∞")).status_code == 400
    assert "no room" in endpoint("POST", "/v1/chat/completions", **asked("Start at 47: " * 600)).json()["detail"]
    assert endpoint("POST", "/v1/chat/completions", messages=[{"role": "system", "content": "x"}]).status_code == 400
    assert endpoint("POST", "/v1/chat/completions", **asked(n=2)).status_code == 422


def test_text_in_parts_is_text_and_pictures_are_refused(endpoint):
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    assert endpoint("POST", "/v1/chat/completions", messages=[{"role": "user", "content": parts}]).status_code == 200
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert endpoint("POST", "/v1/chat/completions", messages=[{"role": "user", "content": picture}]).status_code == 422


def test_models_and_health_are_those_of_vllm(endpoint):
    assert endpoint("GET", "/v1/models").json() == {"path": "/v1/models"}
    assert endpoint("GET", "/health").status_code == 200


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Chat]]:
    """The address of vLLM's server with the embedded model, whose generation_config.json would spoil its answers."""
    folder = tmp_path_factory.mktemp("model") / "base"
    shutil.copytree(model_folder("embedded"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 20.0}))
    with vllm_server(str(folder), Config()) as url:
        yield url, Chat(str(folder), Config().prompts)


def test_vllms_own_server_samples_the_tokens_that_it_is_asked_for(vllm: tuple[str, Chat]):
    url, base = vllm
    trajectory = Trajectory("t", "t", QUESTION, "", base.opening(QUESTION))

    async def whole() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            rules = build_protocol("prompted", Config(), base)

            def generate(token_ids: list[int], max_tokens: int):
                return complete(client, token_ids, max_tokens, 0.0, None, base.stop_ids)

            async for _ in converse(trajectory, rules, base, generate, grammar="verify", max_length=512):
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
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/v1"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 130), log.read_text()


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
