"""Train and measure what tables and figures of the paper need and is not there yet, then print them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srl.config import Config, ConfigError
from srl.driver.models import Asked, evaluate_models
from srl.driver.run import run_phases
from srl.evaluation.paper import FIGURE_1, TABLES, VARIANTS, Source, Table, Variant
from srl.evaluation.report.files import read_lines
from srl.evaluation.tables import figure_1, figure_2, side_by_side
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory

FIGURE_2 = Asked("ift", samples=16, problems=100)
# (overrides) -> configuration: the file, recipe and settings of the command line with these over them.
Configure = Callable[[list[str]], Config]
MAIN_PHASES = {"base": (), "ift": ("stage1", "sft"), "rl": ("stage1", "sft", "rl")}


@dataclass
class Job:
    """One run: the commands that it lacks, and what its models are asked. `judge` is the checkpoint that judges."""

    config: Config
    commands: list[str] = field(default_factory=list)
    asked: dict[Asked, None] = field(default_factory=dict)  # in order, each once
    judge: str = ""
    rows: dict[Asked, dict[str, Any]] = field(default_factory=dict)


def reproduce(tables: Sequence[int], figures: Sequence[int], configures: Sequence[Configure]) -> str:
    """Markdown of these tables and figures, over one main run for each of `configures` and the variants beside it.

    Each run is trained and asked at once for everything that is shown. Raises ConfigError for fresh=true.
    """
    plans = [plan(tables, figures, configure, alone=len(configures) == 1) for configure in configures]
    jobs = [job for jobs in plans for job in jobs.values()]
    started = time.monotonic()
    for number, job in enumerate(jobs, 1):
        tell(f"[{number}/{len(jobs)}] {job.config.run.name}", job, started)
        work(job)
    say(f"reproduce: all {len(jobs)} runs are there, after {(time.monotonic() - started) / 60:.0f} min")
    parts = [shown(TABLES[number], plans) for number in tables]
    return "\n\n".join(parts + [figure(number, plans) for number in figures])


def plan(tables: Sequence[int], figures: Sequence[int], configure: Configure, alone: bool) -> dict[str, Job]:
    """Every run that is needed, by the variant's name, in an order in which each finds what it needs of the others."""
    wanted = [(source, TABLES[number]) for number in tables for source in sources(TABLES[number])]
    variants = [source.variant for source, _ in wanted] + ([FIGURE_1] if 1 in figures else [])
    jobs = {name: Job(configure(variant_overrides(name, configure))) for name in in_order(variants)}
    for job in jobs.values():
        if job.config.run.fresh:
            raise ConfigError(f"reproduce: fresh=true would delete {RunDirectory.locate(job.config)}")
    for source, table in wanted:
        jobs[source.variant].asked |= dict.fromkeys(questions(source, table, jobs[source.variant].config, alone))
        if source.protocol.startswith("judged"):
            jobs[source.variant].judge = "orm"
    if 2 in figures:
        jobs[""].asked[FIGURE_2] = None
    models = {name: {source.model for source, _ in wanted if source.variant == name} for name in jobs}
    for name, job in jobs.items():
        job.commands = missing(job, VARIANTS[name].phases if name else MAIN_PHASES[main_model(models[name], jobs, figures)])
    return jobs


def in_order(variants: Iterable[str]) -> list[str]:
    """The main run, then variants after those that they learn from; each once."""
    found = [""]
    for name in variants:
        found += [VARIANTS[name].teacher] if name and VARIANTS[name].teacher else []
        found.append(name)
    return list(dict.fromkeys(found))


def main_model(asked: set[str], jobs: dict[str, Job], figures: Sequence[int]) -> str:
    """The last model of the main run that anything here needs: variants start from its samples or its IFT model."""
    needs_ift = 2 in figures or any(name and (VARIANTS[name].samples or VARIANTS[name].start) for name in jobs)
    return "rl" if "rl" in asked else "ift" if "ift" in asked or needs_ift or jobs[""].judge else "base"


def missing(job: Job, phases: Sequence[str]) -> list[str]:
    """Commands whose last phase is not done; the reward model comes after the samples that it is trained on."""
    last = {"stage1": "assemble", "sft": "sft", "rl": "rl", "orm": "orm"}
    path = RunDirectory.locate(job.config)
    done = RunDirectory(job.config).done() if path.is_dir() else {}
    return [name for name in [*phases, *(["orm"] if job.judge else [])] if last[name] not in done]


