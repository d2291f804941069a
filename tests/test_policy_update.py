"""The update without actors: a table of logits in place of the learners, every loss must make the right answer likelier."""

import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from ray import cloudpickle

import srl.driver.policy
from srl.config import RECIPES, Config, load_config
from srl.driver.policy import PolicyUpdate, mini_batches, recipe_functions
from srl.learner.batch import Example, collate
from srl.learner.losses import Loss
from srl.main import main
from srl.protocols.chat import model_folder
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict
from tests.test_shaping import went

PAGE = RECIPES / "README.md"
RIGHT, ARMS = 3, 4  # the token that answers right, and how many there are to choose from


class Table:
    """Learner group of one step: a policy that chooses one token by its logits; as a critic, one value for the only state."""

    def __init__(self, config: Config, start: str, reference: str | None, *_, critic: bool = False, shared: object = None):
        self.logits = torch.zeros(1 if critic else ARMS, requires_grad=True)
        self.frozen = {"reference": torch.zeros(ARMS).log_softmax(0)}
        self.critic, self.calls = critic, []

    def _scores(self, ids: torch.Tensor, model: str = "") -> torch.Tensor:
        return self.logits.expand(len(ids)) if self.critic else (self.frozen[model] if model else self.logits.log_softmax(0))[ids]

    def train(self, examples: list[Example], loss: Loss, learning_rate: float) -> dict[str, float]:
        self.calls.append([example.id for example in examples])
        batch = collate(examples, pad_id=0)
        ids = batch.ids[batch.trained]
        batch.reference_logprobs = self._scores(ids, "" if self.critic else "reference").detach()
        value, sums = loss(self._scores(ids), batch)
        (gradient,) = torch.autograd.grad(value / batch.weights.sum(), self.logits)
        self.logits = (self.logits - learning_rate * gradient).detach().requires_grad_()
        return {name: float(total) for name, total in sums.items()}

    def logprobs(self, examples: list[Example], model: str = "") -> dict[str, list[float]]:
        return {example.id: self._scores(torch.tensor(example.token_ids[1:]), model).tolist() for example in examples}

    values = logprobs

    def freeze(self, name: str) -> None:
        self.frozen[name] = self.logits.detach().log_softmax(0)


def sampled(table: Table, prompts: int, members: int, seed: int) -> list[Trajectory]:
    """One-token answers to prompts, graded: only token RIGHT is right."""
    dice, logprobs = random.Random(seed), table.logits.detach().log_softmax(0)
    found = []
    for prompt in range(prompts):
        for member in range(members):
            token = dice.choices(range(ARMS), logprobs.exp().tolist())[0]
            outcome = Outcome.CORRECT if token == RIGHT else Outcome.INCORRECT
            turn = Turn(TurnKind.ATTEMPT, [token], logprobs=[float(logprobs[token])], answer=str(token), outcome=outcome)
            found.append(Trajectory(f"{seed}/{prompt}/{member}", f"{prompt}", "", "", [0], [turn]))
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(srl.driver.policy, "LearnerGroup", Table)

    def start(*overrides: str) -> PolicyUpdate:
        return PolicyUpdate(load_config(None, ["critic.learning_rate=0.5", *overrides]), "start", [0])

    return start


ALGORITHMS = [
    "grpo", "dapo", "dr-grpo", "rloo", "reinforce-plus-plus", "ppo", "pag", "pag-grpo", "s2r-outcome", "s2r-process", "spoc",
    "rise-online", "self-aligned", "single-turn-raft", "dpo", "kto", "cream",
]  # fmt: skip


@pytest.mark.parametrize("recipe", ALGORITHMS)
def test_every_algorithm_makes_the_right_answer_likelier(recipe, started):
    update = started(f"recipe={recipe}", "objective.beta=1.0")
    for step in range(12):
        update.step(sampled(update.learners, prompts=8, members=6, seed=step), step, 0.5)
    probability = update.learners.logits.detach().softmax(0)[RIGHT].item()
    assert probability > 0.4, f"{probability:.2f} after 12 steps, 0.25 before"


