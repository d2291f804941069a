"""Evaluate models on benchmarks: sample, grade, count. What is measured is kept, so an interrupted evaluation continues."""

from collections.abc import Callable, Iterator
from typing import Any

from srl.config import Config
from srl.driver.problems import places_of_tests
from srl.driver.session import Session
from srl.evaluation.cell import Cell, Trajectories, fingerprint
from srl.evaluation.metrics import summarise
from srl.evaluation.scaling import scaling
from srl.observe.progress import say
from srl.tasks.problems import Problem
from srl.trajectory import StopReason, Trajectory, to_record

# Methods of a run: which model, and how it is asked; "" is the base model and the trained model's own protocol.
METHODS = {"base": ("", "prompted"), "intrinsic": ("", "intrinsic"), "ift": ("ift", ""), "rl": ("rl", "")}


def run_protocol(session: Session, protocol: str, name: str, problems: list[Problem]) -> list[Trajectory]:
    """One graded trajectory per problem, with the weights that the workers hold."""
    trajectories = [session.new_trajectory(f"{name}/{problem.prompt_id}", problem) for problem in problems]
    done = session.pool().generate(protocol, trajectories, session.config.evaluate.temperature)
    session.grade(done)
    return done


def evaluate(
    session: Session, method: str, benchmark: str, problems: list[Problem], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Measure one of `METHODS` and write its row and some of its trajectories to the run directory."""
    checkpoint, protocol = METHODS[method]
    config = session.config
    model = str(session.run.file(f"checkpoints/{checkpoint}")) if checkpoint else session.base
    settings = config.evaluate
    asked = protocol or config.own_protocol, benchmark, settings.temperature, settings.samples, config.run.seed
    cell = Cell(method, model, *asked, places_of_tests(config)[benchmark])
    return measure(session, cell, problems, progress)


def measure(session: Session, cell: Cell, problems: list[Problem], progress: Callable[[int], None]) -> dict[str, Any]:
    """Sample and grade what is missing of a cell, then write its row and some of its trajectories to the run directory.

    A trajectory's tokens depend on its id and the seed alone, so neither the number of workers nor an interruption changes the
    row. Raises ConfigError for a model folder without weights.
    """
    store = kept(session, cell)
    found, names = store.read(), wanted(cell, problems)
    missing = left(session, found, names)
    progress(len(names) - len(missing))
    if missing:
        session.use_weights(cell.model)
    for block in sample(session, cell, missing, progress):
        # What workers failed on says nothing of the model: it counts as wrong now and is asked again next time.
        store.add([trajectory for trajectory in block if trajectory.stop_reason is not StopReason.FAILED])
        found.update((trajectory.id, trajectory) for trajectory in block)
    if failed := sum(found[name].stop_reason is StopReason.FAILED for name, _ in names):
        say(
            f"WARNING {cell.method} on {cell.benchmark}: workers died or hung with {failed} of {len(names)} trajectories, which "
            "count as wrong; evaluate --model asks them again"
        )
    store.count(problem.prompt_id for problem in problems)
    return record(session, cell, [found[name] for name, _ in names])


def kept(session: Session, cell: Cell) -> Trajectories:
    return Trajectories(session.run.file(f"evaluations/{cell.slug()}"), identity(session.config, cell))


def wanted(cell: Cell, problems: list[Problem]) -> list[tuple[str, Problem]]:
    """Trajectories of a cell by id, with their problems."""
    return [
        (f"test/{cell.benchmark}/{problem.prompt_id}/{sample}", problem) for sample in range(cell.samples) for problem in problems
    ]


def complete(session: Session, cell: Cell, problems: list[Problem]) -> bool:
    """Whether nothing has to be sampled for the cell."""
    return not left(session, kept(session, cell).read(), wanted(cell, problems))


def left(session: Session, found: dict[str, Trajectory], wanted: list[tuple[str, Problem]]) -> list[tuple[str, Problem]]:
    """What is not there, or only under another gold answer or prompt: a benchmark's file and a chat template may be mended."""
    problems = {problem.prompt_id: problem for _, problem in wanted}
    now = {prompt_id: session.new_trajectory("", problem) for prompt_id, problem in problems.items()}

    def fits(name: str, prompt_id: str) -> bool:
        there = found.get(name)
        asked = now[prompt_id]
        return there is not None and (there.gold, there.prompt_token_ids) == (asked.gold, asked.prompt_token_ids)

    return [(name, problem) for name, problem in wanted if not fits(name, problem.prompt_id)]


def sample(
    session: Session, cell: Cell, wanted: list[tuple[str, Problem]], progress: Callable[[int], None]
) -> Iterator[list[Trajectory]]:
    """Graded trajectories as they finish, evaluate.block per worker at a time; the workers do not wait in between."""
    started = [session.new_trajectory(name, problem) for name, problem in wanted]
    for trajectory in started:
        trajectory.seed = cell.seed
    size, block = session.config.evaluate.block * session.config.rollout.workers, []
    for group in session.pool().stream(cell.protocol, ([trajectory] for trajectory in started), cell.temperature):
        session.begin_grading(group)
        block += group
        progress(len(group))
        if len(block) >= size:
            session.grade(block)
            yield block
            block = []
    if block:
        session.grade(block)
        yield block


def record(session: Session, cell: Cell, trajectories: list[Trajectory]) -> dict[str, Any]:
    """The row of a cell, also written to results.json."""
    settings = session.config.evaluate
    row = summarise(
        trajectories, method=cell.method, benchmark=cell.benchmark, temperature=cell.temperature, bootstrap=settings.bootstrap
    )
    row |= {"model": cell.model, "protocol": cell.protocol, "samples": cell.samples, "seed": cell.seed, "source": cell.source}
    row |= {"judge": session.config.protocol.judge} if cell.protocol.startswith("judged") else {}
    row["evaluation"] = cell.slug()
    if cell.samples > 1:
        row["scaling"] = scaling(trajectories)
    session.run.add_row(row, [to_record(trajectory) for trajectory in trajectories[: settings.samples_kept]])
    return row


def identity(config: Config, cell: Cell) -> dict[str, Any]:
    """Everything besides the cell itself that decides what the model answers and how that is graded."""
    rollout, model, protocol = config.rollout, config.model, config.protocol.model_dump()
    if not cell.protocol.startswith("judged"):
        protocol["judge"] = ""
    return {
        "weights": fingerprint(cell.model),
        "model": {"dtype": model.dtype, "max_length": model.max_length},
        "prompts": config.prompts.model_dump(),
        "protocol": protocol,
        "tokens": [rollout.max_attempt_tokens, rollout.max_verdict_tokens, rollout.max_response_tokens],
    } | ({"judge": fingerprint(protocol["judge"])} if protocol["judge"] else {})
