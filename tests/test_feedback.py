"""Protocols in which something outside the model judges, up to H rounds, and the budgets of a trajectory."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from test_protocol import CHAIN, CHECKED_RIGHT, CHECKED_WRONG, RIGHT, SLIP, ScriptedEngine, ids_of, kinds, play

from srl.config import ConfigError, PromptsConfig, load_config
from srl.config.rollout import ProtocolConfig
from srl.protocols.chat import Chat
from srl.protocols.protocol import PROTOCOLS, TRAINABLE, build_protocol
from srl.rollout.judges import check_judge, gold_judge, in_threads, make_judges, then
from srl.rollout.loop import Limits, run_trajectories
from srl.tasks import tokenizer
from srl.tasks.chains import question
from srl.tasks.tokenizer import ASSISTANT, END, USER
from srl.trajectory import Outcome, StopReason, Trajectory, TurnKind, Verdict

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741


def agrees(trajectory: Trajectory) -> Verdict:
    return Verdict.CORRECT if trajectory.answers()[-1].answer == trajectory.gold else Verdict.WRONG


GOLD = {"gold": in_threads(agrees, 1), "judge": in_threads(lambda trajectory: Verdict.WRONG, 1)}


@pytest.mark.parametrize(
    ("name", "rounds", "texts", "expected", "stop"),
    [
        ("gold", 1, (RIGHT,), [A], StopReason.ACCEPTED),
        ("gold", 1, (SLIP, RIGHT), [A, I, R], StopReason.ROUNDS),
        ("gold", 2, (SLIP, RIGHT), [A, I, R], StopReason.ACCEPTED),
        ("gold", 2, (SLIP, SLIP, RIGHT), [A, I, R, I, R], StopReason.ROUNDS),
        ("misleading", 1, (SLIP,), [A], StopReason.REJECTED),
        ("misleading", 1, (RIGHT, SLIP), [A, I, R], StopReason.ROUNDS),
        ("misleading", 2, (RIGHT, SLIP), [A, I, R], StopReason.REJECTED),
        ("judged", 2, (RIGHT, RIGHT, RIGHT), [A, I, R, I, R], StopReason.ROUNDS),
        ("gold_chain", 1, (SLIP, RIGHT), [A, I, R], StopReason.ROUNDS),
        ("gold_two_turn", 3, (SLIP, SLIP, RIGHT), [A, I, R, I, R], StopReason.ACCEPTED),
        ("misleading_chain", 1, (RIGHT, RIGHT), [A, I, R], StopReason.ROUNDS),
        # Cut by the token limit; a judge's last word stays, and so does an end whose cut part is dropped.
        ("gold", 1, ("The solution…", RIGHT), [A, I, R], StopReason.LENGTH),
        ("gold", 1, (f"{RIGHT}…",), [A], StopReason.ACCEPTED),
        ("misleading", 1, (RIGHT, f"{SLIP}…"), [A, I, R], StopReason.LENGTH),
        ("gold_chain", 1, (f"{SLIP}\n{CHECKED_RIGHT}…", RIGHT), [A, I, I, R], StopReason.ROUNDS),
        ("gold_chain", 1, (f"{SLIP}…", RIGHT), [A, I, R], StopReason.LENGTH),
    ],
)
def test_the_judge_decides_whether_the_model_is_asked_again(chat, name, rounds, texts, expected, stop):
    config = load_config(None, [f"protocol.max_rounds={rounds}"])
    trajectory, _ = play(chat, name, *texts, config=config, judges=GOLD)
    assert kinds(trajectory) == expected and trajectory.stop_reason is stop
    said = [turn for turn in trajectory.turns if turn.kind is I]
    assert not any(turn.sampled for turn in said)
    assert [turn.verdict for turn in said if turn.verdict] == [Verdict.WRONG] * expected.count(R)


def test_after_the_models_own_check_stands_the_gold_verdict_in_place_of_its_own(chat):
    """The chain says "correct" of its wrong answer. Of the revision only the answer is kept: nobody judges it."""
    trajectory, engine = play(chat, "gold_chain", f"{SLIP}\n{CHECKED_RIGHT}", f"\n{RIGHT}\n{CHECKED_RIGHT}", judges=GOLD)
    opening = chat.opening(question(CHAIN))
    told = opening + ids_of(chat, f"{SLIP}\n{CHECKED_RIGHT.replace('correct', 'wrong')}")
    assert engine.prompts == [opening, told]
    assert trajectory.token_ids() == told + ids_of(chat, f"\n{RIGHT}")
    assert trajectory.turns[3].logprobs == [-0.5 - n for n in range(len(trajectory.turns[3].token_ids))]


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ("\n[VERIFY] correct", "\n[VERIFY] wrong"),  # without a check
        ("", "\n[VERIFY] wrong"),
        ("\n\\boxed{[VERIFY] correct}", "\n[VERIFY] wrong"),  # of a box nothing is kept: the word is not its end
    ],
)
def test_whatever_the_model_says_after_its_answer_the_judges_verdict_stands_there_whole(chat, own, kept):
    trajectory, _ = play(chat, "gold_chain", f"{SLIP}{own}", f"\n{RIGHT}", judges=GOLD)
    said = "".join(turn.text for turn in trajectory.turns if turn.kind is I)
    assert said == kept and trajectory.stop_reason is StopReason.ROUNDS


VERIFY = {". [VERIFY] ", "[VERIFY] ", "correct", "wrong"}  # the pieces that the embedded tokenizer has for it


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        (VERIFY, "{check}. [VERIFY] wrong"),
        ({"[VERIFY]", " correct", " wrong"}, "{check}. [VERIFY] wrong"),
        ({"[VERIFY] correct", "[VERIFY] wrong"}, "{check}. [VERIFY] wrong"),
        ({"[VERIFY", "] correct", "] wrong"}, "{check}. [VERIFY] wrong"),
        ({". [VERIFY] correct", "[VERIFY] wrong"}, "{check}\n[VERIFY] wrong"),
        ({". [VERIFY", "] correct", "[VERIFY] wrong"}, "{check}\n[VERIFY] wrong"),
    ],
)
def test_however_tokens_hold_marker_and_word_the_judges_verdict_is_whole_and_nothing_sampled_is_split(
    tmp_path, monkeypatch: pytest.MonkeyPatch, pieces: set[str], kept: str
):
    monkeypatch.setattr(tokenizer, "PIECES", [*(set(tokenizer.PIECES) - VERIFY), *sorted(pieces)])
    tokenizer.save_tokenizer(tmp_path)
    other = Chat(str(tmp_path), PromptsConfig())
    check = CHECKED_RIGHT.removesuffix(". [VERIFY] correct")
    trajectory, engine = play(other, "gold_chain", f"{SLIP}\n{CHECKED_RIGHT}", f"\n{RIGHT}", judges=GOLD)
    asked = engine.prompts[1][len(engine.prompts[0]) :]
    assert other.decode(asked) == SLIP + "\n" + kept.format(check=check)
    said = other.encode(next(turn for turn in trajectory.turns if turn.verdict is Verdict.WRONG).text)
    sampled = asked[: -len(said)]
    assert sampled == engine.generations[0][: len(sampled)] and asked[-len(said) :] == said


def test_told_by_the_user_the_models_message_ends_where_its_answer_does(chat):
    """The attempt's own verdict is dropped with the end token after it, so the template's end token stands in its place."""
    _, engine = play(chat, "misleading", f"{RIGHT}\n{CHECKED_WRONG}", SLIP, judges=GOLD)
    said = f"{END}{USER}The solution is wrong. Correct it.{END}{ASSISTANT}"
    assert engine.prompts[1] == engine.prompts[0] + ids_of(chat, RIGHT + said)


def test_the_two_turn_form_says_both(chat):
    _, engine = play(chat, "gold_two_turn", SLIP, RIGHT, judges=GOLD)
    said = f"\n[VERIFY] wrong{END}{USER}The solution is wrong. Correct it.{END}{ASSISTANT}"
    assert engine.prompts[1] == engine.prompts[0] + ids_of(chat, SLIP + said)


@pytest.mark.parametrize(
    ("name", "texts", "expected", "stop"),
    [
        ("prompted", (SLIP, CHECKED_WRONG, SLIP, CHECKED_WRONG, RIGHT), [A, I, V, I, R, I, V, I, R], StopReason.ROUNDS),
        ("prompted", (SLIP, CHECKED_WRONG, RIGHT, CHECKED_RIGHT), [A, I, V, I, R, I, V], StopReason.VERIFIED),
        ("intrinsic", (SLIP, SLIP, RIGHT), [A, I, R, I, R], StopReason.ANSWERED),
    ],
)
def test_two_rounds_where_one_is_the_default(chat, name, texts, expected, stop):
    trajectory, _ = play(chat, name, *texts, config=load_config(None, ["protocol.max_rounds=2"]))
    assert kinds(trajectory) == expected and trajectory.stop_reason is stop


def run(chat: Chat, engine: ScriptedEngine, limits: Limits, judges=None, protocol: str = "intrinsic") -> Trajectory:
    trajectory = Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)))
    built = build_protocol(protocol, load_config(None, []), chat)
    run_trajectories(engine, built, chat, [trajectory], temperature=1.0, limits=limits, timeout_s=10, judges=judges)
    return trajectory


def test_the_token_budget_of_a_trajectory_counts_all_its_turns(chat):
    attempt = len(ids_of(chat, SLIP)) + 1
    engine = ScriptedEngine(chat, [SLIP, "The solution…"])
    trajectory = run(chat, engine, Limits(512, max_tokens=attempt + 2))
    assert engine.limits == [attempt + 2, 2]  # of 64 for an attempt
    assert trajectory.stop_reason is StopReason.TOKENS
    stopped = run(chat, ScriptedEngine(chat, [SLIP]), Limits(512, max_tokens=attempt))
    assert stopped.stop_reason is StopReason.TOKENS and kinds(stopped) == [A, I]
    cut = run(chat, ScriptedEngine(chat, ["The solution…"]), Limits(512, max_tokens=2), protocol="long_chain")
    assert cut.stop_reason is StopReason.TOKENS


def test_a_trajectory_whose_time_is_up_keeps_the_turns_that_were_complete(chat):
    class Slow(ScriptedEngine):
        def step(self):
            if self.texts:
                return super().step()
            time.sleep(0.01)
            return []

        def abort(self, request_ids):
            assert request_ids == ["t#2"]

    trajectory = run(chat, Slow(chat, [SLIP]), Limits(512, max_seconds=0.3))
    assert trajectory.stop_reason is StopReason.TIME and kinds(trajectory) == [A, I]


def test_a_judge_that_does_not_answer_is_a_stop_reason_of_its_own(chat):
    limits = Limits(512, judge_timeout_s=0.1)
    trajectory = run(chat, ScriptedEngine(chat, [SLIP]), limits, {"gold": lambda trajectory: Future()}, "gold")
    assert trajectory.stop_reason is StopReason.UNJUDGED and kinds(trajectory) == [A]


def test_a_judge_without_a_verdict_is_the_same(chat):
    undecided = {"judge": in_threads(lambda trajectory: None, 1)}
    trajectory = run(chat, ScriptedEngine(chat, [SLIP]), Limits(512), undecided, "judged")
    assert trajectory.stop_reason is StopReason.UNJUDGED and kinds(trajectory) == [A]


def test_a_judge_that_raises_and_a_judge_that_is_missing_are_errors(chat):
    broken = {"gold": in_threads(lambda trajectory: 1 / 0, 1)}
    with pytest.raises(ZeroDivisionError):
        run(chat, ScriptedEngine(chat, [SLIP]), Limits(512), broken, "gold")
    with pytest.raises(RuntimeError, match="asks the judge 'judge', and there is none"):
        run(chat, ScriptedEngine(chat, [SLIP]), Limits(512), {}, "judged")


@pytest.mark.parametrize(
    ("outcome", "stop"),
    [
        (Outcome.CORRECT, StopReason.ACCEPTED),
        (Outcome.TIMEOUT, StopReason.UNJUDGED),
        *((outcome, StopReason.ROUNDS) for outcome in (Outcome.INCORRECT, Outcome.NO_ANSWER, Outcome.UNPARSABLE)),
    ],
)
def test_the_gold_judge_says_nothing_of_an_answer_that_the_grader_did_not_get_done_with(chat, outcome, stop):
    class Call:
        def future(self) -> Future:
            found: Future = Future()
            found.set_result({"id": outcome})
            return found

    actor = SimpleNamespace(grade=SimpleNamespace(remote=lambda requests: Call()))
    texts = (SLIP, RIGHT) if stop is StopReason.ROUNDS else (SLIP,)
    trajectory, _ = play(chat, "gold", *texts, judges={"gold": gold_judge([actor], False)})
    assert trajectory.stop_reason is stop


@pytest.fixture
def endpoint(request) -> Iterator[tuple[str, list[dict]]]:
    """An address at which a model answers in turn with these words, or hangs up, and the messages it was sent.

    With a parameter, the status and the body with which it always answers.
    """
    words, asked = iter(["85 no. [VERIFY] wrong", "[VERIFY] correct.", "Who knows?", None]), []

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body: dict | str, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.reply({"data": [{"id": "other"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if hasattr(request, "param"):
                self.reply(*reversed(request.param))
            elif word := next(words):
                self.reply({"choices": [{"message": {"content": word}}]})

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_a_second_model_judges_behind_its_endpoint(chat, endpoint):
    url, asked = endpoint
    config = load_config(None, ["protocol.judge=served", f"protocol.judge_url={url}", "protocol.max_rounds=2"])
    judges = make_judges(config, ())
    trajectory, _ = play(chat, "judged", SLIP, RIGHT, config=config, judges=judges)
    assert kinds(trajectory) == [A, I, R] and trajectory.stop_reason is StopReason.ACCEPTED
    for _ in range(2):
        undecided, _ = play(chat, "judged", SLIP, config=config, judges=judges)
        assert undecided.stop_reason is StopReason.UNJUDGED
    first = {"model": "other", "temperature": 0, "max_tokens": 160}
    first["messages"] = [
        {"role": "user", "content": question(CHAIN)},
        {"role": "assistant", "content": SLIP},
        {"role": "user", "content": "Check the solution."},
    ]
    assert asked[0] == first and [request["messages"][1]["content"] for request in asked] == [SLIP, RIGHT, SLIP, SLIP]


@pytest.mark.parametrize(
    "endpoint",
    [
        (429, "slow down"), (500, ""), (503, "{}"), (200, "<html>"), (200, "[]"), (200, '{"choices": []}'),
        (200, '{"choices": [{"message": {"content": null}}]}'),
    ],
    indirect=True,
)  # fmt: skip
def test_an_endpoint_that_answers_anything_but_a_completion_gives_no_verdict(chat, endpoint):
    config = load_config(None, ["protocol.judge=served", f"protocol.judge_url={endpoint[0]}"])
    undecided, _ = play(chat, "judged", SLIP, config=config, judges=make_judges(config, ()))
    assert undecided.stop_reason is StopReason.UNJUDGED and len(endpoint[1]) == 1


def test_a_judge_that_is_not_named_or_not_there_is_refused_before_anything_is_sampled():
    check_judge("gold", load_config(None, []))
    with pytest.raises(ConfigError, match="protocol judged_chain asks the judge that protocol.judge names, and it names none"):
        check_judge("judged_chain", load_config(None, []))
    with pytest.raises(ConfigError, match="protocol.judge=nobody: there is none of that name; there are served, or"):
        check_judge("judged", load_config(None, ["protocol.judge=nobody"]))
    for url in ("http://127.0.0.1:9/v1", ""):
        with pytest.raises(ConfigError, match=f"protocol.judge_url='{url}': no server with a model answers there"):
            make_judges(load_config(None, ["protocol.judge=served", f"protocol.judge_url={url}"]), ())


@pytest.mark.parametrize("body", [[], {}, {"data": []}, {"data": [None]}])
def test_an_address_where_something_else_answers_is_no_judge(monkeypatch: pytest.MonkeyPatch, body):
    reply = httpx.Response(200, json=body, request=httpx.Request("GET", "http://host/v1/models"))
    monkeypatch.setattr(httpx.Client, "get", lambda client, path: reply)
    with pytest.raises(ConfigError, match="protocol.judge_url='http://host/v1': no server with a model answers there"):
        make_judges(load_config(None, ["protocol.judge=served", "protocol.judge_url=http://host/v1"]), ())


def test_every_protocol_but_the_single_steps_can_be_trained_and_its_name_says_where_its_verdict_stands():
    assert TRAINABLE.keys() == PROTOCOLS.keys() - {"verdict", "revision"}
    forms = {name: ProtocolConfig(name=name).form for name in TRAINABLE}
    assert {name for name, form in forms.items() if form == "_chain"} == {name for name in TRAINABLE if "chain" in name}
    assert {name for name, form in forms.items() if form == "_two_turn"} == {name for name in TRAINABLE if "two_turn" in name}


def test_a_future_of_a_future_passes_results_and_errors_on():
    first: Future = Future()
    second = then(first, lambda value: value + 1)
    first.set_result(1)
    assert second.result(1) == 2
    failed: Future = Future()
    failed.set_exception(KeyError("x"))
    assert isinstance(then(failed, str).exception(1), KeyError)
