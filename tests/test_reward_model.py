"""The outcome reward model: its examples, its loss, its training with real learners, and its verdicts on what a model answers."""

import tracemalloc
from pathlib import Path

import pytest
import torch

from srl.config import Config, ConfigError, load_config
from srl.driver.models import Asked, evaluate_models
from srl.driver.run import run_phases
from srl.learner.batch import Example, collate
from srl.learner.losses.outcome import outcome_loss
from srl.learner.model import VALUE_HEAD
from srl.learner.reward_model import RewardModel, outcome_example
from srl.observe.run_directory import RunDirectory
from srl.pipelines.attempts import load_attempts, share_right
from srl.pipelines.samples import write_block
from srl.protocols.chat import Chat
from srl.rollout.judges import check_judge
from srl.tasks.chains import Chain, question, solution

CHAIN = Chain(47, (38,))
RIGHT, SLIP = solution(CHAIN, [85]), solution(CHAIN, [84])


def row(name: str, text: str, right: bool, chat: Chat, **changes) -> dict:
    return {
        "id": name, "prompt_id": name.split("/")[0], "question": question(CHAIN), "gold": "85", "kind": "attempt", "parent": "",
        "text": text, "token_ids": [*chat.encode(text), chat.end_id], "logprobs": [], "truncated": False, "answer": "1",
        "outcome": "correct" if right else "incorrect", "verdict": None, "accepted": True, "seed": 0, "temperature": 1.0,
        "weights": "w",
    } | changes  # fmt: skip


def test_the_score_is_read_before_the_token_that_ends_the_answer(chat: Chat):
    opening, answer = chat.opening(question(CHAIN)), chat.encode(RIGHT)
    example = outcome_example("a", opening, answer, chat, right=True)
    assert example.token_ids == [*opening, *answer, chat.end_id]
    assert example.weights == example.returns == [0.0] * (len(example.token_ids) - 1) + [1.0]


def test_an_answer_counts_the_same_with_its_end_token_and_inside_a_chain(chat: Chat):
    opening, answer = chat.opening(question(CHAIN)), chat.encode(RIGHT)
    alone = outcome_example("a", opening, answer, chat)
    assert outcome_example("a", opening, [*answer, chat.end_id], chat) == alone
    assert outcome_example("a", opening, chat.joiner() + answer, chat) == alone


def test_the_loss_is_the_cross_entropy_of_right_and_wrong(chat: Chat):
    """Scores ln 3, ln 3 and -ln 3 are odds of 3 to 1, 3 to 1 and 1 to 3: -ln 0.75 for the first right answer, -ln 0.25 for the
    wrong one and for the other right one; one of three is on its side."""
    opening = chat.opening(question(CHAIN))
    texts = (RIGHT, SLIP, RIGHT)
    examples = [outcome_example(str(n), opening, chat.encode(text), chat, text == RIGHT) for n, text in enumerate(texts)]
    loss, sums = outcome_loss(torch.tensor([3.0, 3.0, 1 / 3]).log(), collate(examples, 0))
    assert float(loss) == pytest.approx(0.28768 + 2 * 1.38629, abs=1e-4) and float(sums["accuracy"]) == 1.0


def test_every_graded_attempt_is_an_example_and_a_problem_is_on_one_side_only(chat: Chat, tmp_path: Path):
    rows = []
    for problem in ("p", "q", "r"):
        rows += [row(f"{problem}/a0", RIGHT, True, chat), row(f"{problem}/a1", SLIP, False, chat)]
        rows += [row(f"{problem}/a0/v0", "[VERIFY] wrong", False, chat, kind="verdict", outcome=None)]
        rows += [
            row(f"{problem}/a2", SLIP, False, chat, truncated=True),
            row(f"{problem}/a3", SLIP, False, chat, outcome="timeout"),
        ]
    write_block(rows, {}, tmp_path / "block-00000.parquet")
    train, validation = load_attempts(load_config(None, []), tmp_path, chat, tmp_path / "attempts.arrow")
    assert (len(train), len(validation)) == (4, 2)
    found = {example.id: example.returns[-1] for example in (*train, *validation)}
    assert found == {f"{problem}/a{number}": 1.0 - number for problem in "pqr" for number in (0, 1)}
    assert {example.id[0] for example in train}.isdisjoint(example.id[0] for example in validation)


