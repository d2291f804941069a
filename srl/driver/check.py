"""What can be refused before Ray starts and before anything is written: settings, files, folders, data."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fsspec.core import url_to_fs

from srl.config import Config, ConfigError
from srl.config.names import look_up
from srl.driver.cluster import check_address, check_port
from srl.driver.policy import recipe_functions
from srl.driver.problems import check_wording, load_task, load_tests, shared
from srl.driver.resume import checkpoints
from srl.driver.rl import start_folder
from srl.driver.stage1 import demonstrations_file, sampling_passes
from srl.learner.checkpoint import check_writable
from srl.learner.model import check_family, check_folder, check_model, check_start_model
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory, check_directory
from srl.observe.sinks import check_sinks
from srl.pipelines import assemble, attempts
from srl.pipelines.assemble import check_tokenizer
from srl.pipelines.samples import check_samples
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import TRAINABLE
from srl.rollout.judges import check_judge
from srl.rollout.machine import check_machine
from srl.rollout.recorded import read_trajectories
from srl.tasks.problems import Problem, load_problems, on_hub

Uses = dict[str, dict[str, list[Problem]]]
READ = {"assemble": assemble.COLUMNS, "orm": attempts.COLUMNS}  # of the samples, by phase


def check_start(config: Config, phases: Sequence[str]) -> Uses:
    """The task's problems, for a start of these phases: evaluations alone read no training data. Raises ConfigError."""
    check_settings(config, phases)
    check_port(config)
    check_address(config)
    if starts_engines(config, phases):
        check_engines(config)
    evaluates = bool(phases) and all(phase.startswith("evaluate-") for phase in phases)
    problems = {"test": load_tests(config)} if evaluates else load_task(config)
    for sentence in shared(problems):
        say(f"WARNING {sentence}")
    check_wording(config, every(problems))
    if upload := checkpoints(config, RunDirectory.locate(config)).upload:
        check_writable(upload)
    return problems


def check_dry(config: Config, phases: Sequence[str]) -> list[str]:
    """As `check_start` except for ports, libraries, clusters and the place of uploads; returns the data sets of the hub, not
    loaded."""
    check_settings(config, phases)
    task, limit = config.task, config.evaluate.problems
    sources = [source for source in (task.train, task.validation, *task.test.values()) if source]
    if not (hub := list(filter(on_hub, sources))):
        check_wording(config, every(load_task(config)))
    for source in sources if hub else ():
        if source not in hub:
            check_wording(config, load_problems(source, task.question_key, task.answer_key, limit))
    return hub


def check_settings(config: Config, phases: Sequence[str]) -> None:
    check_directory(config)
    check_model(config)
    if {"sft", "orm", "rl"} & set(phases):
        check_family(model_folder(config.model.path), "model.path")
    recipe_functions(config)
    look_up("protocol.name", config.protocol.name, TRAINABLE)
    check_judge(config.protocol.name, config)
    check_sinks(config.run.sinks)
    check_inputs(config, phases)
    try:
        url_to_fs(config.learner.upload)
    except (ValueError, ImportError, OSError) as error:  # there is no such protocol, its package is missing, no server answers
        raise ConfigError(f"learner.upload={config.learner.upload}: {error}") from None


def check_inputs(config: Config, phases: Sequence[str]) -> None:
    """Raises ConfigError where one of these phases, in this order, would miss a file or folder that a setting names, or that
    an earlier phase makes."""
    run, stage1, start = RunDirectory.locate(config), config.stage1, config.rl.start
    base = model_folder(config.model.path)
    named = {"stage1.samples": stage1.samples, "rl.start": start, "stage1.teacher": stage1.teacher}
    named["rollout.replay"] = config.rollout.replay
    if config.run.fresh:
        for setting, path in named.items():
            if path and Path(path).absolute().is_relative_to(run):
                raise ConfigError(f"{setting}={path}: fresh=true would delete it")
        if (first := phases[0]) == "sft" or (first == "rl" and start == "ift"):
            raise ConfigError(f"fresh=true would delete what {first} starts from; begin with run or stage1")
    if "sample" in phases and stage1.teacher and not stage1.samples:
        sampling_passes(stage1, base, run)
        check_folder(model_folder(stage1.teacher), "stage1.teacher")
    columns = {column for phase, read in READ.items() if phase in phases for column in read}
    if stage1.samples and columns:
        try:
            check_tokenizer(check_samples(Path(stage1.samples), sorted(columns))[0], Chat(base, config.prompts))
        except ConfigError as error:
            raise ConfigError(f"stage1.samples={stage1.samples}: {error}") from None
    elif columns and "sample" not in phases:
        check_samples(run / "stage1" / "samples", sorted(columns))
    if "sft" in phases and "assemble" not in phases:
        demonstrations_file(run)
    if "rl" in phases and start not in ("ift", "base"):
        check_start_model(start, base, "rl.start")
    elif "rl" in phases and "sft" not in phases:
        start_folder(config, run)
    if phases and config.rollout.replay:
        try:
            read_trajectories(Path(config.rollout.replay))
        except ConfigError as error:
            raise ConfigError(f"rollout.replay={error}") from None


def check_engines(config: Config) -> None:
    """Raises ConfigError when vLLM would run on the CPUs of this machine, which lacks what it needs."""
    _, address = config.run.cluster
    if not config.rollout.gpus and not address:
        check_machine()


def starts_engines(config: Config, phases: Sequence[str]) -> bool:
    """Whether one of these phases samples with vLLM."""
    if "sample" in phases and not config.stage1.samples:
        return True
    return not config.rollout.replay and any(phase == "rl" or phase.startswith("evaluate-") for phase in phases)


def every(uses: Uses) -> Iterator[Problem]:
    return (problem for by_name in uses.values() for problems in by_name.values() for problem in problems)
