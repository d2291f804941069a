"""Stage 1: sequential rejection sampling, assembly, fine-tuning."""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srl.config import ConfigError, Stage1Config
from srl.driver.session import Session
from srl.learner.batch import Example
from srl.learner.checkpoint import Checkpoints, read_state
from srl.learner.group import LearnerGroup, LearnerLost
from srl.learner.losses import Loss, sft_loss
from srl.learner.losses.outcome import outcome_loss
from srl.learner.model import check_tokens
from srl.learner.schedule import schedule
from srl.observe.records import forget
from srl.pipelines.assemble import assemble, load_demonstrations
from srl.pipelines.attempts import load_attempts, share_right
from srl.pipelines.card import write_card
from srl.pipelines.sample import Block, SamplingPass, sample
from srl.pipelines.samples import sample_files
from srl.protocols.chat import model_folder
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, TurnKind


def sample_demonstrations(session: Session, problems: list[Problem], progress: Callable[[int], None]) -> None:
    """Attempts, verdicts and revisions of every problem, from the base model, or none when `stage1.samples` has them."""
    if session.config.stage1.samples:
        return
    passes = sampling_passes(session.config.stage1, session.base, session.run.file("stage1"))
    rewards = session.rewards()
    session.stop_engines()  # the pipeline's actors have engines of their own
    for number, work in enumerate(passes):
        # Problems are counted in the pass that completes them.
        blocks = sample(session.config, problems, rewards, work, progress if work is passes[-1] else lambda count: None)
        if blocks:
            session.run.record("sample", number, **throughput(blocks))


def throughput(blocks: list[Block]) -> dict[str, float]:
    """Of blocks that were sampled side by side: how much, and how fast."""
    seconds = max(block.ended for block in blocks) - min(block.started for block in blocks)
    totals = {name: sum(getattr(block, name) for block in blocks) for name in ("problems", "samples", "tokens")}
    return {**totals, "seconds": round(seconds, 2), "tokens_per_s": round(totals["tokens"] / max(seconds, 1e-9), 1)}


def sampling_passes(settings: Stage1Config, base: str, folder: Path) -> list[SamplingPass]:
    """One pass of the base model; with a teacher two, the second over the samples of the first.

    Raises ConfigError for a teacher with other tokens: what it writes is joined with the base model's ids.
    """
    if not settings.teacher:
        return [SamplingPass(folder / "samples", base)]
    teacher = model_folder(settings.teacher)
    check_tokens(teacher, base, "stage1.teacher")
    first = folder / "samples-before"
    if settings.teacher_writes == "attempt":
        rest = (TurnKind.VERDICT, TurnKind.REVISION)
        return [SamplingPass(first, teacher, (TurnKind.ATTEMPT,)), SamplingPass(folder / "samples", base, rest, first)]
    judged = (TurnKind.ATTEMPT, TurnKind.VERDICT)
    return [SamplingPass(first, base, judged), SamplingPass(folder / "samples", teacher, (TurnKind.REVISION,), first)]


def assemble_demonstrations(session: Session) -> dict:
    """D1, D2, D3; the data card as numbers, text and plots; the difficulty of every problem."""
    folder = session.run.file("stage1")
    samples = Path(session.config.stage1.samples or folder / "samples")
    sample_files(samples)
    session.rewards()  # Ray is up from here on
    card, difficulty = assemble(session.config, samples, folder / "demonstrations.parquet")
    pq.write_table(pa.Table.from_pylist(difficulty), folder / "difficulty.parquet")
    write_card(card, folder)
    session.judge_grader({outcome: card["counts"].get(f"attempts {outcome}", 0) for outcome in Outcome})
    return card


@dataclass(frozen=True, slots=True)
class Fit:
    """A training on fixed examples, with the settings of `sft`. Measurements are recorded under its phase."""

    phase: str
    checkpoint: str
    loss: Loss
    critic: bool = False


FINE_TUNING = Fit("sft", "ift", sft_loss)
REWARD_MODEL = Fit("orm", "orm", outcome_loss, critic=True)


def fine_tune(session: Session, say: Callable[[str], None]) -> None:
    """Supervised fine-tuning on the demonstrations."""
    demonstrations = demonstrations_file(session.run.path)
    train, validation = (load_demonstrations(demonstrations, split) for split in ("train", "validation"))
    if not train:
        raise ConfigError(f"{demonstrations}: one problem alone cannot be trained and held out; sample more with stage1.prompts")
    fit(session, FINE_TUNING, train, validation, say)


