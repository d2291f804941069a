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
from srl.observe.run_directory import RunDirectory, is_record

FIGURE_2 = Asked("ift", temperature=1.0, samples=16, problems=100)
# (overrides) -> configuration: the file, recipe and settings of the command line with these over them.
Configure = Callable[[list[str]], Config]


@dataclass
class Plan:
    """A main run and the variants beside it: commands that each lacks, by the variant's name, and what is asked of the models.

    `there` are those that can be asked; `judge` is the folder of the reward model, if one is asked.
    """

    main: Config
    trainings: dict[str, tuple[Config, list[str]]]
    there: set[str]
    asked: list[Asked]
    judge: str
    rows: dict[Asked, dict[str, Any]] = field(default_factory=dict)


def reproduce(tables: Sequence[int], figures: Sequence[int], configures: Sequence[Configure], train: bool = True) -> str:
    """Markdown of these tables and figures, over one main run for each of `configures` and the variants beside it.

    Each run is trained once for everything that is shown, and all models of a main run's variants are asked in one engine.
    Without `train` rows whose run is not finished stay empty. Raises ConfigError for fresh=true.
    """
    plans = [plan(tables, figures, configure, len(configures) == 1, train) for configure in configures]
    total, number, started = sum(len(one.trainings) + 1 for one in plans), 0, time.monotonic()
    for one in plans:
        for config, commands in one.trainings.values():
            number += 1
            what = f"{'trains' if train else 'lacks'}: {', '.join(commands)}" if commands else "is there"
            tell(f"[{number}/{total}] {config.run.name}", what, started)
            if commands and train:
                run_phases(config, *commands)
        number += 1
        tell(f"[{number}/{total}] {one.main.run.name}", f"measures {len(one.asked)} rows", started)
        measured = evaluate_models(one.main, one.asked, [first_benchmark(one.main)], one.judge)
        one.rows = dict(zip(one.asked, measured, strict=True))
    parts = [shown(TABLES[number], plans) for number in tables]
    return "\n\n".join(parts + [figure(number, plans) for number in figures])


def tell(title: str, what: str, started: float) -> None:
    say(f"\n=== {title}: {what} ({(time.monotonic() - started) / 60:.0f} min so far)")


def plan(tables: Sequence[int], figures: Sequence[int], configure: Configure, alone: bool, train: bool) -> Plan:
    """Every run that is needed, in an order in which each finds what it needs of the others, and every question."""
    main = configure([])
    if main.run.fresh:
        raise ConfigError(f"reproduce: fresh=true would delete {RunDirectory.locate(main)}")
    wanted = [(source, TABLES[number]) for number in tables for source in sources(TABLES[number])]
    judged = any(source.protocol.startswith("judged") for source, _ in wanted)
    variants = [source.variant for source, _ in wanted] + ["orm"] * judged + [FIGURE_1] * (1 in figures)
    trainings = {}
    for name in in_order(variants):
        config = configure(variant_overrides(name, configure))
        commands = VARIANTS[name].phases if name else main_commands({source for source, _ in wanted}, variants, figures)
        trainings[name] = config, missing(config, commands)
    there = {name for name, (_, commands) in trainings.items() if train or not commands}
    asked = [
        question for source, table in wanted if can_be_asked(source, there) for question in questions(source, table, main, alone)
    ]
    asked += [FIGURE_2] * (2 in figures and "" in there)
    judge = f"{RunDirectory.locate(main)}-orm/checkpoints/orm" if judged and "orm" in there else ""
    return Plan(main, trainings, there, list(dict.fromkeys(asked)), judge)


def can_be_asked(source: Source, there: set[str]) -> bool:
    """Whether the runs that are there have the model, and the judge if it is asked."""
    return (source.model == "base" or source.variant in there) and ("orm" in there or not source.protocol.startswith("judged"))


def in_order(variants: Iterable[str]) -> list[str]:
    """The main run, then variants after those that they learn from; each once."""
    found = [""]
    for name in variants:
        found += [VARIANTS[name].teacher] if name and VARIANTS[name].teacher else []
        found.append(name)
    return list(dict.fromkeys(found))


