"""Problems with gold answers, from files, from the hub or generated."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from srl.config import ConfigError, RewardConfig
from srl.observe.progress import say
from srl.reward.answer import last_boxed
from srl.reward.grader import Grader
from srl.tasks.benchmarks import BENCHMARKS, Benchmark
from srl.tasks.chains import HIGHEST, LOWEST, Chain, chains, question, split_of

SUFFIXES = (".jsonl", ".json", ".parquet")
GSM8K_MARKER = "####"
ROWS_PER_READ = 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """`prompt_id` is a hash of the question, the same in every run."""

    prompt_id: str
    question: str
    gold: str


def load_problems(source: str, question_key: str, answer_key: str, limit: int | None = None) -> list[Problem]:
    """Problems of a benchmark (`NAME`, `NAME:SPLIT`, `NAME=FILE`; srl/tasks/benchmarks.py), a .jsonl, .json or .parquet file,
    or another hub dataset (`NAME` or `NAME:SPLIT`, split `train`).

    With a `limit` so many of all are taken in the order of their ids, which is by chance and always the same: many data sets are
    sorted by subject. Questions that occur again are left out, which is said. Outside benchmarks the gold is the text after
    GSM8K's `####`, the last box of a text that has one, else the value itself; a list is joined with ", "; rows without
    `answer_key` take the last box of `solution`. Raises ConfigError naming source and row, also for a gold that cannot be read;
    of a benchmark such rows are left out, which is said.
    """
    name, _, file = source.partition("=")
    benchmark = BENCHMARKS.get(name.partition(":")[0])
    problems: dict[str, Problem] = {}
    places: dict[str, int] = {}
    golds: dict[str, str] = {}  # of all rows; the questions of those that the limit leaves out are not kept
    without_answer, again, contradicting = [], [], []
    for number, row in read_rows(source) if benchmark is None else benchmark_rows(benchmark, name, file):
        place = f"{source}, row {number}"
        if benchmark is None:
            question, gold = row_question(row, question_key, place), row_gold(row, answer_key, place)
        else:
            question, gold = benchmark_row(benchmark, row, place)
        if not gold:
            without_answer.append(number)
            continue
        problem = to_problem(question, gold)
        if problem.prompt_id in golds:
            (again if golds[problem.prompt_id] == gold else contradicting).append(number)
            continue
        golds[problem.prompt_id] = gold
        problems[problem.prompt_id], places[problem.prompt_id] = problem, number
        if limit is not None and len(problems) > 2 * limit + ROWS_PER_READ:
            problems = first(problems, limit)
            places = {prompt_id: places[prompt_id] for prompt_id in problems}
    if limit is not None:
        problems = first(problems, limit)
        if len(golds) > limit:
            say(f"{source}: {limit} of its {len(golds)} problems, by chance")
    left_out = {
        "without an answer": without_answer,
        "with a gold that cannot be read": check_golds(problems, places, source, benchmark is None),
        "with a question that occurred before": again,
        "with a question that occurred before with another answer": contradicting,
    }
    for what, rows in left_out.items():
        if rows:
            say(f"{source}: left out {len(rows)} rows {what}: {', '.join(map(str, rows[:10]))}{', ...' * (len(rows) > 10)}")
    if not problems:
        raise ConfigError(f"{source}: no problems in it")
    return list(problems.values())


def first(problems: dict[str, Problem], limit: int) -> dict[str, Problem]:
    """The first so many in the order of their ids."""
    return {prompt_id: problems[prompt_id] for prompt_id in sorted(problems)[:limit]}


def check_golds(problems: dict[str, Problem], places: dict[str, int], source: str, strict: bool) -> list[int]:
    """Take out the problems whose gold cannot be read and return their rows; if `strict`, raise ConfigError naming the first.

    Plain numbers cost nothing, other golds are parsed in processes.
    """
    grader = Grader(RewardConfig(processes=max(2, min(8, os.cpu_count() or 2))))
    invalid = grader.invalid_golds([problem.gold for problem in problems.values()])
    grader.close()
    unreadable = [prompt_id for prompt_id, problem in problems.items() if problem.gold in invalid]
    if unreadable and strict:
        problem = problems[unreadable[0]]
        place = f"{source}, row {places[problem.prompt_id]} ({problem.question[:60]!r})"
        raise ConfigError(f"{place}: {invalid[problem.gold]}")
    for prompt_id in unreadable:
        del problems[prompt_id]
    return [places[prompt_id] for prompt_id in unreadable]


def benchmark_rows(benchmark: Benchmark, name: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if file:
        return read_rows(file)
    split = name.partition(":")[2] or benchmark.split
    return enumerate(hub_rows(benchmark.hub, split, benchmark.subset), 1)


def benchmark_row(benchmark: Benchmark, row: dict[str, Any], place: str) -> tuple[str, str | None]:
    try:
        return benchmark.question(row).strip(), (benchmark.gold(row) or "").strip()
    except KeyError as error:
        raise ConfigError(f"{place}: no column {error}; it has {', '.join(row)}") from None


def chain_problems(split: str, count: int, seed: int, min_operations: int, max_operations: int) -> list[Problem]:
    """The first `count` problems of the embedded task's split (train, validation or test) for this seed.

    Raises ConfigError for another split and for more one-step problems than there are.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"split {split!r}: the embedded task has train, validation and test")
    # Only one-step chains are few enough to run out, and the stream would search forever.
    if max_operations == 1 and count > (available := one_step_chains(split)):
        raise ConfigError(f"task.max_operations=1 has {available} {split} problems, {count} were asked for")
    stream = islice(chains(split, seed, min_operations, max_operations), count)
    return [to_problem(question(chain), str(chain.values()[-1])) for chain in stream]


