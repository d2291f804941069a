"""Sequential rejection sampling (paper, section 3.1) as a Ray Data pipeline: blocks of problems -> engines -> Parquet.

Each actor of the pipeline holds one engine, which serves all three steps of the problems it is given, several blocks at
once so that it never runs dry. An actor writes the file of a block itself and hands on one row that says so: samples do not
travel, and however many there are, memory holds those of the blocks in flight.

Exactly once: what is missing is what has no file. An actor that dies is restarted by Ray Data and gets its blocks again; a
driver or node that dies loses the blocks in flight, and the next start samples them. Seeds depend on ids alone.
"""

import asyncio
import math
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from srl.config import Config
from srl.observe.pulse import start_pulse
from srl.pipelines.samples import Row, block_label, blocks_of, fingerprint, missing_blocks, sample_files, tidy, write_block
from srl.pipelines.tree import ALL_STEPS, EngineLoop, Grading, Sampler
from srl.protocols.chat import Chat
from srl.rollout.engine import Engine
from srl.tasks.problems import Problem
from srl.trajectory import TurnKind

COLUMNS = [field.name for field in fields(Problem)]


@dataclass(frozen=True, slots=True)
class Block:
    """A finished block. Times in seconds: `started`, `ended` since the epoch, `cpu_started`, `cpu_ended` of its process."""

    file: str
    problems: int
    samples: int
    tokens: int
    started: float
    ended: float
    cpu_started: float
    cpu_ended: float


@dataclass(frozen=True)
class SamplingPass:
    """One model over all problems. `steps` are sampled from it, the others are taken from the files of `source`."""

    folder: Path
    model: str
    steps: Collection[TurnKind] = ALL_STEPS
    source: Path | None = None

    def earlier_weights(self) -> list[str]:
        """Fingerprints of the models whose samples `source` holds."""
        if self.source is None:
            return []
        return pq.read_metadata(sample_files(self.source)[0]).metadata[b"srl.weights"].decode().split(" ")


class EngineActor:
    """The pipeline's actor: a shell around an engine and the trees that grow in it."""

    def __init__(self, config: Config, work: SamplingPass, reward_actors: list, own: str, weights: list[str]):
        self.config, self.work, self.fingerprint, self.weights = config, work, own, weights
        self.chat = Chat(work.model, config.prompts)
        self.loop = EngineLoop(Engine(work.model, config.model, config.rollout, self.chat.stop_ids), config.rollout.max_sequences)
        self.grading = Grading(reward_actors, config.reward.timeout_s)
        self.turns = Turns()
        # Ray Data numbers no actors.
        start_pulse("sampler", None, lambda: self.loop.counts, lambda: {"running": len(self.loop.waiting)})

    async def __call__(self, block: dict[str, Any]) -> dict[str, list]:
        """One block of problems, all at once. Raises TimeoutError when the engine ends no request for `rollout.timeout_s`."""
        started, used, name = time.time(), time.process_time(), str(block["file"][0])
        problems = [Problem(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*(block[c] for c in COLUMNS), strict=True)]
        file = self.work.folder / name
        last_try = on_last_try(file, self.config.rollout.retries)
        sample, recorded = self.loop.generate, self._recorded(name)
        sampler = Sampler(self.config, self.chat, sample, self.grading.grade, self.fingerprint, self.work.steps, recorded)
        limit = self.config.rollout.timeout_s
        async with self.turns.take(last_try):
            begin_try(file)
            trees = asyncio.gather(*(sampler.problem(problem) for problem in problems))
            rows = [row for tree in await self.loop.while_moving(trees, limit, f"rollout.timeout_s: {name}") for row in tree]
        await asyncio.to_thread(write_block, rows, block_label(problems, self.weights), file)
        tokens = sum(len(row["token_ids"]) for row in rows)
        done = Block(name, len(problems), len(rows), tokens, started, time.time(), used, time.process_time())
        return {column: [value] for column, value in asdict(done).items()}

    def _recorded(self, name: str) -> dict[str, Row]:
        if self.work.source is None:
            return {}
        return {row["id"]: row for row in pq.read_table(self.work.source / name).to_pylist()}


