"""The simulated cluster against cases worked by hand."""

from dataclasses import replace

import pytest

from srl.main import main
from srl.rollout.simulated import Cluster, simulate

# 64 prompts x 8 are 2 workers x 256 sequences of 100 tokens: at 2560 tokens/s a step of 256 takes 0.1 s, so rollouts take 10 s.
# 51,200 tokens take a learner of 5120 tokens/s 10 s too.
EVEN = Cluster(2, 100, 2560, 5120, 100, 1000, spread=0.0, prompts=64, steps=4)


def shares(cluster: Cluster) -> list[float]:
    found = simulate(cluster)
    return [round(value, 2) for value in (found.step_s, found.tokens_s, found.rollout_idle, found.learner_idle)]


def test_synchronous_rollout_and_learner_wait_for_each_other():
    assert shares(EVEN) == [20, 2560, 0.5, 0.5]


def test_one_step_ahead_they_overlap():
    # Steps of 10 s after the first rollout: 10 + 4 x 10 = 50 s; either works 40 of them.
    assert shares(replace(EVEN, ahead=1)) == [12.5, 4096, 0.2, 0.2]


def test_half_the_workers_take_twice_as_long_and_a_sync_is_lost_to_both():
    # 512 sequences on one worker of 256: two waves of 10 s, then 10 s of learner and 5 s of sync.
    assert shares(replace(EVEN, workers=1, sync_s=5.0)) == [35, 1462.86, 0.43, 0.71]


def test_a_single_sequence_runs_at_its_own_speed():
    # 100 tokens at 100 tokens/s, then 100 at 5120: 1.0195 s, of which the learner works 0.0195.
    assert shares(replace(EVEN, workers=1, prompts=1, group=1)) == [1.02, 98.08, 0.02, 0.98]


def test_with_unequal_lengths_a_step_waits_for_its_longest():
    unequal = simulate(replace(EVEN, spread=0.8))
    assert unequal.step_s > 1.2 * simulate(EVEN).step_s and unequal.learner_idle > simulate(EVEN).learner_idle


# Two slots at 10 tokens/s each: a prompt takes 10 s, its training 5. Two prompts run until 10 s; the first is trained until 15,
# when a third begins, the second until 20. With `continue` a fourth begins then: the third has ended at 25 and is trained until
# 30, when the fourth has ended, too: 35 s. With `finish` the weights of 20 s wait for the third, until 25; the fourth runs from
# there to 35, the weights of 30 s wait for it, and its training ends at 40.
@pytest.mark.parametrize(("finish", "seconds"), [(False, 35), (True, 40)])
def test_finishing_first_takes_from_what_sampling_ahead_gains(finish: bool, seconds: float):
    found = simulate(Cluster(1, 10, 20, 20, 100, 1000, 0.0, 2, prompts=1, group=1, ahead=1, steps=4, finish=finish))
    assert found.step_s == pytest.approx(seconds / 4)


def test_the_more_engines_wait_for_each_other_the_longer_a_step_takes():
    uneven = Cluster(4, 20, 80, 1280, 100, 1000, 0.8, 4, prompts=64, group=1, sync_s=0.5, ahead=1, steps=12)
    ways = [replace(uneven, finish=False), uneven, replace(uneven, together=True), replace(uneven, together=True, ahead=0)]
    seconds = [simulate(way).step_s for way in ways]
    assert seconds == sorted(seconds) and len(set(seconds)) == len(ways)


def test_without_sampling_ahead_nothing_runs_when_weights_come():
    uneven = replace(EVEN, spread=0.8, sync_s=0.5)
    assert simulate(uneven) == simulate(replace(uneven, finish=False)) == simulate(replace(uneven, together=True))


def test_a_cluster_without_workers_is_refused():
    with pytest.raises(ValueError, match="a cluster needs workers"):
        simulate(replace(EVEN, workers=0))


def test_the_command_prints_a_line_for_each_size_and_staleness(capsys):
    numbers = ["--full", "2560", "--alone", "100", "--learner", "5120", "--tokens", "100", "--workers", "2,4", "--spread", "0"]
    assert main(["size", *numbers, "rl.prompts=64", "rl.group=8", "rl.mini_batches=2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "rollout.weight_update=finish learner.transfer=store"
    assert [line.split()[:2] for line in lines[1:]] == [["2", "0"], ["2", "1"], ["4", "0"], ["4", "1"]]
    assert lines[1].split()[2:4] == ["20.0", "2,560"]


@pytest.mark.parametrize("mean", [100, 180, 300, 350])
def test_lengths_have_the_mean_that_is_asked_for_although_none_is_longer_than_the_limit(mean: float):
    found = simulate(Cluster(4, 100, 2560, 1e9, mean, 360, 0.6, prompts=512, steps=2))
    assert found.step_s * found.tokens_s / (512 * 8) == pytest.approx(mean, rel=0.02)


NUMBERS = ["--full", "2560", "--alone", "100", "--learner", "5120"]


@pytest.mark.parametrize(
    "line", [["size", *NUMBERS, "--tokens", "360"], ["plan", "--tokens", "1000"], ["plan", "--prompt", "500"]]
)
def test_means_that_the_limits_leave_no_room_for_are_refused(line: list[str], capsys):
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and line[-2] in error


def test_engines_beside_learners_are_not_simulated_ahead(capsys):
    assert main(["size", *NUMBERS, "--tokens", "100", "rollout.colocate=true", "rollout.workers=1"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [["1", "0"]]
