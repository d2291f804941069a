from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from srl.config import load_config
from srl.driver.resume import forget_after
from srl.observe.records import forget, read_lines
from srl.observe.run_directory import RunDirectory, append_line


def test_steps_that_will_be_done_again_are_forgotten_and_the_rest_stays(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for phase, step in [("sft", 5), ("rl", 0), ("rl-validation", 1), ("rl", 1), ("rl", 2), ("phase", 0)]:
        append_line(file, {"phase": phase, "step": step})
    kept = forget(file, {"rl": 1, "rl-validation": 2})
    left = [(record["phase"], record["step"]) for record in read_lines(file)]
    assert left == [("sft", 5), ("rl", 0), ("rl-validation", 1), ("phase", 0)] and len(kept) == 4


EARLIER = [(0, "evaluate-base"), (7, "evaluate-ift")]


def test_alarms_go_with_the_phase_in_which_they_were_raised(tmp_path):
    run = RunDirectory(load_config(None, [f"run.directory={tmp_path}"]))
    for step, during in [*EARLIER, (0, "rl"), (1, "rl"), (2, "rl")]:
        run.record("alarm", step, name="no_answer", meaning="", during=during)
    for step, left in [(1, [*EARLIER, (0, "rl")]), (-1, EARLIER)]:
        forget_after(run, step)
        assert [(line["step"], line["during"]) for line in read_lines(run.file("metrics.jsonl"))] == left
    run.close()


def test_a_line_cut_off_by_a_kill_is_no_record(tmp_path):
    file = tmp_path / "ledger.jsonl"
    append_line(file, {"phase": "rl", "step": 0})
    with file.open("a") as lines:
        lines.write('{"phase": "rl", "st')
    assert read_lines(file) == [{"phase": "rl", "step": 0}]
    assert forget(tmp_path / "none.jsonl", {"rl": 0}) == []


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=4), st.integers(0, 50))
def test_a_record_after_a_line_that_was_cut_off_takes_its_place(records: list[dict], lost: int):
    with TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        records = [record | {"phase": "rl", "step": 0} for record in records]
        for record in records:
            append_line(file, record)
        whole = file.read_bytes() if records else b""
        file.write_bytes(whole[: max(0, len(whole) - lost)])
        left = read_lines(file)
        after = {"phase": "rl", "step": 1}  # the disk was full
        append_line(file, after)
        assert left == records[: len(left)] and read_lines(file) == [*left, after]
