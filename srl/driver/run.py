"""The order of things: phases with names, each done once, each able to be the last one."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from srl.config import Config, ConfigError
from srl.driver.check import check_start
from srl.driver.cluster import connect
from srl.driver.evaluate import evaluate
from srl.driver.resume import prepare_upload
from srl.driver.rl import train_policy
from srl.driver.session import Session
from srl.driver.stage1 import assemble_demonstrations, fine_tune, sample_demonstrations, train_reward_model
from srl.evaluation.report.page import write_report
from srl.evaluation.table import format_table
from srl.observe.progress import bar, lines_as, say
from srl.observe.run_directory import RunDirectory, finished, start_over
from srl.observe.watchdog import observed

PHASES = {
    "evaluate-base": "the base model, prompted to judge and correct itself, and asked again without a verdict",
    "sample": "stage 1: attempts, verdicts and revisions from the base model",
    "assemble": "stage 1: demonstrations D1, D2, D3",
    "sft": "stage 1: fine-tuning on the demonstrations",
    "evaluate-ift": "the stage-1 model",
    "rl": "stage 2: reinforcement learning from the stage-1 model",
    "evaluate-rl": "the stage-2 model",
    "orm": "an external outcome reward model, from the graded attempts of stage 1",
}
COMMANDS = {
    "run": ["evaluate-base", "sample", "assemble", "sft", "evaluate-ift", "rl", "evaluate-rl"],
    "stage1": ["sample", "assemble"],
    "sft": ["sft"],
    "rl": ["rl"],
    "orm": ["orm"],
    "evaluate": ["evaluate-base", "evaluate-ift", "evaluate-rl"],
}
# A checkpoint can be measured before its training has ended; when that goes on, it was an earlier model's measurement.
MEASURED = {"sft": "evaluate-ift", "rl": "evaluate-rl"}


def run_phases(config: Config, *commands: str) -> RunDirectory:
    """Run the commands' phases that are not done yet, after `fresh` has deleted what was there."""
    lines_as(config.run.log, lambda: {"run": config.run.name})
    problems = check_start(config, left(config, commands))
    start_over(config)
    run = RunDirectory(config)
    lines_as(config.run.log, run.context)
    say(f"run {config.run.name} in {run.path}")
    session = Session(config, run)
    try:
        with run.alone():
            prepare_upload(config, run.path)
            connect(config)
            with observed(config, run):
                perform_missing(commands, run, session, problems)
    except KeyboardInterrupt:
        # Said before Ray goes down: a pipeline's thread that asks it something afterwards ends the process without a word.
        say("stopping; what is done is kept")
        raise
    finally:
        session.close()
    return run


def left(config: Config, commands: Sequence[str]) -> list[str]:
    """Phases of these commands that a start would perform."""
    path = RunDirectory.locate(config)
    done = {} if config.run.fresh else finished(path)
    wanted = [phase for command in commands for phase in COMMANDS[command] if phase not in done]
    return [phase for phase in wanted if commands != ("evaluate",) or has_checkpoint(path, phase)]


def perform_missing(commands: Sequence[str], run: RunDirectory, session: Session, problems: dict) -> None:
    """The commands' phases in order, except those that are done."""
    wanted = [phase for command in commands for phase in COMMANDS[command]]
    for index, phase in enumerate(wanted):
        if phase in run.done():
            say(f"[{index + 1}/{len(wanted)}] {phase}: done before ({run.done()[phase]:.0f} s)")
            continue
        if commands == ("evaluate",) and not has_checkpoint(run.path, phase):
            say(f"[{index + 1}/{len(wanted)}] {phase}: no such checkpoint yet, left out")
            continue
        say(f"[{index + 1}/{len(wanted)}] {phase}: {PHASES[phase]}")
        started = time.monotonic()
        if phase in MEASURED:
            run.undo(MEASURED[phase])
        with run.phase(phase):
            perform(phase, session, problems)
        shutil.rmtree(run.file(f"resume/{phase}"), ignore_errors=True)
        say(f"      {phase} took {time.monotonic() - started:.0f} s")


def perform(phase: str, session: Session, problems: dict) -> None:
    """One phase, by name."""
    if phase == "sample":
        train = flat(problems["train"])
        with bar(len(train), "problems") as progress:
            sample_demonstrations(session, train, progress)
    elif phase == "assemble":
        card = assemble_demonstrations(session)
        say("      " + "  ".join(f"{name} {count}" for name, count in card["classes"].items()))
    elif phase == "sft":
        fine_tune(session, indented)
    elif phase == "orm":
        train_reward_model(session, indented)
    elif phase == "rl":
        train_policy(session, flat(problems["rl"]), flat(problems["validation"]), indented)
    else:
        methods = {"evaluate-base": ["base", "intrinsic"], "evaluate-ift": ["ift"], "evaluate-rl": ["rl"]}[phase]
        for method in methods:
            for benchmark, tests in problems["test"].items():
                with bar(len(tests) * session.config.evaluate.samples, "trajectories") as progress:
                    row = evaluate(session, method, benchmark, tests, progress)
                numbers = "  ".join(f"{name} {row[name]:.1f}" for name in ("turn1", "final", "delta"))
                indented(f"{method} on {benchmark}: {numbers}")


def report(config: Config) -> None:
    """Table and report of a run that exists."""
    run_path = RunDirectory.locate(config)
    if not run_path.is_dir():
        raise ConfigError(f"{run_path}: no such run directory")
    show(RunDirectory(config))


def show(run: RunDirectory) -> None:
    rows = run.rows()
    if rows:
        say("\n" + format_table(rows) + "\n")
    say(f"report: {write_report(run.path)}")


def has_checkpoint(run: Path, phase: str) -> bool:
    return phase == "evaluate-base" or (run / "checkpoints" / phase.removeprefix("evaluate-")).is_dir()


def flat(by_name: dict[str, list]) -> list:
    return [problem for problems in by_name.values() for problem in problems]


def indented(text: str) -> None:
    say(f"      {text}")
