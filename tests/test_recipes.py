"""Every shipped recipe: loads, and takes one real step with vLLM, the grader and DeepSpeed on a shrunken configuration."""

import copy
import math
from collections.abc import Iterator

import pytest
import yaml

import srl.driver.policy
from srl.config import RECIPES, Config, ConfigError, load_config
from srl.driver.policy import PolicyUpdate, recipe_functions
from srl.driver.sampling import sample_extra, sample_groups
from srl.driver.session import Session, connect
from srl.learner.batch import Example
from srl.learner.group import LearnerGroup
from srl.learner.losses import sft_loss
from srl.observe.run_directory import RunDirectory
from srl.pipelines.filters import final_right, verdicts_agree
from srl.tasks.problems import Problem, chain_problems
from srl.trajectory import Trajectory

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
ALGORITHM = {"protocol", "rl", "credit", "objective", "critic"}
# What a recipe leaves to the model and the machine: it must go with any --config.
SCALE = {"steps", "prompts", "mini_batches", "learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "evaluate_every"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_sets_the_algorithm_only_and_everything_it_names_exists(name):
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert set(settings) <= ALGORITHM
    assert not SCALE & set(settings.get("rl", {})) or name == "spoc-raft"
    config = load_config(None, [f"recipe={name}"])
    recipe_functions(config)
    for section, values in settings.items():
        assert {key: config.model_dump()[section][key] for key in values} == values
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


def test_a_recipe_goes_over_the_file_and_overrides_go_over_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rl: {steps: 3, start: base}\nobjective: {kl: 0.5}\nrun: {recipe: pag}\n")
    assert load_config(str(file), []).objective.kl == 0.0 and load_config(str(file), []).rl.steps == 3
    assert load_config(str(file), ["objective.kl=0.2", "recipe=rloo"]).objective.kl == 0.2
    assert load_config(str(file), ["recipe=rloo"]).credit.advantage == "rloo"
    own = tmp_path / "own.yaml"
    own.write_text("credit: {advantage: dr_grpo}\n")
    assert load_config(None, [f"recipe={own}"]).credit.advantage == "dr_grpo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=pog", r"run.recipe=pog: no such file; shipped: cream.yaml, dapo.yaml"),
        ("credit.rewards={wisdom: 1}", r"credit.rewards=wisdom: there is none of that name; there are turn_outcome, "),
        ("rl.filters=[none]", r"rl.filters=none: there is none of that name; there are final_right, "),
        ("objective.pairs=[d4]", r"objective.pairs=d4: there is none of that name; there are correctness, "),
        ("objective.loss=ppo", r"objective.loss=ppo: there is none of that name; there are policy, sft, dpo, kto, or "),
        ("objective.loss=math:cosine", r"objective.loss=math:cosine: module 'math' has no attribute 'cosine'"),
        ("objective.loss=nowhere:f", r"objective.loss=nowhere:f: No module named 'nowhere'"),
        ("objective.dual_clip=0.5", r"objective.dual_clip=0.5 must be above 1"),
        ("objective.kl_estimate=k1", r"objective.kl_estimate=k1 has no gradient on average as a loss"),
    ],
)  # fmt: skip
def test_a_choice_that_does_not_exist_is_refused_with_what_there_is(override, message):
    with pytest.raises(ConfigError, match=message):
        recipe_functions(load_config(None, [override]))


# --- one real step


# Typed pairs are rare in groups of a model that is seldom wrong.
LARGER = {"dpo-typed": ["rl.prompts=24", "rl.group=8"]}
SMALL = [
    "rollout.threads=1", "learner.threads=1", "rl.prompts=8", "rl.group=5",
    "rl.mini_batches=1", "rl.learning_rate=1e-5", "rl.extra_share=0.3", "run.local_cpus=12",
]  # fmt: skip


