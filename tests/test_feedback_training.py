"""One RL step's trajectories under protocols with a judge, through the pool with real engine and graders, up to the learner."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from srl.config import Config, load_config
from srl.driver.cluster import connect
from srl.driver.policy import recipe_functions
from srl.driver.sampling import new_group
from srl.driver.session import Session
from srl.learner.batch import policy_example
from srl.learner.credit import assign_credit
from srl.observe.run_directory import RunDirectory
from srl.protocols.action import Judge
from srl.reward.rules import final_outcome
from srl.reward.shaping import turn_rewards
from srl.rollout.judges import of_calls
from srl.tasks.problems import chain_problems
from srl.trajectory import Outcome, StopReason, Trajectory, TurnKind, Verdict

I = TurnKind.INSTRUCTION  # noqa: E741
ENDS = {StopReason.ACCEPTED, StopReason.REJECTED, StopReason.ROUNDS}


@ray.remote(num_cpus=0)
class Scorer:
    """In place of a reward model: a score in 0..1 for an answer's text."""

    def score(self, question: str, text: str) -> float:
        return (len(question) + text.count("1")) % 2


def scorer(config: Config) -> Judge:
    actor = ray.get_actor("scorer")
    return of_calls(
        lambda trajectory: actor.score.remote(trajectory.question, trajectory.answers()[-1].text),
        lambda score: Verdict.CORRECT if score > 0.5 else Verdict.WRONG,
    )


def settings(directory: Path, name: str) -> Config:
    small = ["rollout.threads=1", "rollout.max_sequences=32", "rl.prompts=8", "rl.group=4", "run.local_cpus=8"]
    judge = f"protocol.judge=tests.{__name__}:scorer"  # workers import from the folder in which Ray was started
    return load_config(None, [f"run.directory={directory}", *small, judge, f"protocol.name={name}"])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    config = settings(tmp_path_factory.mktemp("runs"), "gold")
    connect(config)
    kept = Scorer.options(name="scorer").remote()
    session = Session(config, RunDirectory(config))
    yield session
    session.close()
    del kept


def step(session: Session, name: str) -> list[Trajectory]:
    """Graded trajectories of one step."""
    problems = chain_problems("train", session.config.rl.prompts, 5, 3, 4)
    groups = [new_group(session, problem, f"rl/{name}") for problem in problems]
    found = [trajectory for group in session.pool().stream(name, groups, 1.0) for trajectory in group]
    session.grade(found)
    return found


def should_be_told(name: str, trajectory: Trajectory) -> bool:
    first = trajectory.answers()[0]
    if name.startswith("judged"):
        return (len(trajectory.question) + first.text.count("1")) % 2 == 0
    return (first.outcome is Outcome.CORRECT) is name.startswith("misleading")


@pytest.mark.parametrize("form", ["", "_chain", "_two_turn"])
@pytest.mark.parametrize("judge", ["gold", "misleading", "judged"])
def test_what_the_judge_says_is_a_turn_that_is_neither_trained_nor_rewarded(session: Session, judge: str, form: str):
    name = judge + form
    config = settings(session.config.run.directory, name)
    trajectories = step(session, name)
    assert len(trajectories) == 32 and {trajectory.stop_reason for trajectory in trajectories} <= ENDS
    told = [trajectory for trajectory in trajectories if len(trajectory.turns) > 1]
    assert 0 < len(told) < 32
    assert [trajectory.id for trajectory in told] == [t.id for t in trajectories if should_be_told(name, t)]
    for trajectory in told:
        assert [turn.kind for turn in trajectory.turns] == [TurnKind.ATTEMPT, I, TurnKind.REVISION]
        assert trajectory.turns[1].verdict is Verdict.WRONG and not trajectory.turns[1].sampled
    rules, _, _ = recipe_functions(config)
    rewards = [turn_rewards(trajectory, rules) for trajectory in trajectories]
    assert [sum(own) for own in rewards] == [final_outcome(trajectory) for trajectory in trajectories]
    assert all(own[1] == 0 for own in rewards if len(own) > 1)
    advantages, _ = assign_credit(config.credit, config.critic, trajectories, rewards)
    assert any(abs(advantages_t).max() > 0.1 for advantages_t in advantages)
    for trajectory, advantages_t in zip(trajectories, advantages, strict=True):
        example = policy_example(trajectory, list(advantages_t))
        assert example.token_ids == trajectory.token_ids()
        trained = [0.0] * len(trajectory.prompt_token_ids)
        for turn in trajectory.turns:
            trained += [0.0 if turn.kind is I else 1.0] * len(turn.token_ids)
        assert example.weights == trained