def test_attempts_wait_in_a_file_until_they_are_trained_on(chat: Chat, tmp_path: Path):
    ids = [*chat.encode(RIGHT) * 200, chat.end_id]
    assert len(ids) > 2000
    rows = [row(f"p{n // 50}/a{n}", "", n % 3 == 0, chat, token_ids=ids) for n in range(200)]
    rows[0] |= {"text": RIGHT, "token_ids": [*chat.encode(RIGHT), chat.end_id]}
    write_block(rows, {}, tmp_path / "block-00000.parquet")
    config = load_config(None, ["model.max_length=10000"])
    tracemalloc.start()
    try:
        train, validation = load_attempts(config, tmp_path, chat, tmp_path / "attempts.arrow")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (len(train), len(validation)) == (150, 50)
    assert held < 1e6  # as lists of ids, weights and returns more than 8 bytes x 3 x 2,000 tokens x 200 = 9.6 MB
    assert all(example.token_ids == [*chat.opening(question(CHAIN)), *ids] for example in (train[1], *train[2:4], validation[1]))
    assert share_right(train) == pytest.approx(100 * sum(example.returns[-1] for example in train) / 150)


def test_a_folder_without_a_value_head_is_no_judge(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"no reward model: the folder has no {VALUE_HEAD}"):
        check_judge("judged", load_config(None, [f"protocol.judge={tmp_path}"]))
    with pytest.raises(ConfigError, match="--judge orm: .*has no such checkpoint yet"):
        evaluate_models(load_config(None, [f"run.directory={tmp_path}"]), [Asked("base", "judged")], judge="orm")


@pytest.fixture(scope="module")
def run(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[dict]]:
    """A reward model of samples in which every answer that ends in 85 is right and every other one wrong, and what it judged."""
    directory = tmp_path_factory.mktemp("runs")
    samples = directory / "samples"
    samples.mkdir()
    rows = []
    for number in range(60):
        for place, value in enumerate((85, 20 + number)):
            rows.append(row(f"p{number}/a{place}", solution(CHAIN, [value]), value == 85, chat))
    write_block(rows, {}, samples / "block-00000.parquet")
    small = [f"run.directory={directory}", f"stage1.samples={samples}", "sft.learning_rate=2e-3", "sft.epochs=2", "sft.batch=16"]
    small += ["evaluate.problems=40", "evaluate.bootstrap=100", "rollout.threads=1", "learner.threads=1"]
    config = load_config(None, small)
    run_phases(config, "orm")
    found = evaluate_models(config, [Asked("base", name) for name in ("judged", "judged_chain", "attempt")], judge="orm")
    return config, found


@pytest.mark.long
def test_the_reward_model_is_a_folder_that_knows_right_from_wrong(run, chat: Chat):
    config, _ = run
    folder = RunDirectory.locate(config) / "checkpoints" / "orm"
    assert (folder / VALUE_HEAD).is_file() and (folder / "config.json").is_file()
    model = RewardModel(str(folder), config)
    opening = chat.opening(question(CHAIN))
    assert model.score(opening, chat.encode(RIGHT)) > 0 > model.score(opening, chat.encode(solution(CHAIN, [33])))


@pytest.mark.long
def test_what_the_reward_model_says_decides_who_is_asked_again_and_is_counted_as_verdicts(run):
    _, (judged, chain, attempt) = run
    assert judged["method"] == "base, judged, judge orm"
    for found in (judged, chain):
        said = found["verdicts"]
        called_right = said["right"]["correct"] + said["wrong"]["correct"]
        assert found["stops"]["accepted"] == called_right and found["stops"]["unjudged"] == 0
        assert found["stops"]["rounds"] == 40 - called_right == found["rounds"].get("1", 0)
    assert (attempt["verdict_correct"], attempt["stops"]["answered"]) == (None, 40)
    assert judged["turn1"] == attempt["turn1"]


def test_a_score_however_near_zero_counts_for_its_side_and_examples_count_by_their_weight():
    """Odds of 3 to 2 for both: -ln 0.6 for the right one of weight 2, -ln 0.4 for the wrong one of weight 1."""
    examples = [Example(name, [5, 6], [0.0, w], returns=[0.0, right]) for name, w, right in (("a", 2.0, 1.0), ("b", 1.0, 0.0))]
    loss, sums = outcome_loss(torch.tensor([1.5, 1.5]).log(), collate(examples, 0))
    assert float(loss) == pytest.approx(2 * 0.51083 + 0.91629, abs=1e-4) and float(sums["accuracy"]) == 2.0
