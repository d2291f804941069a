from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srl.observe.scalars import Scalars


def shown(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows: (step, value)."""
    events = EventAccumulator(str(folder / tag.partition("/")[0])).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def write(scalars: Scalars, phase: str, steps: range, value: float) -> None:
    for step in steps:
        scalars.add(phase, step, {"loss": value, "name": "text is no number"})


def test_steps_that_are_done_again_after_a_restart_or_in_the_same_process_are_shown_once(tmp_path):
    killed = Scalars(tmp_path)
    write(killed, "sft", range(6), 0.5)
    write(killed, "rl", range(4), 1.0)
    killed.close()
    again = Scalars(tmp_path)
    again.forget({"rl": 2, "alarm": 2})
    write(again, "rl", range(2, 5), 2.0)
    again.forget({"rl": 4})
    write(again, "rl", range(4, 6), 3.0)
    again.close()
    assert shown(tmp_path, "rl/loss") == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0), (5, 3.0)]
    assert shown(tmp_path, "sft/loss") == [(step, 0.5) for step in range(6)]
    assert not (tmp_path / "alarm").exists()