def test_imitation_never_trains_a_wrong_answer_or_verdict(started):
    """Trajectories that judge and correct themselves: half of those that are kept begin wrong."""
    update = started("recipe=raft")
    update.learners.logits = torch.tensor([0.0, 0.0, 0.0, 3.0], requires_grad=True)
    before = update.learners.logits.detach().softmax(0)[RIGHT].item()
    for step in range(6):
        trajectories = sampled(update.learners, prompts=8, members=6, seed=step)
        for trajectory in trajectories:
            right = trajectory.turns[0].outcome is Outcome.CORRECT
            trajectory.turns.append(Turn(TurnKind.VERDICT, [0], verdict=Verdict.CORRECT if right else Verdict.WRONG))
            if not right:
                trajectory.turns.append(Turn(TurnKind.REVISION, [0], answer="3", outcome=Outcome.CORRECT))
        update.step(trajectories, step, 0.5)
    assert update.learners.logits.detach().softmax(0)[RIGHT].item() > before
    turns = [
        Turn(TurnKind.ATTEMPT, [1, 1], logprobs=[-1.0, -1.0], outcome=Outcome.INCORRECT),
        Turn(TurnKind.VERDICT, [1], logprobs=[-1.0], verdict=Verdict.CORRECT),
        Turn(TurnKind.VERDICT, [1], logprobs=[-1.0], verdict=Verdict.WRONG),
        Turn(TurnKind.INSTRUCTION, [1]),
        Turn(TurnKind.REVISION, [1], logprobs=[-1.0], outcome=Outcome.CORRECT),
    ]
    trajectories = [Trajectory("mixed", "p", "", "", [0], turns), Trajectory("wrong", "p", "", "", [0], turns[:2])]
    for average, weight in (("token", 1.0), ("sequence", 0.5)):
        examples, _, found = started("recipe=raft", f"objective.average={average}").demonstrations(trajectories)
        assert [example.id for group in examples for example in group] == ["mixed"] and found == {"demonstrations": 1}
        assert examples[0][0].weights == [0, 0, 0, 0, weight, 0, weight]


IMITATING = [
    name
    for name in sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if load_config(None, [f"recipe={name}"]).objective.loss == "sft"
]


@pytest.mark.parametrize("recipe", IMITATING)
@pytest.mark.parametrize("reason", [StopReason.LENGTH, StopReason.TOKENS])
def test_nothing_that_was_cut_by_a_token_limit_is_imitated(recipe, reason, started):
    """Cut after a right answer and a true verdict, each trajectory passes every other filter."""
    update = started(f"recipe={recipe}")
    codes = ["a+"] if update.config.protocol.name == "attempt" else ["a+ v+", "a- v- r+"]
    for stop, trained in ((StopReason.VERIFIED, set(codes)), (reason, set())):
        trajectories = [went(code, code, prompt=code, stop_reason=stop) for code in codes]
        for turn in (turn for trajectory in trajectories for turn in trajectory.turns):
            turn.token_ids = [RIGHT]
        found = update.step(trajectories, 0, 0.5)
        assert update.trained == trained
    assert found["dropped_untruncated"] == len(codes)


def page_files(directory: Path) -> list[Path]:
    """The files of configs/recipes/README.md, as they stand there."""
    files = re.findall(r"^`(\S+)`.*?:\n\n```\w+\n(.*?)```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["careful.py", "careful.yaml"]
    assert sum(len(content.splitlines()) for _, content in files) <= 60
    for name, content in files:
        (directory / name).write_text(content)
    return [directory / name for name, _ in files]


def test_the_algorithm_of_the_documentation_learns_as_written(started, tmp_path, monkeypatch):
    _, recipe = page_files(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    update = started(f"recipe={recipe}")
    steps = [update.step(sampled(update.learners, prompts=8, members=6, seed=step), step, 0.5) for step in range(12)]
    assert "capped" in steps[0] and "dropped_careful:with_a_wrong_attempt" in steps[0]
    assert update.learners.logits.detach().softmax(0)[RIGHT] > 0.4
    # Learners get the loss itself: where they run there may be no such module.
    (tmp_path / "loss").write_bytes(cloudpickle.dumps(update.policy_loss()))
    load = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).__name__)"
    done = subprocess.run([sys.executable, "-c", load, tmp_path / "loss"], cwd="/", capture_output=True, text=True)
    assert done.stdout == "cispo\n", done.stderr


