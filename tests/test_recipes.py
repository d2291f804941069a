"""Every shipped recipe: loads, and takes one real step with vLLM, the grader and DeepSpeed on a shrunken configuration."""

import copy
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

import srl.driver.policy
from srl.config import RECIPES, Config, ConfigError, load_config
from srl.driver.cluster import connect
from srl.driver.policy import PolicyUpdate, recipe_functions
from srl.driver.sampling import new_group, sample_extra, sample_mixed
from srl.driver.session import Session
from srl.learner.group import LearnerGroup
from srl.observe.run_directory import RunDirectory
from srl.tasks.problems import Problem, chain_problems
from srl.trajectory import Trajectory
from tests.test_policy_update import page_files

pytestmark = pytest.mark.long

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
        ("rl.filters=[':f']", r"rl.filters=:f: there is none of that name; there are final_right, "),
        ("rl.filters=['.x:f']", r"rl.filters=.x:f: there is none of that name; there are final_right, "),
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


HEAT = 1.6
# The base model judges and corrects itself when it is asked to, so recipes for a stage-1 model take their step in that form.
ASKED = "protocol.name=prompted"
SMALL = [
    "rollout.threads=1", "learner.threads=1", "rl.prompts=8", "rl.group=5",
    "rl.mini_batches=1", "rl.learning_rate=1e-5", "rl.extra_share=0.3", "run.local_cpus=12",
]  # fmt: skip


def hotter(base: str, folder: Path) -> str:
    """The base model with all logits divided by HEAT. As it is, it corrects nearly everything and filters would find nothing."""
    shutil.copytree(base, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] / HEAT}, file, metadata={"format": "pt"})
    return str(folder)


class Stage:
    """Engine, grader and learners, started once, with a policy that errs in attempts, verdicts and revisions."""

    def __init__(self, directory: Path):
        self.overrides = [f"run.directory={directory}", *SMALL]
        self.page_files = page_files(directory)
        sys.path.insert(0, str(directory))  # before Ray starts: its workers look where this process looks
        config = load_config(None, self.overrides)
        connect(config)
        self.session = Session(config, RunDirectory(config))
        self.session.pool(), self.session.rewards()
        policy = hotter(self.session.base, directory / "hotter")
        self.learners = LearnerGroup(config, policy, policy, 0.0, 1.0)
        self.critic = LearnerGroup(config, policy, None, 0.0, 1.0, critic=True)
        self.sampled: dict[tuple[str, str], list[Trajectory]] = {}

    def group(self, *_, critic: bool = False, shared: object = None) -> LearnerGroup:
        return self.critic if critic else self.learners

    def with_recipe(self, *overrides: str) -> Session:
        """The same actors under another configuration."""
        session = copy.copy(self.session)
        session.config = load_config(None, [*self.overrides, *overrides])
        return session

    def publish(self) -> None:
        self.session.pool().load_weights(self.learners.publish(self.session.pool().version + 1))

    def sample(self, session: Session) -> list[Trajectory]:
        """Graded trajectories of one step by the learners' policy, the recipe's further groups among them."""
        self.publish()
        groups = [new_group(session, problem, f"rl/{session.pool().version}") for problem in problems(session.config)]
        asked = [trajectory for group in groups for trajectory in group]
        trajectories = session.pool().generate(session.config.protocol.name, asked, 1.0)
        session.grade(trajectories)
        return trajectories + sample_extra(session, trajectories)

    def sample_once(self, session: Session) -> list[Trajectory]:
        """The same for all recipes of a form: with learning rate 0 the policy stays the one that sampled them."""
        form = session.config.protocol.name, session.config.rl.extra
        if form not in self.sampled:
            self.sampled[form] = self.sample(session)
        return self.sampled[form]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("runs"))
    yield stage
    stage.session.close()
    sys.path.remove(str(stage.page_files[0].parent))


@pytest.fixture
def one_step(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Overrides -> configuration, metrics and trajectories of a step of real sampling and training."""
    monkeypatch.setattr(srl.driver.policy, "LearnerGroup", stage.group)

    def step(*overrides: str, learning_rate: float = 1e-5) -> tuple[Config, dict[str, float], list[Trajectory]]:
        session = stage.with_recipe(*overrides)
        update = PolicyUpdate(session.config, session.base, session.chat.opening(""))
        trajectories = stage.sample(session) if learning_rate else stage.sample_once(session)
        return session.config, update.step(trajectories, 0, learning_rate), trajectories

    return step


def problems(config: Config) -> list[Problem]:
    return chain_problems("train", config.rl.prompts, 5, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_the_recipe(name, one_step):
    chained = load_config(None, [f"recipe={name}"]).protocol.name in ("long_chain", "two_turn")
    config, metrics, trajectories = one_step(f"recipe={name}", *([ASKED] if chained else []), learning_rate=0.0)
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


def test_the_algorithm_of_the_documentation_runs_as_written(stage, one_step):
    config, metrics, trajectories = one_step(f"recipe={stage.page_files[1]}", ASKED)
    assert config.objective.loss == "careful:cispo" and metrics["optimizer_steps"] == 1
    assert metrics["ratio"] == pytest.approx(1, abs=1e-3) and metrics["capped"] == 0
    from careful import verdict_price

    assert any(price < 0 for trajectory in trajectories for price in verdict_price(trajectory))


def test_a_share_of_each_group_comes_from_the_policy_of_the_step_before(stage):
    session = stage.with_recipe("recipe=mdpo-mixture", ASKED, "rl.group=9")
    version = session.pool().version
    previous, current = (stage.learners.publish(version + ahead) for ahead in (1, 2))
    session.pool().load_weights(current)
    groups = sample_mixed(session, [new_group(session, problem, "rl/950") for problem in problems(session.config)[:2]], previous)
    versions = [[trajectory.turns[0].weight_version - version for trajectory in group] for group in groups]
    assert versions == [[1] * 3 + [2] * 6] * 2 and session.pool().version == version + 2
