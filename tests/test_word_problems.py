import json
import sys
from pathlib import Path

import pytest

from benchmarks.word_problems import main
from srl.config import load_config
from srl.protocols.grammar import cut_chain
from srl.trajectory import TurnKind, Verdict


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["word_problems", str(folder)])
        main()
    return folder


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_conversations_check_every_answer_rightly_and_end_with_the_right_one(words: Path):
    golds = {row["problem"]: row["answer"] for row in rows(words / "train.jsonl")}
    begun_wrong = []
    for talk in rows(words / "conversations/train.jsonl") + rows(words / "conversations/validation.jsonl"):
        system, question, said = (message["content"] for message in talk["messages"])
        assert system == load_config("smollm2-135m.yaml", []).prompts.system
        attempt, verdict, *revised = cut_chain(said, "verify")
        wrong = attempt.answer != golds[question]
        assert verdict.verdict is (Verdict.WRONG if wrong else Verdict.CORRECT)
        assert [(turn.kind, turn.answer) for turn in revised] == [(TurnKind.REVISION, golds[question])] * wrong
        begun_wrong.append(wrong)
    assert len(begun_wrong) == 240 and 0.35 < sum(begun_wrong) / 240 < 0.55


def test_no_test_problem_is_a_training_problem(words: Path):
    train, test = ({row["problem"] for row in rows(words / name)} for name in ("train.jsonl", "test.jsonl"))
    assert (len(train), len(test)) == (600, 200) and not train & test
