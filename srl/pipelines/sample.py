"""Sequential rejection sampling (paper, section 3.1) as a Ray Data pipeline.

Problems -> attempts -> verdicts -> revisions -> Parquet.

One row per sample; `parent` names the sample it continues, so the rows of a problem form a tree:

    id            <prompt_id>/a3, <prompt_id>/a3/v1, <prompt_id>/a3/v1/r0
    prompt_id, question, gold
    kind          attempt | verdict | revision
    parent        id of the sample before, "" for attempts
    text, token_ids, logprobs
    answer        of attempts and revisions, null without a box
    outcome       the grader's, for attempts and revisions
    verdict       of verdicts: correct | wrong, null when the format is broken
    accepted      attempts: always; verdicts: agrees with the attempt's grade, if it got one; revisions: the answer is right
    seed, weights the run's seed and the fingerprint of the model that sampled

Every sample is written, rejected or not, so that one sampling run feeds any way of assembling.
"""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.queue import Queue

from srl.config import Config
from srl.protocols.chat import Chat, model_folder
from srl.reward.actor import grade_all
from srl.rollout.pool import RolloutPool
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind, Verdict

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("kind", pa.string()),
        ("parent", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("verdict", pa.string()),
        ("accepted", pa.bool_()),
        ("seed", pa.int64()),
        ("weights", pa.string()),
    ]
)


