"""Evaluation of any models on any benchmarks, from the command line."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ray

from srl.config import Config, ConfigError, read_yaml
from srl.driver.check import check_engines
from srl.driver.cluster import check_address, connect, disconnect
from srl.driver.evaluate import METHODS, complete, measure
from srl.driver.problems import check_wording, load_benchmark, load_tests, places_of_tests
from srl.driver.session import Session
from srl.evaluation.cell import Cell
from srl.evaluation.names import shortest
from srl.learner.model import check_model
from srl.observe.progress import bar, lines_as, say
from srl.observe.run_directory import RunDirectory, check_directory, read_rows
from srl.observe.status import EVALUATED
from srl.observe.watchdog import observed
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.rollout.judges import check_judge
from srl.tasks.problems import Problem, place_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A model and how to ask it: `base`, a checkpoint of the run (`ift`, `rl`, ...), a folder or a hub name.

    What is "" or None is the run's own: its protocol (for the base model `prompted`), evaluate.temperature, evaluate.samples,
    run.seed, evaluate.problems.
    """

    model: str
    protocol: str = ""
    temperature: float | None = None
    samples: int | None = None
    seed: int | None = None
    problems: int | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, with everything that has a name looked up; the first three dictionaries are by `Asked.model`."""

    config: Config  # with the judge
    sources: dict[str, str]  # folder or hub name
    holders: dict[str, Config]  # whose engines hold it
    names: dict[str, str]  # in the table
    judge: str  # its name in the table
    problems: dict[str, list[Problem]]  # by benchmark
    places: dict[str, str]  # where these come from


def evaluate_models(config: Config, asked: Sequence[Asked], benchmarks: Sequence[str] = (), judge: str = "") -> list[dict]:
    """A row for everything asked, in that order, on every benchmark (none: those of the run).

    The rows are also in results.json. Models that one engine can hold share it. `judge`, a checkpoint of the run or else as
    protocol.judge, is whom the protocols `judged` ask. Raises ConfigError for a model, benchmark, protocol or judge that is
    none, before any engine starts; starts none if all is there.
    """
    lines_as(config.run.log, lambda: {"run": config.run.name})
    questions = checked(config, asked, benchmarks, judge)
    holders = questions.holders
    check_address(config)
    run, found = RunDirectory(config), {}
    lines_as(config.run.log, run.context)
    try:
        with run.alone(), ExitStack() as watched:

            def start() -> None:
                if not ray.is_initialized():
                    connect(config, trains=False)
                    watched.enter_context(observed(config, run))

            for path in dict.fromkeys(own.model.path for own in holders.values()):
                those = [item for item in asked if holders[item.model].model.path == path]
                session = Session(holders[those[0].model], run)
                for item in those:
                    for title, tests in questions.problems.items():
                        cell = cell_of(item, title, questions)
                        run.current = f"evaluate {cell.method} on {title}"
                        found[item, title] = told(session, cell, tests[: item.problems], start)
                session.stop_engines()
            run.current = EVALUATED
    finally:
        run.close()
        disconnect()
    return [found[item, title] for item in asked for title in questions.problems]


def checked(config: Config, asked: Sequence[Asked], benchmarks: Sequence[str], judge: str) -> Questions:
    """Raises ConfigError as `evaluate_models`; nothing is written, nothing starts."""
    path = RunDirectory.locate(config)
    if config.run.fresh:
        raise ConfigError(f"fresh=true would delete {path}, whose models and rows this command adds to")
    check_directory(config)
    heard = with_judge(config, judge, path)
    sources = {name: source_of(name, config, path) for name in dict.fromkeys(item.model for item in asked)}
    holders = {name: with_model(heard, source, path) for name, source in sources.items()}
    engines = {own.model.path: own for own in holders.values()}.values()
    for own in engines:
        check_model(own, "model.path" if own is heard else "--model")
    protocols = [item.protocol or default_protocol(item.model, config) for item in asked]
    for item, protocol in zip(asked, protocols, strict=True):
        check_protocol(protocol, holders[item.model])
    if judge and not any(protocol.startswith("judged") for protocol in protocols):
        raise ConfigError(f"--judge {judge}: {', '.join(dict.fromkeys(protocols))} asks no judge; --protocol judged_chain does")
    rows = read_rows(path)
    problems, places = benchmarks_of(benchmarks, config, rows)
    for own in engines:
        check_wording(own, (problem for tests in problems.values() for problem in tests))
    return Questions(heard, sources, holders, model_names(sources, path, rows), judge_name(heard, rows), problems, places)


def model_names(sources: dict[str, str], run: Path, rows: Sequence[dict]) -> dict[str, str]:
    """In the table: the run's own models by theirs, others by as much of their path as no other model's row begins with."""
    own = {"base", "embedded", "intrinsic", *(checkpoint for checkpoint, _ in METHODS.values() if checkpoint)}
    own |= {name for name, source in sources.items() if "/" not in name and source == str(run / "checkpoints" / name)}
    taken = {row["method"].partition(", ")[0]: row.get("model", "") for row in rows} | {name: "" for name in own}
    found = {}
    for name, source in sources.items():
        parts = list(Path(source).parts)
        if parts[-2:-1] == ["checkpoints"]:  # of another run
            parts[-3:] = [f"{parts[-3]} {parts[-1]}"]
        found[name] = name if name in own else shortest([part for part in parts if part != "/"], source, taken)
    return found


def judge_name(config: Config, rows: Sequence[dict]) -> str:
    judge = config.protocol.judge
    taken = {row["method"].partition(", judge ")[2].partition(", ")[0]: row["judge"] for row in rows if "judge" in row}
    return shortest([part for part in Path(judge).parts if part != "/"], judge, taken)


def with_judge(config: Config, judge: str, run: Path) -> Config:
    """The configuration whose protocol.judge is that checkpoint of the run, or what else the name means there."""
    if not judge:
        return config
    if (run / "checkpoints" / judge).is_dir():
        judge = str(run / "checkpoints" / judge)
    elif judge == "orm":
        raise ConfigError(f"--judge orm: {run} has no such checkpoint yet (python -m srl.main orm)")
    return config.model_copy(update={"protocol": config.protocol.model_copy(update={"judge": judge})})


def told(session: Session, cell: Cell, tests: list[Problem], start: Callable[[], None]) -> dict:
    """Measure a cell and say what came out; `start` is called if something has to be sampled."""
    if not complete(session, cell, tests):
        if not session.config.rollout.replay:
            check_engines(session.config)
        start()
    with bar(len(tests) * cell.samples, "trajectories") as update:
        row = measure(session, cell, tests, update)
    say(f"      {cell.method} on {cell.benchmark}: " + "  ".join(f"{key} {row[key]:.1f}" for key in ("turn1", "final", "delta")))
    return row


def source_of(name: str, config: Config, run: Path) -> str:
    """Folder or hub name of a model. Raises ConfigError when a path leads nowhere."""
    if name in ("base", "embedded"):
        return model_folder(config.model.path if name == "base" else name)
    if (run / "checkpoints" / name).is_dir():
        return str(run / "checkpoints" / name)
    if Path(name).is_dir():
        return str(Path(name).absolute())
    if name in {checkpoint for checkpoint, _ in METHODS.values()}:
        raise ConfigError(f"--model {name}: {run} has no such checkpoint yet")
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise ConfigError(f"--model {name}: neither a checkpoint of {run}, nor a folder, nor a name such as owner/model")
    return name


def with_model(config: Config, source: str, run: Path) -> Config:
    """The configuration whose engines can hold this model: checkpoints of this run, and of others that started from its model
    section, are loaded into engines of its base model."""
    if source == model_folder(config.model.path) or Path(source).is_relative_to(run):
        return config
    if origin(source) == config.model.model_dump(mode="json"):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"path": source})})


def origin(source: str) -> dict | None:
    """The section `model` of the run whose checkpoint this folder is."""
    folder = Path(source)
    file = folder.parent.parent / "config.yaml"
    return read_yaml(f"{file}", file).get("model") if folder.parent.name == "checkpoints" and file.is_file() else None


def default_protocol(model: str, config: Config) -> str:
    """The base model has to be asked for a verdict; any other is taken for one that was trained to give it."""
    return "prompted" if model == "base" else config.own_protocol


def check_protocol(name: str, config: Config) -> None:
    build_protocol(name, config, Chat(model_folder(config.model.path), config.prompts), "--protocol")
    check_judge(name, config)


def benchmarks_of(wanted: Sequence[str], config: Config, rows: Sequence[dict]) -> tuple[dict[str, list[Problem]], dict[str, str]]:
    """Problems by benchmark, and where they come from: the run's own for none, by its name or its file; else a file or a data
    set on the hub, by as much of its path as no other benchmark is called."""
    own = places_of_tests(config)
    if not wanted:
        return load_tests(config), own
    taken = {row["benchmark"]: row["source"] for row in rows if "source" in row} | own
    problems: dict[str, list[Problem]] = {}
    for name in wanted:
        if name in own:
            problems[name] = load_tests(config, name)[name]
            continue
        title = shortest(*place_of(name), taken)
        problems[title] = load_benchmark(name, config)
    return problems, {title: taken[title] for title in problems}


def cell_of(asked: Asked, benchmark: str, questions: Questions) -> Cell:
    """The method's name in the table says what differs from the run's own rows."""
    config = questions.config
    name, settings = asked.model, config.evaluate
    protocol = asked.protocol or default_protocol(name, config)
    temperature = settings.temperature if asked.temperature is None else asked.temperature
    samples, seed = asked.samples or settings.samples, config.run.seed if asked.seed is None else asked.seed
    titles = {(checkpoint or "base", own or config.own_protocol): title for title, (checkpoint, own) in METHODS.items()}
    model = questions.names[name]
    words = [titles[name, protocol]] if (name, protocol) in titles else [model, protocol]
    words = [model] if words == [model, default_protocol(name, config)] else words
    words += [f"judge {questions.judge}"] if protocol.startswith("judged") else []
    words += [] if temperature == settings.temperature else ["greedy" if temperature == 0 else f"T {temperature:g}"]
    words += [] if samples == settings.samples else [f"{samples} samples"]
    words += [] if seed == config.run.seed else [f"seed {seed}"]
    source, place = questions.sources[name], questions.places[benchmark]
    return Cell(", ".join(words), source, protocol, benchmark, temperature, samples, seed, place)
