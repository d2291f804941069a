"""Stage 2: roll out, grade, update, send the weights back; keep the policy that does best on validation.

With `rl.ahead` 0 each step samples from the policy that it trains; else sampling runs ahead by so many steps, and what is left
of the difference is made up for.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srl.config import Config, ConfigError
from srl.driver.evaluate import run_protocol
from srl.driver.flow import REPLACED, Flow, has_failed
from srl.driver.ledger import Ledger, Stream
from srl.driver.policy import PolicyUpdate, logprobs
from srl.driver.policy_versions import PolicyVersions
from srl.driver.resume import checkpoints, forget_after, load, restore_best, save
from srl.driver.sampling import sample_extra
from srl.driver.selection import Selection
from srl.driver.session import Session
from srl.driver.step_record import Clock, step_line, step_metrics
from srl.evaluation.metrics import summarise
from srl.learner.batch import policy_example
from srl.learner.correction import policy_age
from srl.learner.group import LearnerLost
from srl.learner.schedule import schedule
from srl.observe.alarms import alarms, remember
from srl.observe.run_directory import append_line
from srl.protocols.chat import model_folder
from srl.rollout.fleet import WeightsLost
from srl.tasks.problems import Problem
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle

HANDS = 4  # trajectories of the handshake
MOST_GAP = 0.1  # mean |difference| of log-probabilities, nats per token; bfloat16 has a few thousandths


def train_policy(session: Session, problems: list[Problem], validation: list[Problem], say: Callable[[str], None]) -> None:
    """Stage 2 as the recipe says; writes the policy that did best on validation to checkpoints/rl."""
    if session.config.rollout.colocate:
        session.stop_engines()  # learners load their model first
    start = start_folder(session.config, session.run.path)
    update = PolicyUpdate(session.config, start, session.chat.opening(""), session.room())
    train(Training(session, update, problems, validation, say))
    update.close()


def train(training: "Training") -> None:
    """All steps, from the last checkpoint on if there is one; with `learner.upload`, until the last one has been copied too.

    Raises RuntimeError when learners die more than `learner.retries` times.
    """
    retries, losses = training.session.config.learner.retries, 0
    prepare: Callable[[], None] | None = training.begin
    while prepare or not training.finished():
        try:
            if prepare:
                prepare()
                prepare = None
            else:
                training.one_step()
        except (LearnerLost, WeightsLost) as error:
            losses += 1
            if losses > retries:
                raise RuntimeError(f"learner.retries={retries}: {error}") from error
            training.say(f"step {training.step + 1}: {error}; going on from the last checkpoint")
            prepare = training.recover
    training.flow.close()
    training.store.close()
    best = training.selection
    training.say(f"kept: step {best.best_step}, final {best.best[0]:.1f}")


class Training:
    """What lasts from step to step. `step` is the next one."""

    def __init__(
        self,
        session: Session,
        update: PolicyUpdate,
        problems: list[Problem],
        validation: list[Problem],
        say: Callable[[str], None],
    ):
        self.session, self.update, self.validation, self.say = session, update, validation, say
        settings = session.config.rl
        self.ledger = Ledger(settings.prompts, settings.ahead)
        self.flow = Flow(session, Stream(problems, session.config.run.seed), self.ledger)
        self.selection = Selection(settings.patience)
        self.store = checkpoints(session.config, session.run.path)
        self.step, self.versions = 0, PolicyVersions()
        self.history: list[dict[str, Any]] = []
        self.taken: dict[int, list[Trajectory]] = {}
        self.refills, self.replaced = 0, {}  # of this step: how often groups were replaced, and which, by position
        self.previous: Bundle | None = None

    def begin(self) -> None:
        """From the last checkpoint, or from the start; either way the learners' weights go the whole way before anything else."""
        self.session.policy_moves()
        folder = self.store.latest()
        if folder is None:
            forget_after(self.session.run, -1)
            self.publish()
            self.shake_hands()
            self.validate()
            self.save()
            return
        self.load(folder)
        self.flow.begin_again(self.step)
        restore_best(folder, self.session.run.file("checkpoints/rl"))
        self.say(f"continuing with step {self.step + 1}")
        self.publish()
        self.shake_hands()

    def recover(self) -> None:
        """After a learner's death, also when only its weights are missed: new learners, the last checkpoint.

        What was sampled stays if it is from the same step, but for a mixture: that is sampled whole or not at all. The next
        death may come at any call to learners or pool. None is between the ledger and the flow, so that they always fit.
        """
        self.rest()
        self.update.rebuild()
        if (folder := self.store.latest_here()) is None:
            self.begin()
            return
        before, in_flight = self.step, self.ledger.to_record()
        self.load(folder)
        if self.step == before and not self.session.config.rl.previous_share:
            self.ledger.restore(in_flight)
            self.flow.put_back(self.taken)
        else:
            self.flow.new_life(self.step)
            self.refills, self.replaced = 0, {}
        self.taken = {}
        self.publish()

    def load(self, folder: Path) -> None:
        """The checkpoint's state, also of the ledger; whether the flow still fits is for the caller to say."""
        self.step, version, self.previous = load(folder, self.session.config, self.update, self.ledger, self.selection)
        self.versions.go_on_after(version)
        if self.previous is not None:
            self.versions.is_of_the_step_before(self.previous.version)
        self.history = forget_after(self.session.run, self.step)

    def shake_hands(self) -> None:
        """In the first minute: what the rollout workers sample with the weights they were sent is what the learners would say.

        Raises RuntimeError when the two disagree on a token by more than float noise explains, or nothing was sampled to compare.
        """
        asked = [self.session.new_trajectory(f"handshake/{problem.prompt_id}", problem) for problem in self.validation[:HANDS]]
        done = self.session.pool().generate(self.session.config.own_protocol, asked, 1.0)
        scored = self.update.learners.logprobs([policy_example(trajectory, 0.0) for trajectory in done])
        gaps = [
            abs(now - sampled)
            for trajectory in done
            for now, sampled in zip(scored[trajectory.id], logprobs(trajectory), strict=True)
        ]
        if not gaps:
            reasons = ", ".join(sorted({str(trajectory.stop_reason) for trajectory in done}))
            raise RuntimeError(f"none of the first {len(done)} trajectories after a weight sync could be sampled: {reasons}")
        gap = sum(gaps) / len(gaps)
        self.session.run.record("handshake", self.step, gap=gap, gap_max=max(gaps), tokens=len(gaps))
        if gap > MOST_GAP:
            raise RuntimeError(f"learners and rollout workers disagree by {gap:.3f} nats per token after a weight sync")

    def finished(self) -> bool:
        return self.step >= self.session.config.rl.steps or self.selection.exhausted

    def one_step(self) -> None:
        """Sample, grade, update, send the weights back, measure, save."""
        clock, settings = Clock(), self.session.config.rl
        self.sample(clock)
        trajectories = [t for group in self.taken.values() if not has_failed(group) for t in group]
        if not trajectories:
            raise RuntimeError(f"step {self.step + 1}: none of {len(self.taken)} groups could be sampled")
        extra = sample_extra(self.session, trajectories)
        self.rest()
        clock.lap("reward_s")
        policy_steps = max(0, self.step - self.update.first_step)
        rate = settings.learning_rate * schedule(policy_steps, settings.steps, settings.warmup_steps, decay=False)
        age = policy_age(trajectories, self.versions.ages())
        off_policy = age["policy_age_max"] > 0 or self.session.config.model.dtype == "bfloat16"
        updated = {**self.update.step(trajectories + extra, self.step, rate, off_policy), **age}
        clock.lap("learner_s")
        if updated["optimizer_steps"] or self.session.config.rollout.colocate:  # who sleeps has forgotten the weights
            self.previous = self.session.pool().fleet.weights if settings.previous_share else None
            updated |= self.publish(changed=updated["optimizer_steps"] > 0)
        clock.lap("weights_s")
        updated |= {"groups_replaced": len(self.replaced)} if settings.refill else {}
        self.settle()
        metrics = step_metrics(trajectories, updated, clock, rate, self.session.pool().version)
        metrics |= {f"rollout_{name}": count for name, count in self.session.pool().metrics().items()}
        self.session.run.record("rl", self.step, **metrics)
        self.say(step_line(self.step, settings.steps, metrics))
        tell_alarms(self.session, self.history, {"step": self.step, **metrics}, self.say)
        self.step += 1
        better = (self.step % settings.evaluate_every == 0 or self.step == settings.steps) and self.validate()
        # With a new best policy there is a checkpoint that knows of it: after a kill its step may come out otherwise.
        if better or self.step % self.session.config.learner.checkpoint_every == 0 or self.finished():
            self.save()

    def sample(self, clock: Clock) -> None:
        """Take this step's groups, graded; those without signal are replaced, `rl.refill` times at most."""
        graded: set[int] = set()
        while True:
            self.flow.admit(self.step, self.previous)
            self.taken = self.flow.take(self.step)
            clock.lap("rollout_s")
            whole = {position: group for position, group in self.taken.items() if not has_failed(group)}
            self.session.grade([t for position, group in whole.items() if position not in graded for t in group])
            graded |= whole.keys()
            clock.lap("reward_s")
            if self.refills == self.session.config.rl.refill:
                return
            if not (silent := {position: group for position, group in whole.items() if not self.update.has_signal(group)}):
                return
            self.refills += 1
            self.replaced |= silent
            self.flow.replace(silent)
            self.flow.put_back({position: group for position, group in self.taken.items() if position not in silent})
            self.taken = {}

    def publish(self, changed: bool = False) -> dict[str, float]:
        """Every rollout worker holds the learners' weights, `changed` or not. Seconds and bytes of the parts of the way."""
        self.rest()
        started = time.monotonic()
        self.versions.go_on_after(self.session.pool().version)
        weights = self.update.learners.publish(self.versions.next(changed))
        sent = time.monotonic()
        parts = self.session.pool().load_weights(weights)
        done = time.monotonic()
        self.versions.arrived()
        parts |= {"wait": done - sent - parts.get("transfer", 0.0) - parts.get("load", 0.0), "all": done - started}
        parts |= weights.seconds
        return {**{f"sync_{name}_s": round(value, 4) for name, value in parts.items()}, "sync_bytes": weights.size}

    def rest(self) -> None:
        """Engines beside the learners finish what they have and sleep until weights come."""
        if self.session.config.rollout.colocate:
            self.session.pool().sleep()

    def settle(self) -> None:
        """The slots of what was trained are free, and the ledger's file says what became of each prompt."""
        outcomes = dict.fromkeys(self.replaced, REPLACED)
        for position, group in self.taken.items():
            trained = any(trajectory.id in self.update.trained for trajectory in group)
            outcomes[position] = "failed" if has_failed(group) else "trained" if trained else "filtered"
        groups = self.replaced | self.taken
        lines = [{"position": p, "prompt": groups[p][0].prompt_id, "outcome": o} for p, o in outcomes.items()]
        append_line(self.session.run.file("ledger.jsonl"), {"phase": "rl", "step": self.step, "groups": lines})
        self.ledger.settle({position: outcomes[position] for position in self.taken})
        self.taken, self.refills, self.replaced = {}, 0, {}

    def validate(self) -> bool:
        """Measure the policy that the workers hold; keep it if it is the best so far, and say whether it is."""
        row = validate(self.session, self.validation, self.step, self.say)
        better = self.step > 0 and self.selection.offer(self.step, row["final"], row["delta"])
        if better:
            self.update.learners.save(self.session.run.file("checkpoints/rl"))
        if self.selection.exhausted:
            patience = self.session.config.rl.patience
            self.say(f"step {self.step}: none of the last {patience} evaluations was better, RL ends")
        return better

    def save(self) -> None:
        best = self.session.run.file("checkpoints/rl")
        save(self.store, self.step, self.versions.newest, self.update, self.ledger, self.selection, self.previous, best)