def main_commands(wanted: set[Source], variants: Sequence[str], figures: Sequence[int]) -> tuple[str, ...]:
    """What the main run has to have done for its own models, and for variants that take its samples or its IFT model."""
    models = {source.model for source in wanted if not source.variant}
    needed = 2 in figures or any(name and (VARIANTS[name].samples or VARIANTS[name].start) for name in variants)
    if "rl" in models:
        return ("stage1", "sft", "rl")
    return ("stage1", "sft") if "ift" in models or needed else ()


def missing(config: Config, commands: Sequence[str]) -> list[str]:
    """Those whose last phase is not done."""
    done: dict[str, float] = {}
    if RunDirectory.locate(config).is_dir():
        run = RunDirectory(config)  # refuses another configuration's
        done = run.done()
        run.close()
    return [name for name in commands if {"stage1": "assemble"}.get(name, name) not in done]


def sources(table: Table) -> list[Source]:
    """What the table's rows ask, and what p(c->i) asks besides."""
    found = [row.source for row in table.rows]
    return found + [misled(source) for source in found if "p_c2i" in table.columns and not source.protocol]


def misled(source: Source) -> Source:
    return Source(source.variant, source.model, "misleading{form}")


def questions(source: Source, table: Table, main: Config, alone: bool) -> list[Asked]:
    """One for each seed of the samples; several runs have a seed each. Models of variants are asked by their folders."""
    # Greedily the embedded base model answers all of its problems: what there is to correct comes from sampling.
    own = table.temperature is None or main.task.name == "chains"
    temperature = main.evaluate.temperature if own else table.temperature
    seeds = range(main.run.seed, main.run.seed + (table.seeds if alone else 1))
    model = f"{RunDirectory.locate(main)}-{source.variant}/checkpoints/{source.model}" if source.variant else source.model
    return [Asked(model, protocol_of(source, main), temperature, 1, seed) for seed in seeds]


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


def first_benchmark(config: Config) -> str:
    return next(iter(config.task.test)) if config.task.name == "file" else "chains"


def shown(table: Table, plans: Sequence[Plan]) -> str:
    """The table from the rows of all its runs and seeds."""
    found = [[row for one in plans for row in rows_of(line.source, table, one, len(plans) == 1)] for line in table.rows]
    return side_by_side(table, found, first_benchmark(plans[0].main))


def rows_of(source: Source, table: Table, plan: Plan, alone: bool) -> list[dict[str, Any]]:
    """Empty ones where nothing was asked."""
    rows = [plan.rows.get(asked, {}) for asked in questions(source, table, plan.main, alone)]
    if misled(source) not in sources(table):
        return rows
    # Of the answers that were right and told wrong, how many became wrong: 100 - CL.
    told = [plan.rows.get(asked, {}).get("cl") for asked in questions(misled(source), table, plan.main, alone)]
    return [row | {"p_c2i": None if cl is None else 100 - cl} for row, cl in zip(rows, told, strict=True)]


def figure(number: int, plans: Sequence[Plan]) -> str:
    if number == 2:
        rows = [one.rows[FIGURE_2] for one in plans if FIGURE_2 in one.rows]
        return figure_2(rows) if rows else "Figure 2: not measured"
    runs = [RunDirectory.locate(one.trainings[FIGURE_1][0]) for one in plans if FIGURE_1 in one.there]
    return figure_1([validations(path) for path in runs]) if runs else "Figure 1: not trained"


def validations(path: Path) -> dict[int, dict[str, Any]]:
    """By RL step, the last measurement of each. Raises ConfigError for a run without any."""
    lines, _ = read_lines(path / "metrics.jsonl", is_record)
    points = {line["step"]: line for line in lines if line["phase"] == "rl-validation"}
    if not points:
        raise ConfigError(f"{path}: metrics.jsonl has no validation during RL")
    return points