def one_step_chains(split: str) -> int:
    values = range(LOWEST, HIGHEST + 1)
    pairs = [Chain(start, (end - start,)) for start in values for end in values if abs(end - start) >= 10]
    return sum(split_of(question(chain)) == split for chain in pairs)


def to_problem(text: str, gold: str) -> Problem:
    return Problem(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), text, gold)


def on_hub(source: str) -> bool:
    """Whether the problems of this source come from the hub, not from a file."""
    name, _, file = source.partition("=")
    if name.partition(":")[0] in BENCHMARKS:
        return not file or on_hub(file)
    return Path(source).suffix not in SUFFIXES and not Path(source).exists()


def place_of(source: str) -> tuple[list[str], str]:
    """(what it can be called: the last of these, or more of the last; where it is: the source with a file's whole path)."""
    name, _, file = source.partition("=")
    known = name.partition(":")[0] in BENCHMARKS
    if on_hub(source):
        return source.split("/"), source
    path = Path(file if known else source).absolute()
    return [*path.parent.parts[1:], name if known else path.stem], f"{name}={path}" if known else str(path)


def read_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers, from 1; in JSON lines the number of the line."""
    path = Path(source)
    if path.suffix not in SUFFIXES and not path.exists():
        name, _, split = source.partition(":")
        yield from enumerate(hub_rows(name, split or "train"), 1)
    elif not path.is_file():
        raise ConfigError(f"{source}: no such file")
    elif path.suffix == ".parquet":
        yield from enumerate(parquet_rows(path), 1)
    elif path.suffix in SUFFIXES:
        yield from json_rows(path)
    else:
        raise ConfigError(f"{source}: expected a file that ends in {', '.join(SUFFIXES)}")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object per line, or one list of objects in a .json file."""
    try:
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            rows = enumerate(parse_json(text, f"{path}"), 1) if text.strip() else iter(())
        else:
            rows = ((number, parse_json(line, f"{path}, row {number}")) for number, line in lines_of(path))
        yield from checked(rows, path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, without blank ones; one line is in memory at a time."""
    # A question may hold other characters that are taken for line ends.
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from ((number, line.removesuffix("\n")) for number, line in enumerate(lines, 1) if line.strip())


def checked(rows: Iterable[tuple[int, Any]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, row {number}: expected an object with columns, found {type(row).__name__}")
        yield number, row


def parse_json(text: str, place: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: not JSON: {error}") from None
    if place.endswith(".json") and not isinstance(value, list):
        raise ConfigError(f"{place}: expected a list of problems, found {type(value).__name__}")
    return value


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(ROWS_PER_READ):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ConfigError(f"{path}: not Parquet: {' '.join(str(error).split())}") from None


def hub_rows(name: str, split: str, subset: str | None = None) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split) if subset else datasets.load_dataset(name, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}: neither a file nor a hub dataset that can be loaded: {reason}") from None
    yield from rows


def row_question(row: dict[str, Any], key: str, place: str) -> str:
    if key not in row:
        raise ConfigError(f"{place}: no column {key!r} (task.question_key); it has {', '.join(row)}")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}: empty question, column {key!r} is {value!r}")
    return value.strip()


def row_gold(row: dict[str, Any], key: str, place: str) -> str:
    column = key if key in row else "solution"
    if column not in row:
        raise ConfigError(f"{place}: no column {key!r} (task.answer_key) and no solution; it has {', '.join(row)}")
    value = row[column]
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    boxed = last_boxed(text)
    if GSM8K_MARKER in text:
        gold = text.rsplit(GSM8K_MARKER, 1)[1]
    else:
        gold = boxed if boxed is not None else "" if column == "solution" else text
    if not gold.strip():
        raise ConfigError(f"{place}: no gold answer in column {column!r}")
    return gold.strip()