def test_the_commands_of_the_documentation_find_the_algorithm(tmp_path, monkeypatch, capsys):
    page_files(tmp_path)
    (tmp_path / "runs/tiny/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/tiny/checkpoints/ift").symlink_to(model_folder("embedded"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    commands = re.findall(r"^    python -m srl.main (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main([*command.split(), "model.path=embedded", "--dry-run"]) == 0  # no download
        config = Config.model_validate(yaml.safe_load(capsys.readouterr().out))
        recipe_functions(config)
        assert config.objective.loss == "careful:cispo" and config.run.name in command.split("name=")[1]


def test_the_reference_becomes_the_policy_as_often_as_the_recipe_says(started):
    update = started("recipe=kto", "rl.reference_every=2")
    for step in range(4):
        update.step(sampled(update.learners, prompts=8, members=6, seed=step), step, 0.5)
        policy, reference = update.learners.logits.detach().log_softmax(0), update.learners.frozen["reference"]
        assert torch.equal(policy, reference) is (step in (1, 3))


def test_cream_compares_the_policy_with_that_of_the_step_before(started):
    update = started("recipe=cream")
    found = [update.step(sampled(update.learners, 8, 6, seed=step), step, 0.5) for step in range(4)]
    assert "consistency" not in found[0] and found[1]["consistency"] == 0.5  # a uniform first policy ranks nothing
    assert 0.5 < found[2]["consistency"] <= 1  # two policies one step apart rank alike


def test_a_kl_below_its_target_lowers_its_weight_and_one_above_raises_it(started):
    update = started("recipe=grpo", "objective.kl_target=1e-6", "rl.mini_batches=1")
    factors = [update.step(sampled(update.learners, 8, 6, seed=step), step, 0.5)["kl_factor"] for step in range(2)]
    assert factors == [pytest.approx(0.9), pytest.approx(0.99)]  # the first step's KL is 0


def test_while_the_critic_warms_up_the_policy_stays(started):
    update = started("recipe=ppo", "critic.warmup_steps=1")
    trajectories = sampled(update.learners, prompts=8, members=6, seed=0)
    alone = update.step(trajectories, 0, 0.5)
    assert "loss" not in alone and alone["optimizer_steps"] == 0  # so that no weights are sent, and none age
    assert not update.learners.logits.any() and update.critic.logits.item() != 0
    assert "loss" in update.step(trajectories, 1, 0.5) and update.learners.logits.any()


def test_groups_without_signal_are_left_out_and_counted(started):
    update = started("recipe=grpo", "rl.mini_batches=1", "objective.kl=0")
    trajectories = sampled(update.learners, prompts=2, members=6, seed=0)
    for trajectory in trajectories[:6]:
        trajectory.turns[0].outcome = Outcome.INCORRECT
    for number, trajectory in enumerate(trajectories[6:]):
        trajectory.turns[0].outcome = Outcome.CORRECT if number == 0 else Outcome.INCORRECT
    metrics = update.step(trajectories, 0, 0.5)
    assert (metrics["groups"], metrics["groups_without_signal"], metrics["optimizer_steps"]) == (2, 1, 1)
    assert update.learners.calls == [[trajectory.id for trajectory in trajectories[6:]]]


@pytest.mark.parametrize("setting", ["objective.kl=1", "objective.entropy=0.5"])
def test_groups_without_signal_are_trained_towards_the_reference_and_to_stay_open(started, setting):
    """Four arms of which one has nearly all of the probability, and every answer is wrong."""
    update = started("recipe=grpo", "rl.mini_batches=1", "objective.kl=0", setting)
    update.learners.logits = torch.tensor([2.0, 0.0, 0.0, 0.0], requires_grad=True)
    before = update.learners.logits.detach().softmax(0).max()
    for step in range(4):
        trajectories = sampled(update.learners, prompts=8, members=6, seed=step)
        for trajectory in trajectories:
            trajectory.turns[0].outcome = Outcome.INCORRECT
        metrics = update.step(trajectories, step, 0.5)
        assert (metrics["groups_without_signal"], metrics["optimizer_steps"]) == (8, 1)
    assert update.learners.logits.detach().softmax(0).max() < before - 0.05


def test_a_group_has_signal_when_the_rewards_of_its_members_differ(started):
    group = sampled(started("recipe=dapo").learners, prompts=1, members=3, seed=0)
    for outcomes, signal in (("ccc", False), ("www", False), ("cwc", True)):
        for trajectory, letter in zip(group, outcomes, strict=True):
            trajectory.turns[0].outcome = Outcome.CORRECT if letter == "c" else Outcome.INCORRECT
        assert started("recipe=dapo").has_signal(group) is signal
    for trajectory in group:
        trajectory.turns[0].outcome = Outcome.CORRECT
    assert started("recipe=self-aligned").has_signal(group)  # also rewarded for what the policy itself thinks


def test_a_step_in_which_nothing_can_be_learned_changes_nothing(started):
    for recipe in ("dapo", "dpo", "single-turn-raft"):
        update = started(f"recipe={recipe}")
        trajectories = sampled(update.learners, prompts=2, members=3, seed=0)
        for trajectory in trajectories:
            trajectory.turns[0].outcome = Outcome.INCORRECT
        assert update.step(trajectories, 0, 0.5)["optimizer_steps"] == 0 and not update.learners.calls


def test_only_what_a_loss_sees_counts_as_trained(started):
    """Prompt 0 has one right answer of three, prompt 1 none, prompt 2 is right throughout."""
    expected = {
        "grpo": {"0": 3, "1": 3, "2": 3},  # the KL is of all
        "dpo": {"0": 2},  # one pair; without a pair there is nothing to prefer
        "kto": {"0": 3, "1": 3, "2": 3},
        "single-turn-raft": {"0": 1, "2": 3},
        "dapo": {"0": 3},
    }
    for recipe, counts in expected.items():
        update = started(f"recipe={recipe}")
        trajectories = sampled(update.learners, prompts=3, members=3, seed=0)
        for number, trajectory in enumerate(trajectories):
            right = number == 0 or trajectory.prompt_id == "2"
            trajectory.turns[0].outcome = Outcome.CORRECT if right else Outcome.INCORRECT
        update.step(trajectories, 0, 0.5)
        assert Counter(t.prompt_id for t in trajectories if t.id in update.trained) == counts, recipe


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(started):
    update = started("recipe=grpo")
    trajectories = sampled(update.learners, prompts=4, members=6, seed=1)
    update.learners.logits = torch.full((ARMS,), float("nan"), requires_grad=True)
    with pytest.raises(FloatingPointError, match="RL step 7, optimizer step 0: loss, ratio"):
        update.step(trajectories, 7, 0.5)


def test_trajectories_in_which_nothing_was_sampled_are_dropped_and_counted(started):
    for recipe in ("grpo", "dpo", "kto", "ppo", "single-turn-raft"):
        update = started(f"recipe={recipe}")
        trajectories = sampled(update.learners, prompts=4, members=6, seed=1)
        trajectories.append(Trajectory("failed", "0", "", "", [0]))
        assert update.step(trajectories, 0, 0.5)["dropped_empty"] == 1 and trajectories[-1].reward == 0.0


def test_an_answer_that_the_grader_did_not_get_done_with_is_not_trained_as_wrong(started):
    for recipe in ("grpo", "kto", "pag"):
        update = started(f"recipe={recipe}")
        trajectories = sampled(update.learners, prompts=4, members=6, seed=1)
        trajectories[0].turns[0].outcome = Outcome.TIMEOUT
        metrics = update.step(trajectories, 0, 0.5)
        assert metrics["dropped_grader_timeout"] == 1 and metrics["dropped_empty"] == 0
        assert trajectories[0].id not in update.trained and trajectories[1].id in update.trained


def test_without_a_kl_no_reference_is_kept():
    kept = {
        name: load_config(None, [f"recipe={name}"]).objective.needs_reference
        for name in ("dapo", "pag", "raft", "dpo", "score-1")
    }
    assert kept == {"dapo": False, "pag": False, "raft": False, "dpo": True, "score-1": True}


def test_a_filter_may_change_the_order_and_every_trajectory_keeps_its_own_reward(started):
    update = started("recipe=grpo")
    trajectories = sampled(update.learners, prompts=2, members=4, seed=0)
    update.filters = {"best_first": lambda found: sorted(found, key=lambda trajectory: -trajectory.reward)}
    found = []
    update.comparisons = lambda kept, rewards: found.extend(zip(kept, rewards, strict=True)) or ([], None, {})
    update.step(trajectories, 0, 0.5)
    assert [sum(own) for _, own in found] == [trajectory.reward for trajectory, _ in found]
    assert [trajectory.id for trajectory, _ in found] != [trajectory.id for trajectory in trajectories]
    assert len({trajectory.reward for trajectory in trajectories}) == 2, "with equal rewards any order would do"


def test_rewards_of_the_trajectory_are_the_sum_over_its_turns(started):
    update = started("recipe=pag")
    turns = [
        Turn(TurnKind.ATTEMPT, [1], logprobs=[-1.0], outcome=Outcome.INCORRECT),
        Turn(TurnKind.REVISION, [3], logprobs=[-1.0], outcome=Outcome.CORRECT),
    ]
    trajectory = Trajectory("t", "p", "", "", [0], turns)
    assert update.reward([trajectory]) == [[0.0, 2.0]] and trajectory.reward == 2.0  # right, and better than before


def test_the_self_aligned_reward_adds_how_much_the_question_helps(started):
    update = started("recipe=self-aligned")
    update.learners.logits = torch.tensor([0.0, 0.0, 0.0, 0.0], requires_grad=True)  # alone: probability 1/4, perplexity 4
    turn = Turn(TurnKind.ATTEMPT, [RIGHT], logprobs=[float(torch.tensor(0.5).log())], outcome=Outcome.CORRECT)
    (rewards,) = update.reward([Trajectory("t", "p", "", "", [0], [turn])])
    assert rewards == [pytest.approx(1 + 0.2 * 0.5)]  # (4 - 2) / 4


def test_mini_batches_hold_whole_groups_and_none_is_empty():
    groups = [[SimpleNamespace(id=f"{group}{member}") for member in range(2)] for group in "abc"]
    found = [[example.id for example in batch] for batch in mini_batches(groups, 2)]
    assert found == [["a0", "a1", "c0", "c1"], ["b0", "b1"]]
    assert len(mini_batches(groups, 8)) == 3 and mini_batches([], 2) == []