def start_folder(config: Config, run: Path) -> str:
    """The model that stage 2 of the run in that directory starts from. Raises ConfigError when stage 1 has not made it."""
    start, folder = config.rl.start, run / "checkpoints" / "ift"
    if start == "ift" and not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder}: no model weights (*.safetensors); run sft first, or name a model with rl.start")
    return {"ift": str(folder), "base": model_folder(config.model.path)}.get(start, start)


def tell_alarms(session: Session, history: list[dict[str, Any]], metrics: dict[str, Any], say: Callable[[str], None]) -> None:
    """Add to the history; say and record what is wrong now and was not one step before."""
    before = alarms(history)
    remember(history, metrics)
    for name, meaning in alarms(history).items():
        if name not in before:
            say(f"ALARM {name}: {meaning}")
            session.run.record("alarm", metrics["step"], name=name, meaning=meaning, during="rl")


def validate(session: Session, problems: list[Problem], step: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the policy that the workers hold; the row that is recorded."""
    started = time.monotonic()
    trajectories = run_protocol(session, session.config.own_protocol, f"validation/{step}", problems)
    row = summarise(trajectories, method="rl", benchmark="validation", temperature=session.config.evaluate.temperature)
    kept = {name: row[name] for name in ("turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong")}
    session.run.record("rl-validation", step, **kept, seconds=round(time.monotonic() - started, 3))
    say(f"step {step:>3}  validation: turn 1 {row['turn1']:.1f}  final {row['final']:.1f}  delta {row['delta']:+.1f}")
    return row