def demonstrations_file(run: Path) -> Path:
    """What the run in that directory is fine-tuned on. Raises ConfigError when stage 1 has not made it."""
    file = run / "stage1" / "demonstrations.parquet"
    if not file.exists():
        raise ConfigError(f"{file}: no demonstrations; run stage1 first, or take some with import")
    return file


def train_reward_model(session: Session, say: Callable[[str], None]) -> None:
    """The external outcome reward model (paper, tables 5 and 7): the base model with a scalar head, on graded attempts."""
    store = session.run.file("resume/orm-attempts.arrow")
    store.parent.mkdir(exist_ok=True)
    train, validation = load_attempts(session.config, session.run.file("stage1/samples"), session.chat, store)
    if not train:
        raise ConfigError("one problem alone cannot be trained and held out; sample more with stage1.prompts")
    say(f"{len(train)} graded attempts, {share_right(train):.0f} % of them right")
    fit(session, REWARD_MODEL, train, validation, say)
    store.unlink()


def fit(session: Session, what: Fit, train: Sequence[Example], validation: Sequence[Example], say: Callable[[str], None]) -> None:
    """Train the base model; the checkpoint with the lowest validation loss is kept.

    Learners that die begin again from the last checkpoint. Raises RuntimeError when they do more than `learner.retries` times.
    """
    config, settings = session.config, session.config.sft
    session.rewards()
    if config.rollout.colocate:
        session.stop_engines()
    room = session.room()
    learners = LearnerGroup(config, session.base, None, settings.weight_decay, settings.gradient_clip, what.critic, room)
    lost = False
    for left in range(config.learner.retries, -1, -1):
        try:
            if lost:
                learners.rebuild()
            train_epochs(session, what, learners, train, validation, say)
            break
        except LearnerLost as error:
            if not left:
                raise RuntimeError(f"learner.retries={config.learner.retries}: {error}") from error
            say(f"{error}; going on from the last checkpoint")
            lost = True
    learners.close()
    session.leave_room()


def train_epochs(
    session: Session,
    what: Fit,
    learners: LearnerGroup,
    train: Sequence[Example],
    validation: Sequence[Example],
    say: Callable[[str], None],
) -> None:
    """The optimizer steps that are left after the last checkpoint."""
    config, settings, run = session.config, session.config.sft, session.run
    store = Checkpoints(run.file(f"resume/{what.phase}"), config.learner.keep_checkpoints)
    first, best = continue_from(store, learners)
    forget(run.file("metrics.jsonl"), {what.phase: first})
    run.scalars.forget({what.phase: first})
    per_epoch = -(-len(train) // settings.batch)
    steps = per_epoch * settings.epochs
    rate = functools.partial(schedule, steps=steps, warmup_steps=round(settings.warmup * steps), decay=True)
    order: list[int] = []
    for step in range(first, steps):
        epoch, index = divmod(step, per_epoch)
        if step == first or index == 0:
            order = random.Random(f"{config.run.seed} {what.phase} {epoch}").sample(range(len(train)), len(train))
        learning_rate = settings.learning_rate * rate(step)
        batch = [train[place] for place in order[index * settings.batch : (index + 1) * settings.batch]]
        metrics = learners.train(batch, what.loss, learning_rate)
        run.record(what.phase, step, learning_rate=learning_rate, **metrics)
        if index == per_epoch - 1:
            loss = learners.evaluate(validation, what.loss)
            run.record(what.phase, step, loss=metrics["loss"], validation_loss=loss, learning_rate=learning_rate)
            say(f"epoch {epoch + 1}/{settings.epochs}  {step + 1} steps  loss {metrics['loss']:.4f}  validation {loss:.4f}")
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"sft.learning_rate={settings.learning_rate:g}: validation loss is {loss} after {step + 1} steps"
                )
            if loss < best:
                best = loss
                learners.save(run.file(f"checkpoints/{what.checkpoint}"))
        if index == per_epoch - 1 or (step + 1) % settings.checkpoint_every == 0:
            store.save(step + 1, {"step": step + 1, "best": best}, learners.save_state)


def continue_from(store: Checkpoints, learners: LearnerGroup) -> tuple[int, float]:
    """The step to go on with after the last checkpoint, and the lowest validation loss so far."""
    if (folder := store.latest()) is None:
        return 0, float("inf")
    learners.load_state(folder)
    state = read_state(folder)
    return state["step"], state["best"]
