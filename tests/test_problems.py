import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from srl.config import ConfigError, load_config
from srl.driver.problems import load_task
from srl.tasks.chains import split_of
from srl.tasks.problems import Problem, chain_problems, load_problems

ROWS = [{"problem": "What is 1 + 1?", "answer": "2"}, {"problem": "What is 1/2?", "answer": r"\frac{1}{2}"}]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return str(path)


def refused(source: str, **keys: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_problems(source, keys.get("question_key", "problem"), keys.get("answer_key", "answer"))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(source)
    return message


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_file_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    problems = load_problems(write(tmp_path / f"p.{suffix}", ROWS), "problem", "answer")
    # printf 'What is 1 + 1?' | b2sum -l 64
    assert problems[0] == Problem("e265702b26f3ffa7", "What is 1 + 1?", "2")
    assert [problem.gold for problem in problems] == ["2", r"\frac{1}{2}"]


def test_golds_are_found_where_the_datasets_keep_them(tmp_path: Path) -> None:
    rows = [
        {"q": "MATH", "solution": r"so $x = \boxed{\frac{1}{2}}$."},
        {"q": "GSM8K", "answer": "She makes 9 * 2 = <<9*2=18>>18.\n#### 18"},
        {"q": "AMC", "answer": 27.0},
        {"q": "OlympiadBench", "answer": ["$2$", "$3$"]},
    ]
    problems = load_problems(write(tmp_path / "p.jsonl", rows), "q", "answer")
    assert [problem.gold for problem in problems] == [r"\frac{1}{2}", "18", "27.0", "$2$, $3$"]


def test_a_question_that_occurs_again_is_dropped_and_limit_counts_the_rest(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [ROWS[0], ROWS[0], ROWS[1]])
    assert len(load_problems(source, "problem", "answer")) == len(load_problems(source, "problem", "answer", 2)) == 2


def test_rows_left_out_for_their_question_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, ROWS[0], ROWS[1], ROWS[0] | {"answer": "3"}]
    source = write(tmp_path / "p.jsonl", rows)
    assert [problem.gold for problem in load_problems(source, "problem", "answer")] == ["2", r"\frac{1}{2}"]
    assert capsys.readouterr().out == (
        f"{source}: left out 2 rows with a question that occurred before: 3, 4\n"
        f"{source}: left out 1 rows with a question that occurred before with another answer: 5\n"
    )