class Sampler:
    """The pipeline's actor. It borrows rollout workers from a queue, so that the run's engines serve this stage too."""

    def __init__(self, config: Config, workers: Queue, weight_version: int, reward_actors: list, weights: str):
        self.config, self.workers, self.reward_actors = config, workers, reward_actors
        self.weight_version, self.weights = weight_version, weights
        self.chat = Chat(model_folder(config.model.path), config.prompts)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        problems = [Problem(*row) for row in zip(batch["prompt_id"], batch["question"], batch["gold"], strict=True)]
        worker = self.workers.get(timeout=self.config.rollout.timeout_s)
        try:
            rows = self.sample(worker, problems)
        finally:
            self.workers.put(worker)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def sample(self, worker: Any, problems: Sequence[Problem]) -> list[dict[str, Any]]:
        """All samples of these problems: three generations, each started when the grades it needs are known."""
        stage1, seed = self.config.stage1, self.config.run.seed
        roots = [
            Trajectory(f"{p.prompt_id}/a{n}", p.prompt_id, p.question, p.gold, self.chat.opening(p.question), seed=seed)
            for p in problems
            for n in range(stage1.attempts)
        ]
        attempts = self._grade(self._generate(worker, "attempt", roots))
        verdicts = self._generate(worker, "verdict", [continued(a, f"v{n}") for a in attempts for n in range(stage1.verdicts)])
        revisions = self._grade(self._generate(worker, "revision", self._to_revise(verdicts)))
        return [row(t, self.weights) for t in (*attempts, *verdicts, *revisions)]

    def _to_revise(self, verdicts: Sequence[Trajectory]) -> list[Trajectory]:
        """M1 continuations of each wrong attempt, M2 of each correct one, spread over its verdicts that said "wrong"."""
        stage1, told_wrong = self.config.stage1, {}
        for trajectory in verdicts:
            if trajectory.turns[-1].verdict is Verdict.WRONG and trajectory.turns[0].outcome is not Outcome.TIMEOUT:
                told_wrong.setdefault(trajectory.id.rpartition("/")[0], []).append(trajectory)
        continuations = []
        for judged in told_wrong.values():
            is_right = judged[0].turns[0].outcome is Outcome.CORRECT
            count = stage1.correct_revisions if is_right else stage1.wrong_revisions
            continuations += [continued(judged[n % len(judged)], f"r{n}") for n in range(count)]
        return continuations

    def _generate(self, worker: Any, protocol: str, trajectories: list[Trajectory]) -> list[Trajectory]:
        if not trajectories:
            return []
        reference = worker.generate.remote(protocol, trajectories, self.config.stage1.temperature, self.weight_version)
        return ray.get(reference, timeout=self.config.rollout.timeout_s + 30)

    def _grade(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Grade the last turn of each."""
        requests = [(t.id, t.turns[-1].answer, t.gold) for t in trajectories]
        grades = grade_all(self.reward_actors, requests, self.config.reward.timeout_s) if requests else {}
        for trajectory in trajectories:
            trajectory.turns[-1].outcome = grades[trajectory.id]
        return trajectories


def continued(trajectory: Trajectory, name: str) -> Trajectory:
    """A new trajectory that goes on where this one stopped."""
    return Trajectory(
        f"{trajectory.id}/{name}",
        trajectory.prompt_id,
        trajectory.question,
        trajectory.gold,
        trajectory.prompt_token_ids,
        [Turn(**{slot: getattr(turn, slot) for slot in Turn.__slots__}) for turn in trajectory.turns],
        seed=trajectory.seed,
    )


def row(trajectory: Trajectory, weights: str) -> dict[str, Any]:
    """The last turn of a trajectory as a row of the table above."""
    turn = trajectory.turns[-1]
    return {
        "id": trajectory.id,
        "prompt_id": trajectory.prompt_id,
        "question": trajectory.question,
        "gold": trajectory.gold,
        "kind": turn.kind.value,
        "parent": "" if turn.kind is TurnKind.ATTEMPT else trajectory.id.rpartition("/")[0],
        "text": turn.text,
        "token_ids": turn.token_ids,
        "logprobs": turn.logprobs,
        "answer": turn.answer,
        "outcome": turn.outcome and turn.outcome.value,
        "verdict": turn.verdict and turn.verdict.value,
        "accepted": is_accepted(trajectory),
        "seed": trajectory.seed,
        "weights": weights,
    }


def is_accepted(trajectory: Trajectory) -> bool:
    turn = trajectory.turns[-1]
    if turn.kind is TurnKind.ATTEMPT:
        return True
    if turn.kind is TurnKind.REVISION:
        return turn.outcome is Outcome.CORRECT
    attempt = trajectory.turns[0].outcome
    if attempt is Outcome.TIMEOUT:
        return False
    return turn.verdict is (Verdict.CORRECT if attempt is Outcome.CORRECT else Verdict.WRONG)


def sample(
    config: Config,
    problems: Sequence[Problem],
    pool: RolloutPool,
    reward_actors: list,
    folder: Path,
    progress: Callable[[int], None],
) -> None:
    """Write the samples of all problems to `folder`, one Parquet file per block; problems that are already there are skipped.

    A file appears only when it is whole, so an interrupted run continues without losing or repeating a problem.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = sampled_prompts(folder)
    missing = [p for p in problems if p.prompt_id not in done]
    progress(len(problems) - len(missing))
    if not missing:
        return
    queue = Queue(actor_options={"num_cpus": 0})
    for worker in pool.workers:
        queue.put(worker)
    # One table is one block: the unit of work, of a file and of what a kill can cost.
    rows = [{"prompt_id": p.prompt_id, "question": p.question, "gold": p.gold} for p in missing]
    size = config.stage1.block
    blocks = [pa.Table.from_pylist(rows[begin : begin + size]) for begin in range(0, len(rows), size)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        Sampler,
        fn_constructor_args=(config, queue, pool.version, reward_actors, fingerprint(model_folder(config.model.path))),
        batch_size=None,
        num_cpus=0.1,
        compute=ray.data.ActorPoolStrategy(size=len(pool.workers)),
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            write_whole(batch, folder)
            progress(len(set(batch["prompt_id"].to_pylist())))
    finally:
        queue.shutdown()


def write_whole(table: pa.Table, folder: Path) -> None:
    name = uuid.uuid4().hex
    partial = folder / f".{name}.partial"
    try:
        pq.write_table(table.cast(SCHEMA), partial)
        partial.rename(folder / f"{name}.parquet")
    finally:
        partial.unlink(missing_ok=True)


def sampled_prompts(folder: Path) -> set[str]:
    """Ids of the problems whose samples are complete."""
    files = sorted(folder.glob("*.parquet"))
    return {prompt for file in files for prompt in pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()}


def fingerprint(path: str) -> str:
    """Short hash of a model folder's weights; the path itself for a hub name."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        return path
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as handle:
            while chunk := handle.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()
