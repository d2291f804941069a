"""Train and measure what a table of the paper needs and is not there yet."""

from collections.abc import Callable
from typing import Any

from srl.config import Config, ConfigError
from srl.driver.models import Asked, evaluate_models
from srl.driver.run import run_phases
from srl.evaluation.paper import VARIANTS, Source, Table
from srl.evaluation.report.files import read_lines
from srl.evaluation.tables import figure_1, figure_2, side_by_side
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory

# (overrides) -> configuration: the file, recipe and settings of the command line with these over them.
Configure = Callable[[list[str]], Config]
SAMPLES = 16  # per problem, of figure 2
PROBLEMS_WITH_SAMPLES = 200


def table(wanted: Table, configure: Configure) -> str:
    """The table as Markdown, after running what it lacks."""
    sources = [row.source for row in wanted.rows]
    if "p_c2i" in wanted.columns:
        sources += [misled(source) for source in sources if not source.protocol]
    measured = measure_sources(list(dict.fromkeys(sources)), wanted, configure)
    found = [measured[row.source] for row in wanted.rows]
    for place, row in enumerate(wanted.rows):
        if misled(row.source) in measured:
            # Of the answers that were right and told wrong, how many became wrong: 100 - CL.
            confidence = [told["cl"] for told in measured[misled(row.source)]]
            pairs = zip(found[place], confidence, strict=True)
            found[place] = [ours | {"p_c2i": None if level is None else 100 - level} for ours, level in pairs]
    return side_by_side(wanted, found, found[0][0]["benchmark"])


def misled(source: Source) -> Source:
    return Source(source.variant, source.model, "misleading{form}")


def measure_sources(sources: list[Source], wanted: Table, configure: Configure) -> dict[Source, list[dict[str, Any]]]:
    """Rows of every source on the first benchmark, one per seed; all models of a run are measured together."""
    found: dict[Source, list[dict[str, Any]]] = {}
    for variant in dict.fromkeys(source.variant for source in sources):
        config = configure(variant_overrides(variant, configure))
        temperature = config.evaluate.temperature if wanted.temperature is None else wanted.temperature
        seeds = range(config.run.seed, config.run.seed + wanted.seeds)
        own = [source for source in sources if source.variant == variant]
        for source in own:
            train(source, config)
        asked = [Asked(source.model, protocol_of(source, config), temperature, 1, seed) for source in own for seed in seeds]
        # Rows come model by model; within one, in the order asked.
        rows = iter(evaluate_models(config, asked, [first_benchmark(config)]))
        for model in dict.fromkeys(source.model for source in own):
            for source in (source for source in own if source.model == model):
                found[source] = [next(rows) for _ in seeds]
    return found


def protocol_of(source: Source, config: Config) -> str:
    """`gold{form}` is gold_chain for models that do all in one message, gold_two_turn for those that talk in two."""
    return source.protocol.replace("{form}", config.protocol.form)


def first_benchmark(config: Config) -> str:
    return next(iter(config.task.test)) if config.task.name == "file" else "chains"


def variant_overrides(name: str, configure: Configure) -> list[str]:
    """Settings that make the main run into a variant, which is a run of its own beside it."""
    if not name:
        return []
    main, variant = configure([]), VARIANTS[name]
    path = RunDirectory.locate(main)
    found = [f"name={main.run.name}-{name}", *variant.overrides]
    found += [f"recipe={variant.recipe}"] if variant.recipe else []
    found += [f"stage1.samples={path / 'stage1' / 'samples'}"] if variant.samples else []
    found += [f"rl.start={path / 'checkpoints' / 'ift'}"] if variant.start else []
    return found


def train(source: Source, config: Config) -> None:
    """Run the phases that make the model which is asked, unless they are done. The main run has to be there."""
    path = RunDirectory.locate(config)
    if config.run.fresh:
        raise ConfigError(f"reproduce: fresh=true would delete {path}")
    phase = {"base": "", "ift": "sft", "rl": "rl"}[source.model]
    if not phase or (path.is_dir() and phase in RunDirectory(config).done()):
        return
    if not source.variant:
        raise ConfigError(f"{path} has no checkpoints/{source.model}: run the same configuration first (python -m srl.main run)")
    for command in VARIANTS[source.variant].phases:
        say(f"reproduce: {command} of {config.run.name}")
        run_phases(config, command)


def figure(number: int, configure: Configure) -> str:
    """Its points as Markdown, after sampling what figure 2 lacks."""
    config = configure([])
    path = RunDirectory.locate(config)
    if number == 1:
        try:
            return figure_1(read_lines(path / "metrics.jsonl")[0])
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
    train(Source("", "ift"), config)
    rows = evaluate_models(config, [Asked("ift", samples=SAMPLES)], [first_benchmark(config)], PROBLEMS_WITH_SAMPLES)
    return figure_2(rows)
