"""Fine-tuning with a learner that is one number: killed at any moment it trains every batch once and keeps the same model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from srl.config import load_config
from srl.driver import stage1
from srl.learner.batch import Example
from srl.learner.group import LearnerLost
from srl.observe.records import read_lines
from srl.observe.run_directory import append_line
from srl.observe.scalars import Scalars

EXAMPLES = [Example(str(n), [n], [1.0]) for n in range(11)]
EPOCHS, BATCH = 3, 4


class Killed(BaseException):
    """The process is gone."""


class OneNumber:
    """Learners whose weights are the order in which examples came; a clock that may end the process, or the learners, at any
    call."""

    def __init__(self, moment: int | None, lost: range):
        self.moment, self.lost, self.count, self.value = moment, lost, 0, 1.0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.moment:
            raise Killed
        if self.count in self.lost:
            raise LearnerLost("a learner died during a test")

    def rebuild(self) -> None:
        self.value = 1.0

    def train(self, examples: list[Example], loss, learning_rate: float) -> dict[str, float]:
        self.tick()
        for example in examples:
            self.value = 0.9 * self.value + learning_rate * int(example.id)
        return {"loss": self.value}

    def evaluate(self, examples: list[Example], loss) -> float:
        self.tick()
        return abs(self.value - 0.01)

    def save(self, folder: Path) -> None:
        self.tick()
        folder.write_text(str(self.value))

    def save_state(self, folder: Path) -> None:
        self.tick()
        (folder / "value.json").write_text(json.dumps(self.value))
        self.tick()

    def load_state(self, folder: Path) -> None:
        self.value = json.loads((folder / "value.json").read_text())

    def close(self) -> None: ...


def play(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int | None = None, lost: range = range(0)) -> OneNumber:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "stage1").mkdir(exist_ok=True)
    (folder / "stage1" / "demonstrations.parquet").touch()
    learners = OneNumber(moment, lost)
    monkeypatch.setattr(stage1, "LearnerGroup", lambda *_: learners)
    monkeypatch.setattr(stage1, "load_demonstrations", lambda file, split: EXAMPLES)

    def record(phase: str, step: int, **values) -> None:
        learners.tick()
        append_line(folder / "metrics.jsonl", {"phase": phase, "step": step, **values})

    scalars = Scalars(folder / "tensorboard")
    run = SimpleNamespace(path=folder, file=lambda name: folder / name, record=record, scalars=scalars)
    config = load_config(None, [f"sft.epochs={EPOCHS}", f"sft.batch={BATCH}", "sft.checkpoint_every=2"])
    session = SimpleNamespace(config=config, run=run, base="", rewards=list, room=lambda: None, leave_room=lambda: None)
    stage1.fine_tune(session, lambda text: None)
    return learners


def test_fine_tuning_killed_at_any_moment_ends_where_one_left_alone_does(tmp_path_factory, monkeypatch):
    alone = tmp_path_factory.mktemp("alone")
    expected = play(alone, monkeypatch)
    assert expected.count > 30
    for moment in range(1, expected.count + 1):
        folder = tmp_path_factory.mktemp("killed")
        with pytest.raises(Killed):
            play(folder, monkeypatch, moment)
        assert play(folder, monkeypatch).value == expected.value, f"killed at moment {moment}"
        assert read_lines(folder / "metrics.jsonl") == read_lines(alone / "metrics.jsonl")
        assert (folder / "checkpoints" / "ift").read_text() == (alone / "checkpoints" / "ift").read_text()


def test_lost_learners_begin_again_from_the_last_checkpoint_and_end_where_others_do(tmp_path_factory, monkeypatch):
    alone = tmp_path_factory.mktemp("alone")
    expected = play(alone, monkeypatch)
    for moment in range(1, expected.count + 1, 3):
        folder = tmp_path_factory.mktemp("lost")
        assert play(folder, monkeypatch, lost=range(moment, moment + 1)).value == expected.value, f"lost at moment {moment}"
        assert read_lines(folder / "metrics.jsonl") == read_lines(alone / "metrics.jsonl")


def test_learners_that_keep_dying_end_fine_tuning_with_the_settings_name(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="learner.retries=2: a learner died during a test"):
        play(tmp_path, monkeypatch, lost=range(5, 1000))
