"""The pure parts of sequential sampling, with an engine and a grader of a few lines; the pipeline itself needs Ray."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from srl.config import ConfigError, Stage1Config, load_config
from srl.driver.stage1 import sampling_passes
from srl.pipelines.assemble import check_tokenizer
from srl.pipelines.sample import Turns, begin_try, on_last_try
from srl.pipelines.samples import block_label, blocks_of, is_accepted, missing_blocks, problems_in, sample_row, write_block
from srl.pipelines.tree import EngineLoop, Sampler, continued
from srl.protocols.chat import Chat, model_folder
from srl.rollout.engine import Completion, Sampling
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT


def judged(name: str, outcome: Outcome, verdict: str | None) -> Trajectory:
    turns = [
        Turn(A, [5, 1], "5", [-1.0, -0.1], 0, answer="5", outcome=outcome),
        Turn(I, [2, 9, 3], "Check"),
        Turn(V, [7, 1], "7", [-2.0, -0.2], 0, verdict=verdict and Verdict(verdict)),
    ]
    return Trajectory(name, "p", "question", "5", [0], turns, StopReason.ANSWERED, seed=4)


def test_a_continuation_is_new_and_leaves_its_origin_as_it_was():
    origin = judged("p/a0", WRONG, "wrong")
    new = continued(origin, "v1")
    new.turns.append(Turn(R, [8]))
    new.turns[0].outcome = RIGHT
    assert (new.id, new.prompt_id, new.gold, new.seed, new.stop_reason) == ("p/a0/v1", "p", "5", 4, None)
    assert len(origin.turns) == 3 and origin.turns[0].outcome is WRONG


def test_a_row_holds_the_last_turn_and_names_what_it_continues():
    found = sample_row(judged("p/a0/v1", WRONG, "wrong"), 4, 0.5, "abc")
    assert found == {
        "id": "p/a0/v1", "prompt_id": "p", "question": "question", "gold": "5", "kind": "verdict", "parent": "p/a0", "text": "7",
        "token_ids": [7, 1], "logprobs": [-2.0, -0.2], "truncated": False, "answer": None, "outcome": None, "verdict": "wrong",
        "accepted": True, "seed": 4, "temperature": 0.5, "weights": "abc",
    }  # fmt: skip


def test_an_attempt_has_no_parent():
    attempt = judged("p/a0", WRONG, "wrong")
    attempt.turns = attempt.turns[:1]
    found = sample_row(attempt, 0, 1.0, "")
    assert (found["parent"], found["outcome"], found["accepted"]) == ("", "incorrect", True)


@pytest.mark.parametrize(
    ("outcome", "verdict", "accepted"),
    [
        (RIGHT, "correct", True),
        (RIGHT, "wrong", False),
        (WRONG, "wrong", True),
        (WRONG, "correct", False),
        (Outcome.NO_ANSWER, "wrong", True),
        (RIGHT, None, False),
        (WRONG, None, False),
    ],
)
def test_a_verdict_is_accepted_when_it_agrees_with_the_grade_of_its_attempt(outcome, verdict, accepted):
    assert is_accepted(judged("t", outcome, verdict)) is accepted


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_revision_is_accepted_when_it_is_right(outcome):
    trajectory = judged("t", WRONG, "wrong")
    trajectory.turns.append(Turn(R, [8], answer="5", outcome=outcome))
    assert is_accepted(trajectory) is (outcome is RIGHT)


# --- trees


class Writer:
    """An engine that finishes running requests in an order of the test's choice; `text` says what each request writes, `cut`
    which of them the token budget ends."""

    def __init__(self, chat: Chat, text: Callable[[str], str], rng: random.Random, cut: str = ""):
        self.chat, self.text, self.rng, self.cut = chat, text, rng, cut
        self.running: dict[str, Sampling] = {}
        self.prompts: dict[str, list[int]] = {}
        self.seeds: dict[str, int] = {}
        self.most = 0

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        self.running[request_id], self.prompts[request_id], self.seeds[request_id] = sampling, token_ids, sampling.seed
        self.most = max(self.most, len(self.running))

    def step(self) -> list[Completion]:
        done = self.rng.choice(sorted(self.running))
        del self.running[done]
        ids = [*self.chat.tokenizer(self.text(done), add_special_tokens=False).input_ids, self.chat.end_id]
        return [Completion(done, ids, [-0.5] * len(ids), done == self.cut)]

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.running.pop(request_id, None)


def grow(
    chat: Chat,
    folder: str,
    text: Callable[[str], str],
    problems: int = 2,
    seed: int = 0,
    recorded=None,
    steps=(A, V, R),
    max_active: int = 100,
    cut: str = "",
    **stage1,
):
    """Rows by id of problems p0, p1, ... whose answer is 10, and the engine."""
    settings = {"attempts": 4, "verdicts": 2, "wrong_revisions": 3, "correct_revisions": 1, "wave": 4, **stage1}
    config = load_config(None, [f"model.path={folder}", *(f"stage1.{key}={value}" for key, value in settings.items())])
    engine = Writer(chat, text, random.Random(seed), cut)

    async def grade(request):
        return RIGHT if request[1] == request[2] else WRONG

    async def all_problems():
        sampler = Sampler(config, chat, EngineLoop(engine, max_active).generate, grade, "abc", steps, recorded)
        return await asyncio.gather(*(sampler.problem(Problem(f"p{n}", "Check", "10")) for n in range(problems)))

    return {row["id"]: row for tree in asyncio.run(all_problems()) for row in tree}, engine


def a0_right_verdicts_wrong(name: str) -> str:
    """Attempt 0 is right, the others are wrong; every verdict says "wrong"; every revision is right."""
    kind = name.rpartition("/")[2][0]
    return {"a": r"\boxed{10}" if "/a0" in name else r"\boxed{11}", "v": "[VERIFY] wrong", "r": r"\boxed{10}"}[kind]


def test_revisions_are_spread_over_the_verdicts_that_said_wrong(chat, tokenizer_folder):
    # M1 = 3 for the wrong attempt a1 with two such verdicts, M2 = 1 for the correct attempt a0.
    rows, _ = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, 1, attempts=2)
    assert sorted(name for name, row in rows.items() if row["kind"] == R) == [
        "p0/a0/v0/r0", "p0/a1/v0/r0", "p0/a1/v0/r2", "p0/a1/v1/r1",
    ]  # fmt: skip


def test_a_verdict_that_says_correct_or_breaks_the_format_is_not_revised(chat, tokenizer_folder):
    says = {"v0": "[VERIFY] correct", "v1": "10"}
    rows, _ = grow(chat, tokenizer_folder, lambda name: says.get(name.rpartition("/")[2], r"\boxed{11}"), 1, attempts=1)
    assert [(row["id"], row["verdict"]) for row in rows.values()] == [
        ("p0/a0", None),
        ("p0/a0/v0", "correct"),
        ("p0/a0/v1", None),
    ]


def test_nothing_is_sampled_after_an_attempt_that_was_cut(chat, tokenizer_folder):
    rows, _ = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, 1, attempts=2, cut="p0/a1")
    assert rows["p0/a1"]["truncated"]
    assert [name for name in rows if name.startswith("p0/a1")] == ["p0/a1"]
    assert "p0/a0/v1" in rows


def test_all_trees_share_one_running_batch_and_a_step_waits_only_for_its_own_attempt(chat, tokenizer_folder):
    rows, engine = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, 3)
    # 12 attempts at once; a verdict's prompt begins with the prompt and the tokens of its attempt.
    assert engine.most >= 12 and len(rows) == 3 * (4 + 8 + 1 + 3 * 3)
    opening = chat.opening("Check")
    for name, row in rows.items():
        expected = opening if row["kind"] == A else engine.prompts[row["parent"]] + rows[row["parent"]]["token_ids"]
        assert engine.prompts[name][: len(expected)] == expected


def test_the_engine_gets_no_more_than_it_can_run_and_deeper_samples_first(chat, tokenizer_folder):
    rows, engine = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, 6, max_active=5)
    assert engine.most == 5 and len(rows) == 6 * (4 + 8 + 1 + 3 * 3)
    # 24 attempts wait, but the first tree is complete long before the last attempt begins.
    begun = list(engine.prompts)
    first_revision = next(n for n, name in enumerate(begun) if rows[name]["kind"] == R)
    assert first_revision < max(n for n, name in enumerate(begun) if rows[name]["kind"] == A)


@pytest.mark.parametrize("stage1", [{}, {"wave": 1, "per_prompt_and_class": 1}, {"wave": 2, "per_prompt_and_class": 1}])
def test_what_is_sampled_does_not_depend_on_which_request_finishes_first(chat, tokenizer_folder, stage1):
    first, engine = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, seed=0, **stage1)
    for seed in range(1, 4):
        again, other = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, seed=seed, **stage1)
        assert again == first and other.seeds == engine.seeds
    assert len(set(engine.seeds.values())) == len(engine.seeds)
    assert all(row["seed"] == engine.seeds[name] for name, row in first.items())


def test_every_step_is_sampled_as_the_settings_say(chat, tokenizer_folder):
    config = load_config(None, [f"model.path={tokenizer_folder}", "rollout.top_p=0.9", "stage1.temperature=0.7"])
    asked: dict[str, Sampling] = {}

    async def generate(name, token_ids, sampling):
        asked[name] = sampling
        ids = [*chat.tokenizer(a0_right_verdicts_wrong(name), add_special_tokens=False).input_ids, chat.end_id]
        return Completion(name, ids, [-0.5] * len(ids), False)

    async def grade(request):
        return RIGHT if request[1] == request[2] else WRONG

    rows = asyncio.run(Sampler(config, chat, generate, grade, "").problem(Problem("p0", "Check", "10")))
    assert {row["kind"] for row in rows} == {A, V, R} and asked.keys() == {row["id"] for row in rows}
    assert {(sampling.temperature, sampling.top_p) for sampling in asked.values()} == {(0.7, 0.9)}


def attempts_of(rows: dict) -> Counter:
    return Counter(row["prompt_id"] for row in rows.values() if row["kind"] == A)


def test_a_problem_whose_quotas_are_full_gets_no_more_attempts(chat, tokenizer_folder):
    def text(name: str, copies: bool = False) -> str:
        # p0 is right and wrong in turn and judges itself well; p1 never says "wrong", so its wrong attempts lead nowhere.
        right = int(name.split("/")[1][1:]) % 2 == 0
        says_wrong = not right and name.startswith("p0")
        steps = "" if copies else " ".join(name.split("/")[1][1:]) + " "
        answers = {"a": steps + (r"\boxed{10}" if right else r"\boxed{11}"), "r": r"\boxed{10}"}
        return answers.get(name.rpartition("/")[2][0], "[VERIFY] wrong" if says_wrong else "[VERIFY] correct")

    rows, _ = grow(chat, tokenizer_folder, text, attempts=12, wave=2, per_prompt_and_class=2)
    assert attempts_of(rows) == {"p0": 4, "p1": 12}
    # p1 has its two right-first trajectories after four attempts: its later right attempts are not judged any more.
    judged_attempts = {row["parent"] for row in rows.values() if row["kind"] == V and row["prompt_id"] == "p1"}
    assert judged_attempts == {f"p1/a{n}" for n in (0, 1, 2, 3, 5, 7, 9, 11)}
    # Copies of a trajectory fill no quota: they give one demonstration.
    rows, _ = grow(chat, tokenizer_folder, lambda name: text(name, copies=True), attempts=12, wave=2, per_prompt_and_class=2)
    assert attempts_of(rows) == {"p0": 12, "p1": 12}


def test_one_wave_of_all_attempts_never_stops_early(chat, tokenizer_folder):
    rows, _ = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, attempts=6, wave=6, per_prompt_and_class=1)
    assert attempts_of(rows) == {"p0": 6, "p1": 6}


def test_steps_that_another_model_took_are_replayed_by_id(chat, tokenizer_folder):
    # The base model's attempts and verdicts; the teacher writes the revisions.
    base, _ = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, steps=(A, V))
    assert {row["kind"] for row in base.values()} == {A, V}
    both, teacher = grow(chat, tokenizer_folder, lambda name: r"\boxed{10}", steps=(R,), recorded=base)
    assert {row["kind"] for name, row in both.items() if name in teacher.prompts} == {R}
    assert {name: row for name, row in both.items() if row["kind"] != R} == base
    assert set(teacher.prompts) == set(both) - set(base) and teacher.prompts


def test_a_teacher_may_end_its_answers_with_another_token(chat, two_ends, tokenizer_folder, tmp_path):
    # As the base and the instruct models of one family. What the base wrote stays; the teacher is shown its own end of a message.
    base, _ = grow(two_ends, tokenizer_folder, a0_right_verdicts_wrong, steps=(A, V))
    both, teacher = grow(chat, tokenizer_folder, a0_right_verdicts_wrong, steps=(R,), recorded=base)
    assert {name: row for name, row in both.items() if row["kind"] != R} == base
    for prompt in teacher.prompts.values():
        assert two_ends.end_id not in prompt and prompt.count(chat.end_id) == 5  # three of the user, two answers
    write_block(list(both.values()), {}, tmp_path / "b.parquet")
    check_tokenizer(tmp_path / "b.parquet", two_ends)


def test_an_engine_that_fails_fails_everybody_who_waits(chat, tokenizer_folder):
    def broken(name: str) -> str:
        raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        grow(chat, tokenizer_folder, broken)


def test_an_engine_that_stands_still_is_given_up(chat):
    class Still(Writer):
        def step(self) -> list[Completion]:
            return []

    async def run():
        loop = EngineLoop(Still(chat, lambda name: "10", random.Random(0)), 8)
        requests = asyncio.gather(*(loop.generate(f"p/a{n}", [1], Sampling(4, 1.0, n)) for n in range(4)))
        await loop.while_moving(requests, 0.01, "rollout.timeout_s: block")

    with pytest.raises(TimeoutError, match=r"rollout\.timeout_s: block: no request ended for 0\.01 s, 4 are waiting"):
        asyncio.run(run())


def test_a_prompt_without_room_is_a_truncated_sample_and_not_an_error(chat, tokenizer_folder):
    # "<|user|>Check<|end|><|assistant|>" are 4 tokens, an attempt of \boxed{11} and its end 4 more: no room for a verdict.
    config = load_config(None, [f"model.path={tokenizer_folder}", "stage1.attempts=1", "stage1.verdicts=1"])
    config.model.max_length = 8
    engine = Writer(chat, lambda name: r"\boxed{11}", random.Random(0))

    async def grade(request):
        return WRONG

    async def one():
        return await Sampler(config, chat, EngineLoop(engine, 8).generate, grade, "").problem(Problem("p", "Check", "10"))

    attempt, verdict = asyncio.run(one())
    assert not attempt["truncated"]
    assert (verdict["truncated"], verdict["token_ids"], verdict["verdict"]) == (True, [], None)


# --- files


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{n}", "Check", "10") for n in range(count)]


def some_rows(names: list[str]) -> list[dict]:
    attempt = judged("t", WRONG, None)
    attempt.turns = attempt.turns[:1]
    return [sample_row(attempt, 0, 1.0, "abc") | {"id": f"{name}/a{n}", "prompt_id": name} for name in names for n in range(3)]


def test_blocks_depend_on_the_list_alone_and_what_has_a_file_is_not_missing(tmp_path: Path):
    blocks = blocks_of(problems(5), 2)
    assert [[p.prompt_id for p in block] for block in blocks.values()] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    second = list(blocks)[1]
    write_block(some_rows(["p2", "p3"]), block_label(blocks[second], ["abc"]), tmp_path / second)
    assert [name for name in blocks if name not in missing_blocks(tmp_path, blocks, ["abc"])] == [second]
    # Sampling the same block again replaces the file.
    write_block(some_rows(["p2", "p3"]), block_label(blocks[second], ["abc"]), tmp_path / second)
    assert [path.name for path in tmp_path.iterdir()] == [second]
    assert [len(rows) for rows in problems_in(tmp_path / second, ["prompt_id"])] == [3, 3]


@pytest.mark.parametrize(("count", "weights", "named"), [(4, ["abd"], "srl.weights"), (3, ["abc"], "srl.problems")])
def test_samples_of_other_problems_or_another_model_are_refused(tmp_path: Path, count, weights, named):
    write_block(some_rows(["p0"]), block_label(problems(4), ["abc"]), tmp_path / "block-00000.parquet")
    with pytest.raises(ConfigError, match=f"block-00000.parquet has other {named} than this run"):
        missing_blocks(tmp_path, {"block-00000.parquet": problems(count)}, weights)


def test_samples_that_were_graded_by_other_golds_are_refused(tmp_path: Path):
    write_block(some_rows(["p0"]), block_label(problems(1), ["abc"]), tmp_path / "block-00000.parquet")
    corrected = [Problem(problem.prompt_id, problem.question, "11") for problem in problems(1)]
    with pytest.raises(ConfigError, match="has other srl.problems than this run"):
        missing_blocks(tmp_path, {"block-00000.parquet": corrected}, ["abc"])


def test_row_groups_are_small_and_rows_of_a_problem_come_together(tmp_path: Path):
    names = [f"p{n}" for n in range(1000)]
    write_block(some_rows(names), {}, tmp_path / "b.parquet")
    assert pq.read_metadata(tmp_path / "b.parquet").num_row_groups == 3
    assert [rows[0]["prompt_id"] for rows in problems_in(tmp_path / "b.parquet", ["id", "prompt_id"])] == names


def test_a_block_that_kills_its_engine_again_and_again_ends_the_run(tmp_path: Path):
    deadly, other = tmp_path / "block-00000.parquet", tmp_path / "block-00001.parquet"
    tries = []
    for _ in range(3):
        tries.append(on_last_try(deadly, retries=2))
        begin_try(deadly)
    assert tries == [False, False, True]
    with pytest.raises(RuntimeError, match=r"rollout\.retries=2: the engine died 3 times with block-00000\.parquet"):
        on_last_try(deadly, retries=2)
    assert not on_last_try(other, retries=2) and not on_last_try(other, retries=0)


def test_blocks_on_their_last_try_have_the_engine_to_themselves_and_keep_nobody_waiting_for_ever():
    async def run() -> list[set[str]]:
        turns, inside, seen = Turns(), set(), []

        async def block(name: str) -> None:
            async with turns.take(last_try=name.startswith("last")):
                inside.add(name)
                seen.append(set(inside))
                for _ in range(3):
                    await asyncio.sleep(0)
                inside.remove(name)

        await asyncio.gather(*map(block, ("a", "b", "last c", "d", "last e", "f")))
        return seen

    seen = asyncio.run(run())
    assert seen[:4] == [{"a"}, {"a", "b"}, {"last c"}, {"last e"}]
    assert sorted(map(sorted, seen[4:])) == [["d"], ["d", "f"]]


# --- passes


def test_a_teacher_takes_one_step_and_the_base_model_the_others(tokenizer_folder, tmp_path: Path):
    base, teacher = "embedded", tokenizer_folder
    for step, expected in (("revision", [(base, (A, V)), (teacher, (R,))]), ("attempt", [(teacher, (A,)), (base, (V, R))])):
        settings = Stage1Config(teacher=teacher, teacher_writes=step)
        first, second = sampling_passes(settings, model_folder(base), tmp_path)
        assert [(first.model, first.steps), (second.model, second.steps)] == [(model_folder(m), s) for m, s in expected]
        assert (first.source, second.source, second.folder) == (None, first.folder, tmp_path / "samples")
    assert [work.steps for work in sampling_passes(Stage1Config(), model_folder(base), tmp_path)] == [(A, V, R)]


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path):
    vocabulary = {"<|end|>": 0, "10": 1}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, "10")), eos_token="<|end|>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"stage1\.teacher=.*: its tokenizer is not that of"):
        sampling_passes(Stage1Config(teacher=str(tmp_path)), model_folder("embedded"), tmp_path)
