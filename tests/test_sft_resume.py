"""Fine-tuning with a learner that is one number: killed at any moment it trains every batch once and keeps the same model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from srl.config import load_config
from srl.driver import stage1
from srl.learner.batch import Example
from srl.observe.records import append_line, read_lines

EXAMPLES = [Example(str(n), [n], [1.0]) for n in range(11)]
EPOCHS, BATCH = 3, 4


class Killed(BaseException):
    """The process is gone."""


class OneNumber:
    """Learners whose weights are the order in which examples came; a clock that may end the process at any call."""

    def __init__(self, moment: int | None):
        self.moment, self.count, self.value = moment, 0, 1.0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.moment:
            raise Killed

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


def play(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int | None = None) -> OneNumber:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "stage1").mkdir(exist_ok=True)
    (folder / "stage1" / "demonstrations.parquet").touch()
    learners = OneNumber(moment)
    monkeypatch.setattr(stage1, "LearnerGroup", lambda *_: learners)
    monkeypatch.setattr(stage1, "load_demonstrations", lambda file, split: EXAMPLES)

    def record(phase: str, step: int, **values) -> None:
        learners.tick()
        append_line(folder / "metrics.jsonl", {"phase": phase, "step": step, **values})

    run = SimpleNamespace(file=lambda name: folder / name, record=record)
    config = load_config(None, [f"sft.epochs={EPOCHS}", f"sft.batch={BATCH}", "sft.checkpoint_every=2"])
    session = SimpleNamespace(config=config, run=run, base="", rewards=list)
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
