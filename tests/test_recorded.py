"""Trajectories written, read and replayed without an engine."""

import dataclasses

import pytest
from test_feedback import GOLD
from test_protocol import CHAIN, CHECKED_RIGHT, CHECKED_WRONG, RIGHT, SLIP, ScriptedEngine, play

from srl.config import ConfigError, load_config
from srl.protocols.protocol import build_protocol
from srl.rollout.judges import in_threads
from srl.rollout.loop import Limits, run_trajectories
from srl.rollout.recorded import RecordedEngine, append_trajectories, read_trajectories
from srl.tasks.chains import question
from srl.trajectory import StopReason, Trajectory, TurnKind

PLAYED = {
    "long_chain": (f"{SLIP}\n{CHECKED_WRONG}\n{RIGHT}\n{CHECKED_RIGHT}",),
    "two_turn": (f"{SLIP}\n{CHECKED_WRONG}", "The solution…"),
    "prompted": (SLIP, CHECKED_WRONG, RIGHT),
    "intrinsic": ("", RIGHT),
    "attempt": ("The solution…",),
    "gold": (f"{SLIP}\n{CHECKED_RIGHT}", RIGHT),
    "gold_chain": (f"{SLIP}\n{CHECKED_RIGHT}", f"\n{RIGHT}\n{CHECKED_RIGHT}"),
    "gold_two_turn": (f"{SLIP}\n{CHECKED_RIGHT}", "The solution…"),
    "judged_chain": (SLIP, RIGHT),  # without a check
}
OTHERS = [
    ("gold_chain", (f"{RIGHT}\n{CHECKED_RIGHT}",)),  # a check that no verdict follows
    ("gold_two_turn", (f"{RIGHT}\n{CHECKED_RIGHT}. [VERIFY] wrong",)),
    ("gold_chain", (f"{SLIP} so **[VERIFY] correct**", RIGHT)),  # the verdict's words are not the judge's
    ("gold", ("The solution…", f"{RIGHT}\n{CHECKED_RIGHT}")),  # cut, and then one whose end was dropped
]


class StoppingEngine(ScriptedEngine):
    """Does not end the request after the last text."""

    def step(self):
        return super().step() if self.texts else []

    def abort(self, request_ids):
        self.running.clear()


def again(engine: RecordedEngine, chat, recorded: Trajectory, protocol: str, **changes) -> Trajectory:
    fresh = dataclasses.replace(recorded, turns=[], stop_reason=None, **changes)
    built = build_protocol(protocol, load_config(None, []), chat)
    settings = {"temperature": 1.0, "limits": Limits(512), "timeout_s": 5, "judges": GOLD}
    run_trajectories(engine, built, chat, [fresh], **settings)
    return fresh


def replayed(chat, recorded: list[Trajectory], protocol: str, **changes) -> Trajectory:
    return again(RecordedEngine(recorded), chat, recorded[0], protocol, **changes)


@pytest.mark.parametrize(("protocol", "texts"), [*PLAYED.items(), *OTHERS])
def test_a_replayed_trajectory_is_the_recorded_one(chat, tmp_path, protocol, texts):
    played, _ = play(chat, protocol, *texts, judges=GOLD)
    append_trajectories(tmp_path / "deep" / "file.jsonl", [played])
    recorded = read_trajectories(tmp_path / "deep" / "file.jsonl")
    assert recorded == [played]
    assert replayed(chat, recorded, protocol) == played


@pytest.mark.parametrize("texts", [(), (SLIP,), (SLIP, CHECKED_WRONG)])
def test_a_trajectory_whose_time_was_up_ends_at_the_same_place_without_the_wait(chat, texts):
    played = Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)))
    protocol, limits = build_protocol("prompted", load_config(None, []), chat), Limits(512, max_seconds=0.05)
    engine = StoppingEngine(chat, list(texts))
    run_trajectories(engine, protocol, chat, [played], temperature=1.0, limits=limits, timeout_s=5)
    assert played.stop_reason is StopReason.TIME
    assert replayed(chat, [played], "prompted") == played


def test_what_workers_or_a_judge_failed_on_ends_so_again(chat):
    opening = chat.opening(question(CHAIN))
    failed = Trajectory("t", "p", question(CHAIN), "66", opening, stop_reason=StopReason.FAILED)
    assert replayed(chat, [failed], "gold") == failed
    silent = {"gold": in_threads(lambda trajectory: None, 1)}
    unjudged, _ = play(chat, "gold_chain", SLIP, judges=silent)
    assert unjudged.stop_reason is StopReason.UNJUDGED
    heard = replayed(chat, [unjudged], "gold_chain")  # the judge answers this time: its verdict is said, and there it ends
    assert heard.stop_reason is StopReason.UNJUDGED and heard.turns[:-1] == unjudged.turns
    with pytest.raises(ValueError, match="no recorded trajectory has the request t#0"):
        replayed(chat, [failed], "gold", prompt_token_ids=opening[:-1])


def test_what_was_recorded_under_one_id_is_given_in_that_order_and_by_weights(chat):
    """The methods of an evaluation ask the same problems under the same ids."""
    prompted, _ = play(chat, "prompted", SLIP, CHECKED_WRONG, RIGHT)
    intrinsic, _ = play(chat, "intrinsic", RIGHT, SLIP)
    other, _ = play(chat, "attempt", SLIP)
    other.turns[0].weight_version = 4
    engine = RecordedEngine([prompted, other, intrinsic])
    engine.version = 3
    assert again(engine, chat, prompted, "prompted") == prompted
    assert again(engine, chat, intrinsic, "intrinsic") == intrinsic
    engine.version = 4
    assert again(engine, chat, other, "attempt") == other
    assert again(engine, chat, other, "attempt") == other  # once more: the last one again


def test_a_trajectory_that_was_not_recorded_or_not_after_these_tokens_is_refused(chat):
    played, _ = play(chat, "intrinsic", SLIP, RIGHT)
    with pytest.raises(ValueError, match="no recorded trajectory has the request other#0"):
        replayed(chat, [played], "intrinsic", id="other")
    with pytest.raises(ValueError, match="t#0 was recorded after other tokens"):
        replayed(chat, [played], "intrinsic", prompt_token_ids=chat.opening("85"))
    with pytest.raises(ValueError, match="t#2 was recorded after other tokens"):
        replayed(chat, [played], "prompted")
    assert [turn.kind for turn in played.turns] == [TurnKind.ATTEMPT, TurnKind.INSTRUCTION, TurnKind.REVISION]


def test_a_line_that_a_kill_cut_off_is_no_trajectory_and_the_next_one_takes_its_place(chat, tmp_path):
    played, _ = play(chat, "attempt", SLIP)
    file = tmp_path / "file.jsonl"
    append_trajectories(file, [played, played])
    file.write_bytes(file.read_bytes()[:-9])
    assert read_trajectories(file) == [played]
    append_trajectories(file, [played])
    assert read_trajectories(file) == [played, played]


def test_a_file_that_is_missing_or_broken_is_named_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match="none.jsonl: no such file"):
        read_trajectories(tmp_path / "none.jsonl")
    (tmp_path / "broken.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"broken.jsonl, line 1: not a trajectory"):
        read_trajectories(tmp_path / "broken.jsonl")
