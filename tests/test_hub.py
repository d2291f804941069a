"""Benchmarks under their hub names, loaded by `datasets` from folders with the published names, subsets, splits and columns."""

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from srl.config import ConfigError
from srl.tasks.benchmarks import BENCHMARKS
from srl.tasks.problems import load_problems

OLYMPIAD = {
    "id": 1606,
    "question": "q",
    "solution": ["long"],
    "final_answer": ["$45$"],
    "context": None,
    "modality": "Text-only",
    "is_multiple_answer": False,
    "unit": "minute",
    "answer_type": "Numerical",
    "error": None,
    "subject": "Math",
}
ROWS = {
    "math": ({"problem": "q", "level": "Level 1", "type": "Algebra", "solution": r"so \boxed{\frac{1}{2}}"}, r"\frac{1}{2}"),
    "math500": ({"problem": "q", "solution": r"\boxed{2}", "answer": "2", "level": 2, "unique_id": "test/1"}, "2"),
    "gsm8k": ({"question": "q", "answer": "9 + 9 = <<9+9=18>>18\n#### 18"}, "18"),
    "minerva": ({"question": "q", "answer": "1.6"}, "1.6"),
    "olympiadbench": (OLYMPIAD, "45 [unit: minute]"),
    "aime24": ({"id": 60, "problem": "q", "solution": r"\boxed{204}", "url": "u"}, "204"),
    "aime25": ({"problem": "q", "answer": "070", "id": "0"}, "70"),
    "amc23": ({"id": 0, "question": "q", "answer": "27.0", "url": "u"}, "27"),
    "numina": ({"source": "amc", "problem": "q", "solution": r"\boxed{3}", "messages": [{"role": "user", "content": "q"}]}, "3"),
}


def publish(folder: Path, name: str, subset: str | None, splits: dict[str, list[dict]]) -> None:
    """A dataset as the hub keeps it: Parquet files, and a card that says which belong to which subset and split."""
    files = "".join(f"  - split: {split}\n    path: {subset or 'data'}/{split}-*.parquet\n" for split in splits)
    for split, rows in splits.items():
        path = folder / name / (subset or "data") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (folder / name / "README.md").write_text(f"---\nconfigs:\n- config_name: {subset or 'default'}\n  data_files:\n{files}---\n")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_loaded_by_its_name(hub: Path, name: str) -> None:
    row, gold = ROWS[name]
    benchmark = BENCHMARKS[name]
    publish(hub, benchmark.hub, benchmark.subset, {benchmark.split: [row]})
    assert [(problem.question, problem.gold) for problem in load_problems(name, "", "")] == [("q", gold)]


def test_another_split_is_named_behind_a_colon(hub: Path) -> None:
    row, _ = ROWS["gsm8k"]
    publish(hub, "openai/gsm8k", "main", {"test": [row], "train": [row | {"answer": "#### 7"}]})
    assert [problem.gold for problem in load_problems("gsm8k:train", "", "")] == ["7"]
    with pytest.raises(ConfigError, match="openai/gsm8k: .*dev"):
        load_problems("gsm8k:dev", "", "")
