"""What the group does when ranks die, without ranks, and what a rank tells of itself, without others."""

import pytest

from srl.config import load_config
from srl.learner import actor, group
from srl.learner.group import LearnerGroup, LearnerLost


def started(monkeypatch: pytest.MonkeyPatch, deaths: int, retries: int) -> int:
    """How often a group whose first starts each lose a rank was started."""
    starts = []

    def start(self: LearnerGroup) -> None:
        self.ranks = [f"rank 0 of start {len(starts)}"]
        starts.append(self.ranks)
        if len(starts) <= deaths:
            raise LearnerLost("a learner died during learners to start")

    killed = []
    monkeypatch.setattr(LearnerGroup, "_start", start)
    monkeypatch.setattr(group, "learner_room", lambda config: None)
    monkeypatch.setattr(group.ray, "kill", killed.append)
    LearnerGroup(load_config(None, [f"learner.retries={retries}"]), "model", None, 0.0, 1.0)
    assert killed == [rank for ranks in starts[:-1] for rank in ranks], "ranks that live on would hold the others' place"
    return len(starts)


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_ranks_that_die_while_they_start_are_started_again(monkeypatch: pytest.MonkeyPatch, deaths: int):
    assert started(monkeypatch, deaths, retries=2) == deaths + 1


def test_more_deaths_at_the_start_than_the_setting_allows_are_an_error(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LearnerLost, match="learners to start"):
        started(monkeypatch, deaths=2, retries=1)


@pytest.mark.parametrize(("gpus", "levels"), [(0, {}), (0.5, {"gpu_bytes": 7})])
@pytest.mark.parametrize(("critic", "role"), [(False, "learner"), (True, "critic")])
def test_a_rank_tells_how_full_its_gpu_is_only_where_it_has_one(monkeypatch, gpus: float, levels: dict, critic: bool, role: str):
    told = []

    def no_others(*where: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(actor, "start_pulse", lambda role, rank, counts, levels: told.append((role, rank, levels())))
    monkeypatch.setattr(actor, "join_ranks", no_others)
    monkeypatch.setattr(actor.torch.cuda, "memory_allocated", lambda: 7)
    learner = actor.Learner(load_config(None, [f"learner.gpus={gpus}"]), 3, 4)
    with pytest.raises(ConnectionError):
        learner.start("model", None, critic, ("", 0), 0.0, 1.0)
    assert told == [(role, 3, levels)]
