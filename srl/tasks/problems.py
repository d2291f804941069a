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
    distinct, without_answer = Distinct(limit), []
    for number, text, gold in rows_of(source, question_key, answer_key):
        if gold:
            distinct.add(number, to_problem(text, gold))
        else:
            without_answer.append(number)
    problems = distinct.taken()
    if len(problems) < len(distinct.golds):
        say(f"{source}: {len(problems)} of its {len(distinct.golds)} problems, by chance")
    unreadable = check_golds(problems, distinct.places, source, benchmark_of(source) is None)
    say_left_out(source, "without an answer", without_answer)
    say_left_out(source, "with a gold that cannot be read", unreadable)
    say_left_out(source, "with a question that occurred before", distinct.again)
    say_left_out(source, "with a question that occurred before with another answer", distinct.contradicting)
    if not problems:
        raise ConfigError(f"{source}: no problems in it")
    return list(problems.values())


def benchmark_of(source: str) -> Benchmark | None:
    return BENCHMARKS.get(source.partition("=")[0].partition(":")[0])


def rows_of(source: str, question_key: str, answer_key: str) -> Iterator[tuple[int, str, str]]:
    """(number, question, gold) of every row; the gold of a benchmark's row may be empty."""
    name, _, file = source.partition("=")
    benchmark = benchmark_of(source)
    for number, row in read_rows(source) if benchmark is None else benchmark_rows(benchmark, name, file):
        place = f"{source}, row {number}"
        if benchmark is None:
            yield number, row_question(row, question_key, place), row_gold(row, answer_key, place)
        else:
            yield number, *benchmark_row(benchmark, row, place)


class Distinct:
    """Problems with different questions, at most `limit` of them, and the rows of those whose question occurred before.

    Of problems that the limit leaves out only id and gold are held.
    """

    def __init__(self, limit: int | None):
        self.limit = limit
        self.problems: dict[str, Problem] = {}
        self.places: dict[str, int] = {}  # the rows of those
        self.golds: dict[str, str] = {}  # of all problems
        self.again: list[int] = []
        self.contradicting: list[int] = []

    def add(self, number: int, problem: Problem) -> None:
        name = problem.prompt_id
        if name in self.golds:
            (self.again if self.golds[name] == problem.gold else self.contradicting).append(number)
            return
        self.golds[name] = problem.gold
        self.problems[name], self.places[name] = problem, number
        if self.limit is not None and len(self.problems) > 2 * self.limit + ROWS_PER_READ:
            self.problems = self.taken()
            self.places = {name: self.places[name] for name in self.problems}

    def taken(self) -> dict[str, Problem]:
        """By id: all, or the first `limit` in the order of their ids."""
        if self.limit is None:
            return self.problems
        return {name: self.problems[name] for name in sorted(self.problems)[: self.limit]}


def say_left_out(source: str, why: str, rows: list[int]) -> None:
    if rows:
        say(f"{source}: left out {len(rows)} rows {why}: {', '.join(map(str, rows[:10]))}{', ...' * (len(rows) > 10)}")


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


def benchmark_row(benchmark: Benchmark, row: dict[str, Any], place: str) -> tuple[str, str]:
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