class Stage:
    """Engine, grader and learners, started once; the learners hold a model that writes long chains."""

    def __init__(self, directory: str):
        self.overrides = [f"run.directory={directory}", *SMALL]
        config = load_config(None, self.overrides)
        connect(config)
        self.session = Session(config, RunDirectory(config))
        self.learners = LearnerGroup(config, self.session.base, self.session.base, 1e-3, 0.0, 1.0)
        self.critic = LearnerGroup(config, self.session.base, None, 1e-3, 0.0, 1.0, critic=True)
        self.teach_chains()
        self.learners.freeze("reference")

    def teach_chains(self) -> None:
        """Stage 1 in small: the base model's own prompted trajectories as one message each."""
        problems = chain_problems("train", 200, 1, 3, 4)
        asked = [self.session.new_trajectory(f"t/{problem.prompt_id}", problem) for problem in problems]
        done = self.session.pool().generate("prompted", asked, 1.0)
        self.session.grade(done)
        demonstrations = [self.joined(trajectory) for trajectory in verdicts_agree(final_right(done))]
        assert len(demonstrations) > 60
        for _ in range(3):
            for start in range(0, len(demonstrations), 32):
                self.learners.train(demonstrations[start : start + 32], sft_loss, 1e-3)

    def joined(self, trajectory: Trajectory) -> Example:
        chat, pieces = self.session.chat, []
        for turn in trajectory.turns:
            if turn.sampled:
                pieces += chat.joiner() if pieces else []
                pieces += [token for token in turn.token_ids if token not in chat.stop_ids]
        prompt = trajectory.prompt_token_ids
        return Example(trajectory.id, prompt + pieces + [chat.end_id], [0.0] * len(prompt) + [1.0] * (len(pieces) + 1))

    def group(self, *_, critic: bool = False) -> LearnerGroup:
        return self.critic if critic else self.learners

    def with_recipe(self, *overrides: str) -> Session:
        """The same actors under another configuration, the engine with the learners' weights."""
        session = copy.copy(self.session)
        session.config = load_config(None, [*self.overrides, *overrides])
        bundle, _ = self.learners.publish(session.pool().version + 1)
        session.pool().load_weights(bundle)
        return session


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(str(tmp_path_factory.mktemp("runs")))
    yield stage
    stage.session.close()


def one_step(stage: Stage, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Config, dict[str, float], list[Trajectory]]:
    monkeypatch.setattr(srl.driver.policy, "LearnerGroup", stage.group)
    session = stage.with_recipe(*overrides)
    update = PolicyUpdate(session.config, session.base, session.chat.opening(""))
    trajectories = sample_groups(session, problems(session.config), session.pool().version, None)
    session.grade(trajectories)
    trajectories += sample_extra(session, trajectories)
    return session.config, update.step(trajectories, 0, 1e-5), trajectories


def problems(config: Config) -> list[Problem]:
    return chain_problems("train", config.rl.prompts, 5, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_the_recipe(name, stage, monkeypatch):
    config, metrics, trajectories = one_step(stage, monkeypatch, f"recipe={name}", *LARGER.get(name, []))
    assert metrics["optimizer_steps"] >= 1 and all(math.isfinite(value) for value in metrics.values())
    assert all(trajectory.reward is not None for trajectory in trajectories)
    assert metrics["gradient_norm"] > 0 and metrics["trained_tokens"] > 0
    if config.objective.loss == "policy":
        assert metrics["ratio"] == pytest.approx(1, abs=1e-3)
        assert metrics["clipped"] == 0 and abs(metrics["logprob_gap"]) < 1e-3
    if config.credit.advantage == "gae":
        assert metrics["critic_loss"] > 0
    if config.objective.loss == "dpo":
        assert metrics["pairs"] > 0 and metrics["trained_tokens"] == pytest.approx(metrics["pairs"])
    kinds = {turn.kind.value for trajectory in trajectories for turn in trajectory.turns if turn.sampled}
    expected = {"attempt": {"attempt"}, "intrinsic": {"attempt", "revision"}}
    assert kinds == expected.get(config.protocol.name, {"attempt", "verdict", "revision"}) | (
        {"verdict"} if config.rl.extra == "verification" else set()
    )