class Turns:
    """Blocks share an engine, but one on its last try has it to itself: if it kills engines, no other block is blamed or lost."""

    def __init__(self) -> None:
        self.running = self.last_tries = 0
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, last_try: bool) -> AsyncIterator[None]:
        async with self.changed:
            self.last_tries += last_try  # also while it waits: nobody else begins then
            await self.changed.wait_for(lambda: not (self.running if last_try else self.last_tries))
            self.running += 1
        try:
            yield
        finally:
            async with self.changed:
                self.running -= 1
                self.last_tries -= last_try
                self.changed.notify_all()


def on_last_try(file: Path, retries: int) -> bool:
    """Whether the next try at this block is the last one after others whose processes died.

    Raises RuntimeError when there is none left: a block that kills its engine.
    """
    earlier = len(list(file.parent.glob(f".{file.name}.*.try")))
    if earlier > retries:
        raise RuntimeError(f"rollout.retries={retries}: the engine died {earlier} times with {file.name}")
    return earlier > 0 and earlier == retries


def begin_try(file: Path) -> None:
    (file.parent / f".{file.name}.{uuid.uuid4().hex}.try").touch()


def sample(
    config: Config, problems: Sequence[Problem], reward_actors: list, work: SamplingPass, progress: Callable[[int], None]
) -> list[Block]:
    """Write the samples of all problems to `work.folder`, one file for each block; blocks that have a file are left alone.

    Returns the blocks that were sampled now. Raises TimeoutError when nothing arrives any more, ConfigError when a file there
    is from other problems or weights, and RuntimeError when the actors write to a disk that the driver does not see.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    own = fingerprint(work.model)
    blocks, weights = blocks_of(problems, config.stage1.block), sorted({own, *work.earlier_weights()})
    missing = missing_blocks(work.folder, blocks, weights)
    progress(len(problems) - sum(map(len, missing.values())))
    if not missing:
        return []
    tidy(work.folder)
    at_once = blocks_in_flight(config)
    dataset = ray.data.from_arrow([block_table(name, missing[name]) for name in missing]).map_batches(
        EngineActor,
        fn_constructor_args=(config, work, reward_actors, own, weights),
        batch_size=None,
        num_cpus=config.rollout.cpus,
        num_gpus=config.rollout.gpus,
        label_selector=config.rollout.nodes,
        compute=ray.data.ActorPoolStrategy(
            size=min(config.rollout.workers, math.ceil(len(missing) / at_once)),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
        ),
    )
    # An actor says itself when its engine stands still; this is for an actor that hangs as a whole.
    limit = config.rollout.start_timeout_s + at_once * config.rollout.timeout_s
    finished = []
    try:
        for row in arriving(dataset, limit, f"rollout.start_timeout_s + {at_once} x rollout.timeout_s"):
            finished.append(Block(**row))
            if not (work.folder / row["file"]).exists():
                raise RuntimeError(f"{work.folder} on the driver's node lacks {row['file']}: run.directory must be shared")
            progress(row["problems"])
    finally:
        tidy(work.folder)
    return finished


def blocks_in_flight(config: Config) -> int:
    """Enough first waves of attempts to fill the engine twice, and one block more, which ends while the next begins."""
    return 1 + math.ceil(2 * config.rollout.max_sequences / (config.stage1.block * config.stage1.wave))


def block_table(name: str, problems: Sequence[Problem]) -> pa.Table:
    """One table is one block of Ray Data: the unit of work, of a file and of what a kill can cost."""
    columns = {column: [getattr(problem, column) for problem in problems] for column in COLUMNS}
    return pa.table({"file": [name] * len(problems), **columns})


def arriving(dataset: ray.data.Dataset, limit_s: float, setting: str) -> Iterator[dict[str, Any]]:
    """Rows as they come. Raises what the pipeline raises, and TimeoutError when none comes for `limit_s` seconds."""
    arrived: queue.Queue = queue.Queue()

    def consume() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    arrived.put(row)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=consume, daemon=True).start()
    while True:
        try:
            row = arrived.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"{setting}={limit_s:g}: waited for a block of samples") from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row
