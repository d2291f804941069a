"""The loop of stage 2 with a simulated pool and learner: exactly once whenever it is killed, bounded staleness, lost learners.

The simulated policy is one number. A step adds to it what its groups are worth, which depends on the policy that sampled them,
so a group that is trained twice, left out, or sampled by the wrong policy changes the end.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.config import Config, ConfigError, load_config
from srl.driver import flow as flow_module
from srl.driver import resume, rl
from srl.driver.flow import Flow
from srl.driver.ledger import Ledger, Stream
from srl.driver.rl import Training
from srl.learner import checkpoint
from srl.learner.group import LearnerLost
from srl.observe.records import read_lines
from srl.observe.run_directory import append_line
from srl.observe.scalars import Scalars
from srl.rollout.fleet import WeightsLost
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind
from srl.weights.bundle import Bundle


class World:
    """Counts what happens outside the driver, and may end the process at any of it with kill -9."""

    def __init__(self, moment: int | None = None, lost: frozenset[int] = frozenset(), missed: frozenset[int] = frozenset()):
        self.moment, self.lost, self.missed, self.count = moment, lost, missed, 0
        self.asked: list[int] = []  # the moments at which a death of learners can show

    def tick(self, learner: bool = False, rollout: bool = False) -> None:
        self.count += 1
        if learner or rollout:
            self.asked.append(self.count)
        if self.count == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
        if learner and self.count in self.lost:
            raise LearnerLost("a learner died during a test")
        if rollout and self.count in self.missed:
            raise WeightsLost("a rollout worker started when the learner was dead")


class Pool:
    """Groups finish in random order, each sampled by the policy of the moment it was begun."""

    def __init__(self, world: World, seed: int):
        self.world, self.rng, self.running = world, random.Random(seed), []
        self.fleet, self.weights = SimpleNamespace(weights=None), 0.0
        self.held, self.asleep = Counter(), False

    @property
    def version(self) -> int:
        return self.fleet.weights.version if self.fleet.weights else 0

    def room(self) -> int:
        return 10**6

    def submit(self, protocol: str, groups: list[list[Trajectory]], temperature: float) -> None:
        self.world.tick()
        assert not self.asleep
        self.running += [self._sample(group) for group in groups]
        self.held[0] += sum(map(len, groups))

    def completed(self, timeout_s: float) -> list[list[Trajectory]]:
        if not self.running:
            return []
        self.world.tick(rollout=True)
        group = self.running.pop(self.rng.randrange(len(self.running)))
        self.held[0] -= len(group)
        return [group]

    def generate(self, protocol: str, trajectories: list[Trajectory], temperature: float) -> list[Trajectory]:
        self.world.tick(rollout=True)
        return self._sample(trajectories)

    def load_weights(self, bundle: Bundle) -> dict[str, float]:
        self.world.tick(rollout=True)
        self.fleet.weights, self.weights, self.asleep = bundle, bundle.buckets, False
        return {"transfer": 0.0, "load": 0.0}

    def sleep(self) -> None:
        """What runs was finished; the weights are gone."""
        self.world.tick()
        self.asleep, self.weights = True, float("nan")

    def metrics(self) -> dict[str, int]:
        return {"failed": 0}

    def _sample(self, group: list[Trajectory]) -> list[Trajectory]:
        for trajectory in group:
            worth = [int(trajectory.id.split("/")[1]) % 7 + self.weights]
            turn = Turn(TurnKind.ATTEMPT, [1], logprobs=worth, weight_version=self.version)
            trajectory.turns, trajectory.stop_reason = [turn], StopReason.ANSWERED
        return group


class Update:
    """Learner and policy update in one."""

    first_step = 0

    def __init__(self, world: World, pool: Pool):
        self.world, self.value, self.ages, self.learners = world, 1.0, [], self
        self.trained: set[str] = set()
        self.pool, self.beside = pool, []

    def step(self, trajectories: list[Trajectory], step: int, learning_rate: float, off_policy: bool) -> dict[str, float]:
        self.world.tick(learner=True)
        self.beside.append("asleep" if self.pool.asleep else "awake")
        version = max(turn.weight_version for t in trajectories for turn in t.turns)
        self.ages.append(off_policy)
        self.trained = {t.id for t in trajectories if int(t.id.split("/")[1]) % 5 and t.id.endswith("/1")}
        for trajectory in trajectories:
            trajectory.reward = 0.0
            self.value = 0.9 * self.value + 0.01 * trajectory.turns[0].logprobs[0]
        return {"optimizer_steps": 1, "groups": 1, "groups_without_signal": 0, "version": version}

    def has_signal(self, group: list[Trajectory]) -> bool:
        return int(group[0].id.split("/")[1]) % 3 > 0

    def publish(self, version: int) -> Bundle:
        self.world.tick(learner=True)
        return Bundle(version, self.value, 8, {"gather": 0.0, "pack": 0.0})

    def save(self, folder: Path) -> None:
        self.world.tick(learner=True)
        folder.mkdir(exist_ok=True)
        (folder / "value").write_text(str(self.value))

    def save_state(self, folder: Path) -> None:
        self.world.tick(learner=True)
        (folder / "value.json").write_text(json.dumps(self.value))
        self.world.tick()

    def load_state(self, folder: Path) -> None:
        self.world.tick()
        self.value = json.loads((folder / "value.json").read_text())

    def rebuild(self) -> None:
        self.beside.append("asleep" if self.pool.asleep else "awake")
        self.value = 1.0

    def to_record(self) -> dict:
        return {}

    def from_record(self, record: dict) -> None: ...

    def close(self) -> None: ...


class Session:
    """What `Training` asks of a session."""

    def __init__(self, config: Config, folder: Path, world: World, seed: int):
        self.config, self._pool = config, Pool(world, seed)
        self.world = world
        scalars = Scalars(folder / "tensorboard")
        self.run = SimpleNamespace(path=folder, file=lambda name: folder / name, record=self._record, scalars=scalars)
        self.folder, self.stopped, self.begun = folder, False, set()

    def _record(self, phase: str, step: int, **values) -> None:
        self.world.tick()
        append_line(self.folder / "metrics.jsonl", {"phase": phase, "step": step, **values})

    def pool(self) -> Pool:
        return self._pool

    def policy_moves(self) -> None: ...

    def stop_engines(self) -> None:
        self.stopped = True

    def begin_grading(self, trajectories: list[Trajectory]) -> None:
        self.begun.update(trajectory.id for trajectory in trajectories)

    def forget_grades(self) -> None:
        self.begun.clear()

    def grade(self, trajectories: list[Trajectory]) -> None:
        self.world.tick()
        assert self.begun.issuperset(trajectory.id for trajectory in trajectories), "graded only when all were sampled"
        for trajectory in trajectories:
            trajectory.turns[0].outcome = Outcome.INCORRECT

    def new_trajectory(self, name: str, problem: Problem) -> Trajectory:
        return Trajectory(name, problem.prompt_id, problem.question, problem.gold, [1])


STEPS, PROMPTS = 6, 3
PROBLEMS = [Problem(str(n), "q", "1") for n in range(7)]


@pytest.fixture(autouse=True)
def no_engines(monkeypatch):
    monkeypatch.setattr(Training, "shake_hands", lambda self: None)
    monkeypatch.setattr(rl, "validate", lambda session, problems, step, say: {"final": float(step), "delta": 0.0})


def play(
    folder: Path, ahead: int, world: World, seed: int = 0, retries: int = 2, upload: str = "", colocate: bool = False, more=()
) -> Update:
    (folder / "checkpoints").mkdir(exist_ok=True)
    overrides = [f"rl.steps={STEPS}", f"rl.prompts={PROMPTS}", "rl.group=2", "rl.mini_batches=1", f"rl.ahead={ahead}"]
    overrides += [f"learner.retries={retries}", f"learner.upload={upload}", f"rollout.colocate={colocate}"]
    session = Session(load_config(None, [*overrides, *more]), folder, world, seed)
    update = Update(world, session.pool())
    training = Training(session, update, PROBLEMS, [], lambda text: None)
    with pytest.MonkeyPatch.context() as patch:
        # A checkpoint whose files are written and that has not got its name yet is a moment too.
        patch.setattr(checkpoint, "flush", lambda folder: world.tick())
        rl.train(training)
    assert not training.flow.sampled, "sampled, and no step trained it"
    return update


def killed(folder: Path, ahead: int, moment: int, seed: int = 0, more=()) -> bool:
    """Play in a process that is killed at that moment; whether it lived so long."""
    settings = {"seed": seed, "more": more}
    child = multiprocessing.get_context("fork").Process(target=play, args=(folder, ahead, World(moment)), kwargs=settings)
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def kept(folder: Path) -> str:
    return (folder / "checkpoints" / "rl" / "value").read_text()


def trained(folder: Path) -> list[int]:
    return [group["position"] for line in read_lines(folder / "ledger.jsonl") for group in line["groups"]]


def whole(folder: Path) -> tuple[float, list[int]]:
    world = World()
    return play(folder, 0, world).value, list(range(1, world.count + 1))


def test_a_run_killed_at_any_moment_trains_every_prompt_once_and_ends_where_one_left_alone_does(tmp_path_factory):
    alone = tmp_path_factory.mktemp("alone")
    value, moments = whole(alone)
    assert len(moments) > 40 and trained(alone) == list(range(STEPS * PROMPTS))
    for moment in moments[:: len(moments) // 40]:
        folder = tmp_path_factory.mktemp("killed")
        assert killed(folder, 0, moment)
        assert play(folder, 0, World(), seed=moment).value == value, f"killed at moment {moment}"
        assert trained(folder) == trained(alone)
        steps = [record["step"] for record in read_lines(folder / "metrics.jsonl") if record["phase"] == "rl"]
        assert steps == list(range(STEPS))
        assert kept(folder) == kept(alone)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 120), st.integers(0, 3))
def test_sampling_ahead_trains_every_prompt_once_also_when_killed(tmp_path_factory, ahead, moment, seed):
    folder = tmp_path_factory.mktemp("ahead")
    if killed(folder, ahead, moment, seed):
        play(folder, ahead, World(), seed)
    assert sorted(trained(folder)) == list(range(STEPS * PROMPTS))
    ages = [record["policy_age_max"] for record in read_lines(folder / "metrics.jsonl") if record["phase"] == "rl"]
    assert len(ages) == STEPS and max(ages) <= ahead


def test_with_bound_zero_the_order_in_which_groups_finish_changes_nothing(tmp_path_factory):
    ends = {play(tmp_path_factory.mktemp("seed"), 0, World(), seed).value for seed in range(5)}
    assert len(ends) == 1


@pytest.mark.parametrize(("ahead", "patience", "stopped"), [(2, 1, True), (2, 0, False), (0, 1, False)])
def test_what_an_early_stop_leaves_in_the_engines_is_dropped(tmp_path, monkeypatch, ahead, patience, stopped):
    monkeypatch.setattr(rl, "validate", lambda session, problems, step, say: {"final": 0.0, "delta": 0.0})
    asked = [f"rl.steps={STEPS}", f"rl.prompts={PROMPTS}", "rl.group=2", "rl.mini_batches=1", "rl.evaluate_every=1"]
    config = load_config(None, [*asked, f"rl.ahead={ahead}", f"rl.patience={patience}"])
    (tmp_path / "checkpoints").mkdir()
    session = Session(config, tmp_path, World(), 0)
    training = Training(session, Update(session.world, session.pool()), PROBLEMS, [], lambda text: None)
    rl.train(training)
    assert training.step == (2 if patience else STEPS) and session.stopped is stopped


def test_a_run_that_is_killed_knows_which_policy_it_has_kept(tmp_path, monkeypatch):
    """Its best evaluations come before the kill, so that what is kept stays."""
    asked = ["learner.checkpoint_every=5", "rl.evaluate_every=1"]

    def begin() -> None:
        play(tmp_path, 0, World(), more=asked)

    def end_early(training: Training) -> bool:
        if training.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "finished", end_early)
        child = multiprocessing.get_context("fork").Process(target=begin)
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    before, said = kept(tmp_path), []
    monkeypatch.setattr(rl, "validate", lambda session, problems, step, say: {"final": -1.0, "delta": 0.0})
    monkeypatch.setattr(Training, "say", property(lambda self: said.append, lambda self, value: None), raising=False)
    play(tmp_path, 0, World(), more=asked)
    assert said[-1] == "kept: step 3, final 3.0" and kept(tmp_path) == before


def test_tokens_of_the_trained_policy_are_not_corrected_and_older_ones_are(tmp_path_factory):
    assert not any(play(tmp_path_factory.mktemp("sync"), 0, World()).ages)
    ahead = play(tmp_path_factory.mktemp("ahead"), 2, World()).ages
    assert not ahead[0] and any(ahead)


@given(st.integers(1, 60), st.integers(0, 2))
@settings(max_examples=25)
def test_lost_learners_start_again_from_the_last_checkpoint(tmp_path_factory, moment, ahead):
    folder = tmp_path_factory.mktemp("lost")
    play(folder, ahead, World(lost=frozenset({moment})))
    assert sorted(trained(folder)) == list(range(STEPS * PROMPTS))


def test_a_loss_with_bound_zero_ends_where_an_undisturbed_run_does_and_makes_no_token_older(tmp_path_factory):
    value, moments = whole(tmp_path_factory.mktemp("alone"))
    for moment in moments[8:40:3]:
        folder = tmp_path_factory.mktemp("lost")
        lost = play(folder, 0, World(lost=frozenset({moment})))
        assert lost.value == value and not any(lost.ages)
        ages = [record["policy_age_max"] for record in read_lines(folder / "metrics.jsonl") if record["phase"] == "rl"]
        assert ages == [0] * STEPS


@pytest.mark.parametrize(("ahead", "every"), [(0, 1), (0, 3), (1, 1), (1, 3)])
def test_two_losses_at_any_moments_cost_no_prompt_and_sample_nothing_that_no_step_trains(tmp_path_factory, ahead, every):
    def ends_well(*moments: int) -> list[int]:
        folder, world = tmp_path_factory.mktemp("lost"), World(lost=frozenset(moments), missed=frozenset(moments))
        value = play(folder, ahead, world, more=[f"learner.checkpoint_every={every}"]).value
        assert sorted(trained(folder)) == list(range(STEPS * PROMPTS)) and (ahead or value == alone), f"lost at {moments}"
        return world.asked

    alone, _ = whole(tmp_path_factory.mktemp("alone"))
    for first in ends_well()[::2]:
        later = [moment for moment in ends_well(first) if moment > first]
        for second in later[:3]:
            ends_well(first, second)


def outcomes(folder: Path) -> list[dict[str, list[int]]]:
    """Positions by what became of them, step by step."""
    steps = []
    for line in read_lines(folder / "ledger.jsonl"):
        steps.append({"replaced": [], "taken": []})
        for group in line["groups"]:
            steps[-1]["replaced" if group["outcome"] == "replaced" else "taken"].append(group["position"])
    return steps


def test_groups_without_signal_are_replaced_by_the_next_of_the_stream_as_often_as_is_allowed(tmp_path):
    """Those at multiples of 3 have none."""
    for refill, first, second in (
        (0, {"replaced": [], "taken": [0, 1, 2]}, {"replaced": [], "taken": [3, 4, 5]}),
        (1, {"replaced": [0], "taken": [1, 2, 3]}, {"replaced": [6], "taken": [4, 5, 7]}),
        (5, {"replaced": [0, 3], "taken": [1, 2, 4]}, {"replaced": [6], "taken": [5, 7, 8]}),
    ):
        folder = tmp_path / str(refill)
        folder.mkdir()
        play(folder, 0, World(), more=[f"rl.refill={refill}"])
        steps = outcomes(folder)
        assert steps[:2] == [first, second] and [len(step["taken"]) for step in steps] == [PROMPTS] * STEPS
        counts = [record.get("groups_replaced") for record in read_lines(folder / "metrics.jsonl") if record["phase"] == "rl"]
        assert counts == ([len(step["replaced"]) for step in steps] if refill else [None] * STEPS)


@pytest.mark.parametrize("ahead", [0, 2])
def test_also_with_replaced_groups_every_prompt_counts_once_whatever_is_killed_or_lost(tmp_path_factory, ahead):
    more = ["rl.refill=5"]

    def complete(folder: Path) -> None:
        steps = outcomes(folder)
        assert [len(step["taken"]) for step in steps] == [PROMPTS] * STEPS
        assert all(position % 3 for step in steps for position in step["taken"])
        assert sorted(trained(folder)) == list(range(len(trained(folder))))

    alone = tmp_path_factory.mktemp("alone")
    world = World()
    value = play(alone, ahead, world, more=more).value
    complete(alone)
    for moment in range(3, world.count, world.count // 12):
        folder = tmp_path_factory.mktemp("killed")
        assert killed(folder, ahead, moment, more=more)
        assert ahead or play(folder, ahead, World(), seed=moment, more=more).value == value
        play(folder, ahead, World(), more=more)
        complete(folder)
    for moment in world.asked[:: len(world.asked) // 8]:
        folder = tmp_path_factory.mktemp("lost")
        assert play(folder, ahead, World(lost=frozenset({moment})), more=more).value == value or ahead
        complete(folder)


def test_while_a_critic_learns_alone_no_weights_are_sent_nothing_ages_and_the_rate_is_not_warmed_up(tmp_path):
    class Critic(Update):
        first_step = 2

        def step(self, trajectories, step, *others):
            found = super().step(trajectories, step, *others)
            return found | {"optimizer_steps": int(step >= self.first_step)}

    (tmp_path / "checkpoints").mkdir()
    overrides = [f"rl.steps={STEPS}", f"rl.prompts={PROMPTS}", "rl.group=2", "rl.mini_batches=1", "rl.ahead=1"]
    config = load_config(None, [*overrides, "rl.warmup_steps=1", "rl.learning_rate=1.0"])
    session = Session(config, tmp_path, World(), 0)
    update = Critic(session.world, session.pool())
    rl.train(Training(session, update, PROBLEMS, [], lambda text: None))
    records = [record for record in read_lines(tmp_path / "metrics.jsonl") if record["phase"] == "rl"]
    assert [record["learning_rate"] for record in records] == [0.5, 0.5, 0.5, 1, 1, 1]
    assert ["sync_bytes" in record for record in records] == [False, False, True, True, True, True]
    assert update.ages == [False, False, False, True, True, True]


@pytest.mark.parametrize(("ahead", "life"), [(0, "rl"), (1, "rl1")])
def test_groups_that_are_begun_again_have_their_own_ids_and_seeds_unless_the_pool_still_works_on_others(tmp_path, ahead, life):
    class Third(Update):
        def step(self, trajectories, step, *others):
            if step == 2 and not self.ages[3:]:
                self.ages.append(False)
                raise LearnerLost("a learner died in the third step")
            return super().step(trajectories, step, *others)

    (tmp_path / "checkpoints").mkdir()
    overrides = [f"rl.steps={STEPS}", f"rl.prompts={PROMPTS}", "rl.group=2", "rl.mini_batches=1", f"rl.ahead={ahead}"]
    session = Session(load_config(None, [*overrides, "learner.checkpoint_every=5"]), tmp_path, World(), 0)
    update = Third(session.world, session.pool())
    rl.train(Training(session, update, PROBLEMS, [], lambda text: None))
    assert {name.split("/")[0] for name in update.trained} == {life}


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_loss_in_the_first_moments_after_a_resume_costs_no_prompt(tmp_path_factory, ahead):
    for moment in range(30, 80, 13):
        cut = tmp_path_factory.mktemp("cut")
        assert killed(cut, ahead, moment)
        for lost in range(1, 5):
            folder = shutil.copytree(cut, tmp_path_factory.mktemp("again") / "run")
            play(folder, ahead, World(lost=frozenset({lost}), missed=frozenset({lost})))
            assert sorted(trained(folder)) == list(range(STEPS * PROMPTS)), f"killed at {moment}, lost at {lost}"


def test_learners_that_are_lost_while_a_mixture_is_sampled_cost_no_prompt(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(resume, "receive", lambda bundle, timeout_s: [])  # a fake bundle has no bytes
    monkeypatch.setattr(resume, "read_previous", lambda folder, version, config: Bundle(version, 0.5, 8))
    undisturbed = World()
    play(tmp_path_factory.mktemp("mixed"), 0, undisturbed, more=["rl.previous_share=0.5"])
    for moment in undisturbed.asked[4:]:
        folder = tmp_path_factory.mktemp("mixed")
        world = World(lost=frozenset({moment}), missed=frozenset({moment}))
        play(folder, 0, world, more=["rl.previous_share=0.5"])
        assert trained(folder) == list(range(STEPS * PROMPTS)), f"lost at {moment}"


def test_a_step_that_waits_for_what_nobody_samples_says_so_at_once(tmp_path):
    config = load_config(None, ["rl.prompts=2", "rl.group=2", "rl.mini_batches=1", "rl.ahead=0"])
    ledger = Ledger(batch=2, ahead=0, in_flight={0: 0, 1: 0})
    flow = Flow(Session(config, tmp_path, World(), 0), Stream(PROBLEMS, 0), ledger)
    flow.put_back({1: []})
    with pytest.raises(RuntimeError, match=r"step 0: positions \[0\] of the ledger are in flight, but nobody samples them"):
        flow.take(0)


@pytest.mark.parametrize("late", [False, True])
def test_a_step_waits_until_the_pool_has_given_up_the_last_try_of_a_group_and_no_longer(tmp_path, monkeypatch, late):
    class Slow(Pool):
        """Its one group comes at that time."""

        def completed(self, timeout_s: float) -> list[list[Trajectory]]:
            now[0] += timeout_s
            return super().completed(timeout_s) if now[0] >= end else []

    waits = ["rollout.timeout_s=100", "rollout.start_timeout_s=20", "rollout.retries=3"]
    config = load_config(None, ["rl.prompts=1", "rl.group=2", "rl.mini_batches=1", "rl.ahead=0", *waits])
    now, end = [0.0], 4 * (100 + 20) + 100 * late
    monkeypatch.setattr(flow_module.time, "monotonic", lambda: now[0])
    session = Session(config, tmp_path, World(), 0)
    session._pool = Slow(session.world, 0)
    flow = Flow(session, Stream(PROBLEMS, 0), Ledger(batch=1, ahead=0))
    flow.admit(0)
    if late:
        with pytest.raises(TimeoutError, match=r"step 0 waited for a group for 480 s, rollout.retries \+ 1 times"):
            flow.take(0)
    else:
        assert list(flow.take(0)) == [0]


def test_a_run_whose_disk_was_lost_after_its_end_has_its_last_step_and_best_policy_from_the_upload(tmp_path, monkeypatch):
    def slow_copy(*arguments) -> None:
        time.sleep(0.1)  # so that steps end while one is on its way
        copy_out(*arguments)

    copy_out = checkpoint.copy_out
    monkeypatch.setattr(checkpoint, "copy_out", slow_copy)
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    first, second = (play(folder, 0, World(), upload=f"file://{tmp_path}/far") for folder in folders)
    assert second.value == first.value and kept(folders[1]) == kept(folders[0])
    assert trained(folders[1]) == [] and len(trained(folders[0])) == STEPS * PROMPTS


def test_what_was_uploaded_is_looked_at_when_a_run_begins_and_not_when_a_learner_dies(tmp_path_factory, monkeypatch):
    value, _ = whole(tmp_path_factory.mktemp("alone"))
    looks, look = [], checkpoint.Checkpoints.check_upload
    monkeypatch.setattr(checkpoint.Checkpoints, "check_upload", lambda store: looks.append(store.steps()) or look(store))
    folder = tmp_path_factory.mktemp("lost")
    lost = play(folder, 0, World(lost=frozenset({41})), upload=f"file://{folder}/far")
    assert lost.value == value and len(lost.beside) > STEPS, "no learner died"
    assert looks == [[]]


def test_an_upload_that_fails_ends_the_run_even_if_it_was_the_last(tmp_path, monkeypatch):
    copy_out, calls = checkpoint.copy_out, []

    def full(folder: Path, *arguments) -> None:
        if folder.name == f"step-{STEPS:08d}":
            calls.append(folder)
            raise OSError("no space left")
        copy_out(folder, *arguments)

    monkeypatch.setattr(checkpoint, "copy_out", full)
    kept = f"kept in {tmp_path}/.*, was not copied to file://{tmp_path}/far/.*: OSError: no space left"
    with pytest.raises(ConfigError, match=kept):
        play(tmp_path, 0, World(), upload=f"file://{tmp_path}/far")
    assert len(calls) == 1


def test_the_ledger_calls_a_prompt_trained_only_if_the_update_trained_one_of_its_trajectories(tmp_path):
    play(tmp_path, 0, World())
    outcomes = {group["position"]: group["outcome"] for line in read_lines(tmp_path / "ledger.jsonl") for group in line["groups"]}
    assert outcomes == {position: "trained" if position % 5 else "filtered" for position in range(STEPS * PROMPTS)}


def test_engines_beside_the_learners_sleep_while_these_train_or_start_again_and_the_end_is_the_same(tmp_path_factory):
    value, _ = whole(tmp_path_factory.mktemp("apart"))
    beside = play(tmp_path_factory.mktemp("beside"), 0, World(), colocate=True)
    assert beside.value == value and beside.beside == ["asleep"] * STEPS and not beside.pool.asleep
    for moment in range(3, beside.world.count, 5):
        lost = play(tmp_path_factory.mktemp("lost"), 0, World(lost=frozenset({moment})), colocate=True)
        assert lost.value == value and set(lost.beside) == {"asleep"}
        missed = World(missed=frozenset({moment}))
        lost = play(tmp_path_factory.mktemp("missed"), 0, missed, colocate=True, more=["learner.checkpoint_every=3"])
        assert lost.value == value and set(lost.beside) == {"asleep"}


def test_a_rollout_worker_that_misses_the_weights_of_a_dead_learner_costs_no_more_than_the_learner(tmp_path_factory):
    value, moments = whole(tmp_path_factory.mktemp("alone"))
    for moment in moments[8:]:
        folder = tmp_path_factory.mktemp("missed")
        assert play(folder, 0, World(missed=frozenset({moment}))).value == value
        assert trained(folder) == list(range(STEPS * PROMPTS))


def test_learners_that_keep_dying_end_the_run_with_the_settings_name(tmp_path):
    with pytest.raises(RuntimeError, match="learner.retries=1: a learner died during a test"):
        play(tmp_path, 0, World(lost=frozenset(range(8, 500))), retries=1)
