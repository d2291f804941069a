"""A policy update on trajectories of an older policy, with a learner in this process."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

import srl.driver.policy
from srl.config import load_config
from srl.driver.policy import PolicyUpdate
from srl.driver.rl import Training
from srl.learner.batch import Example, collate
from srl.learner.group import token_weight
from srl.learner.losses import Loss
from srl.learner.model import TokenLogprobs, load_model
from srl.protocols.chat import model_folder
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind


class OneProcess:
    """A learner group without Ray and DeepSpeed."""

    def __init__(self, config, path: str, reference: str | None, weight_decay: float, clip: float, **_):
        self.module = TokenLogprobs(load_model(path, config.model))
        self.start = TokenLogprobs(load_model(path, config.model))
        self.adam = torch.optim.AdamW(self.module.parameters(), weight_decay=weight_decay)

    def train(self, examples: Sequence[Example], loss: Loss, learning_rate: float) -> dict[str, float]:
        batch, count = collate(examples, 0), token_weight(examples)
        with torch.no_grad():
            batch.reference_logprobs = self.start(batch)[0]
        logprobs_t, _ = self.module(batch)
        value, sums = loss(logprobs_t, batch)
        (value / count).backward()
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad()
        return {name: float(total) / count for name, total in sums.items()}

    def logprobs(self, examples: Sequence[Example], model: str = "") -> dict[str, list[float]]:
        with torch.no_grad():
            return {e.id: (self.start if model else self.module)(collate([e], 0))[0].tolist() for e in examples}


@pytest.fixture
def update(monkeypatch) -> PolicyUpdate:
    monkeypatch.setattr(srl.driver.policy, "LearnerGroup", OneProcess)
    return PolicyUpdate(load_config(None, ["rl.mini_batches=1", "objective.kl=0.01"]), model_folder("embedded"), [1, 2])


def trajectories(update: PolicyUpdate, shift: float) -> list[Trajectory]:
    """One group with both outcomes, sampled by a policy that differs by `shift` nats on every token."""
    found = []
    for number in range(4):
        outcome = Outcome.CORRECT if number % 2 else Outcome.INCORRECT
        turn = Turn(TurnKind.ATTEMPT, [5 + number, 7, 9], logprobs=[0.0] * 3, outcome=outcome, answer="1")
        found.append(Trajectory(f"t/{number}", "p", "q", "1", [1, 2, 3], [turn]))
    scored = update.learners.logprobs([Example(t.id, t.token_ids(), [0.0] * 3 + [1.0] * 3) for t in found])
    for trajectory in found:
        trajectory.turns[0].logprobs = [value - shift for value in scored[trajectory.id]]
    return found


def test_the_sampling_policy_itself_needs_no_correction(update):
    plain = update.step(trajectories(update, 0.0), 0, 0.0)
    made_up = update.step(trajectories(update, 0.0), 0, 0.0, off_policy=True)
    assert made_up["sampler_gap"] == pytest.approx(0, abs=1e-5) and made_up["sampler_ratio"] == pytest.approx(1, abs=1e-5)
    assert all(made_up[name] == pytest.approx(value, abs=1e-5) for name, value in plain.items())
    assert plain["ratio"] == pytest.approx(1, abs=1e-5) and plain["kl"] == pytest.approx(0, abs=1e-5)


def test_what_another_policy_sampled_starts_at_ratio_one_with_truncated_weights(update):
    found = update.step(trajectories(update, 1.0), 0, 0.0, off_policy=True)
    assert found["ratio"] == pytest.approx(1, abs=1e-5) and found["clipped"] == 0
    # Every token is e times likelier now than when it was sampled: above the cap of 2.
    assert found["sampler_ratio"] == pytest.approx(2.71828, rel=1e-4) and found["sampler_truncated"] == 1
    raw = update.step(trajectories(update, 1.0), 0, 0.0)
    assert raw["ratio"] == pytest.approx(2.71828, rel=1e-4)


def test_a_step_in_which_every_sequence_is_masked_changes_nothing_and_says_so(update):
    update.config.rl.importance = "sequence_mask"
    before = update.learners.module.model.get_input_embeddings().weight.clone()
    found = update.step(trajectories(update, 1.0), 0, 1e-3, off_policy=True)
    assert found["sampler_masked"] == 1 and found["sampler_dropped"] == 4 and found["optimizer_steps"] == 0
    assert update.trained == set() and torch.equal(update.learners.module.model.get_input_embeddings().weight, before)
    found = update.step(trajectories(update, 0.5), 0, 1e-3, off_policy=True)
    assert found["sampler_dropped"] == 0 and len(update.trained) == 4
    assert not torch.equal(update.learners.module.model.get_input_embeddings().weight, before)


def test_trajectories_that_are_trained_are_named(update):
    update.config.objective.kl = 0.0
    same = trajectories(update, 0.0)
    for trajectory in same:
        trajectory.turns[0].outcome = Outcome.CORRECT
    update.step(same, 0, 0.0)
    assert update.trained == set()
    mixed = trajectories(update, 0.0)
    update.step(mixed, 0, 0.0)
    assert update.trained == {trajectory.id for trajectory in mixed}


def test_hands_are_shaken_only_by_workers_and_learners_that_agree(update):
    recorded = {}

    def shake(shift: float) -> None:
        pool = SimpleNamespace(generate=lambda protocol, asked, temperature: trajectories(update, shift))
        run = SimpleNamespace(record=lambda phase, step, **values: recorded.update(values))
        session = SimpleNamespace(config=update.config, pool=lambda: pool, run=run)
        Training.shake_hands(SimpleNamespace(session=session, update=update, validation=[], step=0))

    shake(0.0)
    assert recorded["tokens"] == 12 and recorded["gap"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(RuntimeError, match="disagree by 0.200 nats per token after a weight sync"):
        shake(0.2)


def test_hands_that_held_nothing_were_not_shaken(update):
    failed = [Trajectory(f"handshake/{n}", str(n), "", "", [1, 2], stop_reason=StopReason.FAILED) for n in range(4)]
    pool = SimpleNamespace(generate=lambda protocol, asked, temperature: failed)
    session = SimpleNamespace(config=update.config, pool=lambda: pool, run=None)
    with pytest.raises(RuntimeError, match="none of the first 4 trajectories after a weight sync could be sampled: failed"):
        Training.shake_hands(SimpleNamespace(session=session, update=update, validation=[], step=0))
