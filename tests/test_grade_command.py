import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from srl.main import main

ROWS = [
    {"id": 7, "prediction": r"so \boxed{42}", "gold": "42"},
    {"prediction": r"\boxed{41} [VERIFY] wrong", "gold": "42"},
    {"prediction": "I do not know any of it.", "gold": "42"},
    {"prediction": "The answer is 42.", "gold": 42.0},
    {"prediction": None, "gold": "42"},
    {"prediction": r"\boxed{9^{9^{9^{9}}}}", "gold": "42"},
    {"prediction": r"\boxed{1}", "gold": "???"},
    {"prediction": r"\boxed{4.1\%}", "gold": "4.2", "unit": "%", "error": "1e-1"},
    {"prediction": r"\boxed{3, 2}", "gold": [2, 3]},
    {"prediction": "\ud800 \u2028 42", "gold": "42"},
]
STATUS = ["correct", "incorrect", "no_answer", "correct", "no_answer", "unparsable", "invalid_gold", "correct", "correct"]


def write(folder: Path, rows: list) -> str:
    path = folder / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return str(path)


def test_every_row_comes_back_graded_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "graded.jsonl"
    assert main(["grade", "--input", write(tmp_path, ROWS), "--output", str(output)]) == 0
    graded = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{key: row[key] for key in original} for row, original in zip(graded, ROWS, strict=True)] == ROWS
    assert [row["status"] for row in graded][:9] == STATUS
    assert [row["correct"] for row in graded][:9] == [status == "correct" for status in STATUS]
    assert graded[0]["answer"] == "42" and graded[2]["answer"] is None and graded[0]["ms"] >= 0
    said = capsys.readouterr()
    assert said.out == "" and "WARNING: 1 golds cannot be read; the first, row 7: gold '???' does not parse" in said.err
    assert "10 graded: " in said.err and "ALARM" in said.err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gold": ""}, "gold '' is empty"),
        ({"gold": None}, "gold '' is empty"),
        ({"gold": []}, "gold '' is empty"),
        ({"gold": "1", "error": "some"}, "its error 'some' is no number"),
        ({"gold": "1", "error": "inf"}, "its error 'inf' is no number"),
    ],
)
def test_a_gold_that_cannot_be_read_is_marked_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict, said: str
) -> None:
    rows = [ROWS[0], {"prediction": r"\boxed{1}"} | fields]
    assert main(["grade", "--input", write(tmp_path, rows)]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["status"] for line in captured.out.splitlines()] == ["correct", "invalid_gold"]
    assert "1 golds cannot be read; the first, row 2: gold" in captured.err and said in captured.err


def test_standard_streams_and_boxes_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(ROWS[3]) + "\n" + json.dumps(ROWS[0])))
    assert main(["grade", "--boxed", "reward.alarm_share=1"]) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["no_answer", "correct"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "row 2: not JSON"),
        ('{"gold": "1"}', "row 2: no field 'prediction'"),
        ("[1]", "row 2: no field 'prediction'"),
        ("null", "row 2: no field 'prediction'"),
        ('{"prediction": "1"}', "row 2: no field 'gold'"),
        ('{"prediction": ["1"], "gold": "1"}', "row 2: 'prediction' is not text or a number: [\"1\"]"),
        ('{"prediction": "1", "gold": true}', "row 2: 'gold' is not text, a number or a list of them: true"),
        ('{"prediction": "1", "gold": NaN}', "row 2: 'gold' is not text, a number or a list of them: NaN"),
        ('{"prediction": "1", "gold": {"a": 1}}', "row 2: 'gold' is not text, a number or a list of them: {"),
        ('{"prediction": "1", "gold": [1, null]}', "row 2: 'gold' is not text, a number or a list of them: [1, null]"),
        ('{"prediction": "1", "gold": "1", "error": [1]}', "row 2: 'error' is not text or a number: [1]"),
        ('{"prediction": ' + "1" * 5000 + ', "gold": "1"}', "row 2: not JSON"),
    ],
)
def test_a_row_that_cannot_be_graded_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + text)
    assert main(["grade", "--input", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert said in capsys.readouterr().err
    assert main(["grade", "--input", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "srl.main", "grade", "--input", write(tmp_path, [ROWS[0]] * 300)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(120)) == (b"", 141)
