"""The loop between protocol and engine, with an engine that finishes requests in an order of the test's choice."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from srl.config import Config
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import Limits, run_trajectories, turn_seed
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind

SETTINGS = {"temperature": 0.7, "limits": Limits(512), "timeout_s": 60}


@dataclass
class FakeEngine:
    """Each step finishes the one running request that `pick` chooses, or none; its text is the number 10."""

    pick: Callable[[list[str]], str | None]
    tokens: list[int]
    running: dict[str, Sampling] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    samplings: dict[str, Sampling] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    version: int = 5

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        self.events.append(f"submit {request_id}")
        self.running[request_id] = self.samplings[request_id] = sampling

    def step(self) -> list[Completion]:
        request_id = self.pick(list(self.running))
        if request_id is None:
            return []
        del self.running[request_id]
        self.events.append(f"finish {request_id}")
        return [Completion(request_id, self.tokens, [-1.0] * len(self.tokens), False, self.version)]

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


def oldest(running: list[str]) -> str:
    return running[0]


def newest(running: list[str]) -> str:
    return running[-1]


def trajectories(chat: Chat, *names: str, seed: int = 0) -> list[Trajectory]:
    return [Trajectory(name, name, "Check", "10", chat.opening("Check"), seed=seed) for name in names]


def run(chat: Chat, started: list[Trajectory], pick: Callable[[list[str]], str | None], protocol: str = "intrinsic", **changes):
    """Intrinsic self-correction: attempt, instruction, revision, so the second request of a trajectory is its turn 2."""
    engine = FakeEngine(pick, [chat.tokenizer.get_vocab()["10"], chat.end_id])
    done = run_trajectories(engine, build_protocol(protocol, Config(), chat), chat, started, **SETTINGS | changes)
    return done, engine


def test_the_next_turn_is_submitted_while_other_first_turns_still_run(chat):
    _, engine = run(chat, trajectories(chat, "a", "b"), newest)
    assert engine.events == [
        "submit a#0", "submit b#0", "finish b#0", "submit b#2", "finish b#2", "finish a#0", "submit a#2", "finish a#2",
    ]  # fmt: skip


@pytest.mark.parametrize("pick", [oldest, newest, random.Random(0).choice])
def test_results_come_in_the_given_order_whatever_finishes_first(chat, pick):
    done, _ = run(chat, trajectories(chat, "c", "a", "b"), pick)
    assert [trajectory.id for trajectory in done] == ["c", "a", "b"]
    assert all(trajectory.stop_reason is StopReason.ANSWERED and len(trajectory.turns) == 3 for trajectory in done)


def test_seeds_depend_on_trajectory_and_turn_and_not_on_company_or_order(chat):
    _, alone = run(chat, trajectories(chat, "a"), oldest)
    _, together = run(chat, trajectories(chat, "c", "b", "a"), newest)
    seeds = {name: sampling.seed for name, sampling in together.samplings.items()}
    assert {name: seeds[name] for name in ("a#0", "a#2")} == {name: s.seed for name, s in alone.samplings.items()}
    assert len(set(seeds.values())) == 6
    assert turn_seed(trajectories(chat, "a", seed=0)[0]) != turn_seed(trajectories(chat, "a", seed=1)[0])
    assert all(0 <= seed < 2**63 for seed in seeds.values())


def test_sampling_settings_and_weight_version_arrive(chat):
    (done,), engine = run(chat, trajectories(chat, "a"), oldest)
    assert {(s.max_tokens, s.temperature) for s in engine.samplings.values()} == {(64, 0.7)}
    assert [turn.weight_version for turn in done.turns if turn.sampled] == [5, 5]


def test_a_timeout_names_the_setting_and_the_count_and_aborts_what_runs(chat):
    with pytest.raises(TimeoutError, match=r"waited 0\.01 s: 2 of 3 trajectories unfinished"):
        engine = FakeEngine(lambda running: next((r for r in running if r.startswith("b")), None), [10])
        protocol = build_protocol("intrinsic", Config(), chat)
        run_trajectories(engine, protocol, chat, trajectories(chat, "a", "b", "c"), **SETTINGS | {"timeout_s": 0.01})
    assert sorted(engine.aborted) == ["a#0", "c#0"]


def test_an_error_in_the_engine_leaves_no_request_behind(chat):
    def fail(running: list[str]) -> str:
        raise RuntimeError("engine died")

    engine = FakeEngine(fail, [10])
    with pytest.raises(RuntimeError, match="engine died"):
        run_trajectories(engine, build_protocol("attempt", Config(), chat), chat, trajectories(chat, "a", "b"), **SETTINGS)
    assert engine.aborted == ["a#0", "b#0"]


def test_an_id_that_occurs_twice_is_refused_before_anything_is_submitted(chat):
    engine = FakeEngine(oldest, [10])
    with pytest.raises(ValueError, match="two trajectories have the id a"):
        run_trajectories(engine, build_protocol("attempt", Config(), chat), chat, trajectories(chat, "a", "b", "a"), **SETTINGS)
    assert not engine.events


def test_a_turn_that_does_not_fit_gets_what_is_left(chat):
    # Prompt "<|user|>Check<|end|><|assistant|>" 4 tokens, answer "10<|end|>" 2, and what is said after it,
    # <|user|> There| may| be| an| error|.| |Correct| it|. <|end|> <|assistant|>, 13.
    _, engine = run(chat, trajectories(chat, "a"), oldest, limits=Limits(30))
    assert [sampling.max_tokens for sampling in engine.samplings.values()] == [26, 11]  # 30 - 4, 30 - 4 - 2 - 13; of 64


def test_a_conversation_without_room_for_its_next_turn_stops_with_length(chat):
    (done, other), engine = run(chat, trajectories(chat, "a", "b"), oldest, limits=Limits(19))  # 19 - 4 - 2 - 13 = 0
    assert done.stop_reason is other.stop_reason is StopReason.LENGTH
    assert [turn.kind for turn in done.turns] == [TurnKind.ATTEMPT, TurnKind.INSTRUCTION]
    assert not engine.aborted


def test_a_prompt_without_room_for_an_answer_stops_under_a_name_of_its_own(chat):
    (done,), engine = run(chat, trajectories(chat, "a"), oldest, limits=Limits(4))
    assert done.stop_reason is StopReason.NO_ROOM and not engine.events


def test_a_trajectory_that_holds_turns_goes_on_from_them(chat):
    (started,) = trajectories(chat, "a")
    started.turns.append(Turn(TurnKind.ATTEMPT, [7, chat.end_id], logprobs=[-1.0, -1.0]))
    (done,), engine = run(chat, [started], oldest, "verdict")
    assert engine.events == ["submit a#2", "finish a#2"]
    assert done is started and [turn.kind for turn in done.turns] == ["attempt", "instruction", "verdict"]


def test_nothing_to_run_is_no_error(chat):
    assert run(chat, [], oldest)[0] == []