def test_some_problems_of_a_sorted_data_set_are_from_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is sorted by subject, as MATH is, whose first thousand problems are algebra."""
    source = write(tmp_path / "p.jsonl", [{"problem": f"{'abcd'[i // 100]}{i}?", "answer": f"{i}"} for i in range(400)])
    some = load_problems(source, "problem", "answer", 100)
    subjects = [problem.question[0] for problem in some]
    assert len(some) == 100 and all(15 <= subjects.count(name) <= 35 for name in "abcd")  # sd of each count: 3.8
    assert capsys.readouterr().out == f"{source}: 100 of its 400 problems, by chance\n"
    assert some[:20] == load_problems(source, "problem", "answer", 20)
    every = load_problems(source, "problem", "answer", 400)
    assert set(every) == set(load_problems(source, "problem", "answer")) and every[:100] == some


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_of_a_large_file_only_the_questions_that_are_taken_are_held(tmp_path: Path, suffix: str) -> None:
    rows = [{"problem": f"{number}" + "?" * 2000, "answer": f"{number}"} for number in range(10_000)]  # 20 MB
    source = write(tmp_path / f"p.{suffix}", [*rows, rows[0], rows[1] | {"answer": "no"}])
    del rows
    tracemalloc.start()
    try:
        some = load_problems(source, "problem", "answer", 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    every = load_problems(source, "problem", "answer")
    assert some == sorted(every, key=lambda problem: problem.prompt_id)[:50] and len(every) == 10_000
    assert peak < 10e6


def test_training_and_validation_problems_are_from_all_of_a_sorted_file_and_no_problem_is_both(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [{"problem": f"{'abcd'[i // 100]}{i}?", "answer": f"{i}"} for i in range(400)])
    settings = [
        "stage1.prompts=100", "rl.prompts=8", "rl.steps=2", "evaluate.validation_problems=100", "task.name=file",
        f"task.train={source}", f"task.test.own={source}",
    ]  # fmt: skip
    uses = load_task(load_config(None, settings))
    train, validation = uses["train"]["train"], uses["validation"]["validation"]
    assert len(train) == len(validation) == 100 and not set(train) & set(validation)
    for some in (train, validation):
        subjects = [problem.question[0] for problem in some]
        assert all(13 <= subjects.count(name) <= 37 for name in "abcd")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "none.jsonl")).endswith("none.jsonl: no such file")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_an_empty_file_is_named(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"p.{suffix}"
    source.write_text("")
    refused(str(source))
    if suffix != "parquet":
        assert refused(str(source)).endswith("no problems in it")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("problem,answer")
    assert ".jsonl, .json, .parquet" in refused(str(tmp_path / "p.csv"))


def test_text_that_is_not_json_is_placed_by_row(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(ROWS[0]) + "\nnot json\n")
    assert "row 2: not JSON" in refused(str(tmp_path / "p.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1, 2]")
    assert "row 1: expected an object with columns, found list" in refused(str(tmp_path / "list.jsonl"))
    (tmp_path / "object.json").write_text("{}")
    assert "expected a list of problems, found dict" in refused(str(tmp_path / "object.json"))


def test_a_missing_column_lists_the_ones_that_are_there(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", ROWS)
    no_question, no_gold = refused(source, question_key="question"), refused(source, answer_key="gold")
    assert "row 1: no column 'question' (task.question_key); it has problem, answer" in no_question
    assert "row 1: no column 'gold' (task.answer_key) and no solution; it has problem, answer" in no_gold


@pytest.mark.parametrize("value", ["", "  ", None, 7])
def test_an_empty_question_is_placed_by_row(tmp_path: Path, value: object) -> None:
    source = write(tmp_path / "p.jsonl", [ROWS[0], {"problem": value, "answer": "2"}])
    assert "row 2: empty question, column 'problem'" in refused(source)


@pytest.mark.parametrize(
    "row",
    [{"answer": ""}, {"answer": None}, {"answer": []}, {"answer": "so #### "}, {"answer": r"\boxed{}"}, {"solution": "no box"}],
)
def test_a_missing_gold_is_placed_by_row(tmp_path: Path, row: dict[str, object]) -> None:
    source = write(tmp_path / "p.jsonl", [ROWS[0], {"problem": "What?", **row}])
    assert f"row 2: no gold answer in column {next(iter(row))!r}" in refused(source)


def test_a_name_that_is_no_file_goes_to_the_hub_with_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        if name == "nobody/nothing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist\non the Hub")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_problems("org/math:test", "problem", "answer")) == 2
    assert len(load_problems("org/math", "problem", "answer")) == 2
    assert asked == [("org/math", "test"), ("org/math", "train")]
    assert len(load_problems("math500", "", "")) == 2
    assert asked[2:] == [("HuggingFaceH4/MATH-500", "test")]
    assert "neither a file nor a hub dataset" in refused("nobody/nothing")


def test_the_first_gold_that_cannot_be_read_is_named_with_its_row(tmp_path: Path) -> None:
    bad = {"problem": "What is the answer?", "answer": "???"}
    said = refused(write(tmp_path / "p.jsonl", [ROWS[0], ROWS[0], bad, bad | {"answer": "!!!"}]))
    assert said.endswith("row 3 ('What is the answer?'): gold '???' does not parse")


def test_chain_problems_are_those_of_their_split_and_seed() -> None:
    problems = chain_problems("test", 20, seed=3, min_operations=2, max_operations=4)
    assert problems == chain_problems("test", 20, seed=3, min_operations=2, max_operations=4)
    assert len({problem.prompt_id for problem in problems}) == 20
    assert all(split_of(problem.question) == "test" for problem in problems)
    assert all(10 <= int(problem.gold) <= 99 for problem in problems)


def test_more_chains_than_there_are_is_an_error_and_not_an_endless_search() -> None:
    with pytest.raises(ConfigError, match="task.max_operations=1 has [0-9]+ validation problems, 5000 were asked for"):
        chain_problems("validation", 5000, seed=0, min_operations=1, max_operations=1)
    with pytest.raises(ConfigError, match="split 'dev'"):
        chain_problems("dev", 1, seed=0, min_operations=1, max_operations=1)
