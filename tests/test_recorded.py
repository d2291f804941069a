"""Trajectories written, read and replayed without an engine."""

import dataclasses

import pytest
from test_feedback import GOLD
from test_protocol import CHECKED_RIGHT, CHECKED_WRONG, RIGHT, SLIP, play

from srl.config import ConfigError, load_config
from srl.protocols.protocol import build_protocol
from srl.rollout.loop import Limits, run_trajectories
from srl.rollout.recorded import RecordedEngine, append_trajectories, read_trajectories
from srl.trajectory import Trajectory, TurnKind

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


def replayed(chat, recorded: list[Trajectory], protocol: str, **changes) -> Trajectory:
    fresh = dataclasses.replace(recorded[0], turns=[], stop_reason=None, **changes)
    built = build_protocol(protocol, load_config(None, []), chat)
    settings = {"temperature": 1.0, "limits": Limits(512), "timeout_s": 5, "judges": GOLD}
    run_trajectories(RecordedEngine(recorded), built, chat, [fresh], **settings)
    return fresh


@pytest.mark.parametrize("protocol", list(PLAYED))
def test_a_replayed_trajectory_is_the_recorded_one(chat, tmp_path, protocol):
    played, _ = play(chat, protocol, *PLAYED[protocol], judges=GOLD)
    append_trajectories(tmp_path / "deep" / "file.jsonl", [played])
    recorded = read_trajectories(tmp_path / "deep" / "file.jsonl")
    assert recorded == [played]
    assert replayed(chat, recorded, protocol) == played


def test_a_trajectory_that_was_not_recorded_or_not_after_these_tokens_is_refused(chat):
    played, _ = play(chat, "intrinsic", SLIP, RIGHT)
    with pytest.raises(ValueError, match="no recorded trajectory has the request other#0"):
        replayed(chat, [played], "intrinsic", id="other")
    with pytest.raises(ValueError, match="t#0 was recorded after other tokens"):
        replayed(chat, [played], "intrinsic", prompt_token_ids=chat.opening("85"))
    with pytest.raises(ValueError, match="t#2 was recorded after other tokens"):
        replayed(chat, [played], "prompted")
    assert [turn.kind for turn in played.turns] == [TurnKind.ATTEMPT, TurnKind.INSTRUCTION, TurnKind.REVISION]


def test_a_file_that_is_missing_or_broken_is_named_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match="none.jsonl: no such file"):
        read_trajectories(tmp_path / "none.jsonl")
    (tmp_path / "broken.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"broken.jsonl, line 1: not a trajectory"):
        read_trajectories(tmp_path / "broken.jsonl")