def sources(table: Table) -> list[Source]:
    """What the table's rows ask, and what p(c->i) asks besides."""
    found = [row.source for row in table.rows]
    return found + [misled(source) for source in found if "p_c2i" in table.columns and not source.protocol]


def misled(source: Source) -> Source:
    return Source(source.variant, source.model, "misleading{form}")


def questions(source: Source, table: Table, config: Config, alone: bool) -> list[Asked]:
    """One for each seed of the samples; several runs have a seed each."""
    temperature = config.evaluate.temperature if table.temperature is None else table.temperature
    seeds = range(config.run.seed, config.run.seed + (table.seeds if alone else 1))
    return [Asked(source.model, protocol_of(source, config), temperature, 1, seed) for seed in seeds]


def protocol_of(source: Source, config: Config) -> str:
    """`gold{form}` is gold_chain for models that do all in one message, gold_two_turn for those that talk in two."""
    return source.protocol.replace("{form}", config.protocol.form)


def variant_overrides(name: str, configure: Configure, variants: Mapping[str, Variant] = VARIANTS) -> list[str]:
    """Settings that make the main run into a variant, which is a run of its own beside it."""
    if not name:
        return []
    main, variant = configure([]), variants[name]
    path = RunDirectory.locate(main)
    found = [f"name={main.run.name}-{name}", *variant.overrides]
    found += [f"recipe={variant.recipe}"] if variant.recipe else []
    found += [f"stage1.samples={path / 'stage1' / 'samples'}"] if variant.samples else []
    found += [f"rl.start={path / 'checkpoints' / 'ift'}"] if variant.start else []
    found += [f"stage1.teacher={path}-{variant.teacher}/checkpoints/rl"] if variant.teacher else []
    return found


def tell(title: str, job: Job, started: float) -> None:
    """What comes now, in one line."""
    todo = [f"trains {', '.join(job.commands)}"] if job.commands else []
    todo += [f"measures {len(job.asked)} rows"] if job.asked else []
    say(f"\n=== {title}: {'; '.join(todo) or 'done'} ({(time.monotonic() - started) / 60:.0f} min so far)")


def work(job: Job) -> None:
    """Train what the run lacks, then measure its models; all that is there already costs nothing."""
    if job.commands:
        run_phases(job.config, *job.commands)
    if job.asked:
        rows = evaluate_models(job.config, list(job.asked), [first_benchmark(job.config)], job.judge)
        job.rows = dict(zip(job.asked, rows, strict=True))


def first_benchmark(config: Config) -> str:
    return next(iter(config.task.test)) if config.task.name == "file" else "chains"


def shown(table: Table, plans: Sequence[dict[str, Job]]) -> str:
    """The table from the rows of all its runs and seeds."""
    found: list[list[dict[str, Any]]] = [[] for _ in table.rows]
    for jobs in plans:
        for place, row in enumerate(table.rows):
            found[place] += rows_of(row.source, table, jobs, alone=len(plans) == 1)
    return side_by_side(table, found, found[0][0]["benchmark"])


def rows_of(source: Source, table: Table, jobs: dict[str, Job], alone: bool) -> list[dict[str, Any]]:
    job = jobs[source.variant]
    rows = [job.rows[asked] for asked in questions(source, table, job.config, alone)]
    if misled(source) not in sources(table):
        return rows
    # Of the answers that were right and told wrong, how many became wrong: 100 - CL.
    told = [job.rows[asked]["cl"] for asked in questions(misled(source), table, job.config, alone)]
    return [row | {"p_c2i": None if cl is None else 100 - cl} for row, cl in zip(rows, told, strict=True)]


def figure(number: int, plans: Sequence[dict[str, Job]]) -> str:
    if number == 2:
        return figure_2([jobs[""].rows[FIGURE_2] for jobs in plans])
    paths = [RunDirectory.locate(jobs[FIGURE_1].config) for jobs in plans]
    return figure_1([validations(path) for path in paths])


def validations(path: Path) -> dict[int, dict[str, Any]]:
    """By RL step, the last measurement of each. Raises ConfigError for a run without any."""
    points = {line["step"]: line for line in read_lines(path / "metrics.jsonl")[0] if line.get("phase") == "rl-validation"}
    if not points:
        raise ConfigError(f"{path}: metrics.jsonl has no validation during RL")
    return points
