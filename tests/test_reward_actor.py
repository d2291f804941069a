import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from srl.config import RewardConfig
from srl.reward.actor import create_reward_actors
from srl.reward.grader import Grader
from srl.reward.queue import GradeQueue, grade_all
from srl.reward.rules import share_alarm, silence_alarm
from srl.trajectory import Outcome

REQUESTS = [
    ("a/0", "42", "42"),
    ("a/1", None, "42"),
    ("b/0", r"\frac{1}{2}", "0.5"),
    ("b/1", r"\frac{1}{3}", "0.5"),
    ("c/0", "???", r"\sqrt{2}"),
    ("c/1", "9^{9^{9^{9}}}", "42"),
    ("d/0", r"\sqrt{12}", r"2\sqrt{3}"),
]
SLOW = r"\sum_{k=1}^{9999} k^{k}"  # runs until the alarm


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def actors(local_ray: None) -> list[ray.actor.ActorHandle]:
    return create_reward_actors(RewardConfig(workers=2, processes=1, deadline_s=2))


def inside(actor: ray.actor.ActorHandle, function: object) -> object:
    return ray.get(actor.__ray_call__.remote(function), timeout=60)


def test_actors_grade_as_a_direct_call_does(actors: list[ray.actor.ActorHandle]) -> None:
    direct = Grader(RewardConfig(processes=1))
    grades = direct.grade([(answer, gold) for _, answer, gold in REQUESTS])
    direct.close()
    expected = {key: grade.outcome for (key, _, _), grade in zip(REQUESTS, grades, strict=True)}
    assert grade_all(actors, REQUESTS, timeout_s=60) == expected


def test_an_async_actor_grades_as_a_direct_call_does() -> None:
    @ray.remote
    class Loop:
        async def grade(self, requests: list) -> list:
            grader = Grader(RewardConfig(processes=1))
            grades = grader.grade([(answer, gold) for _, answer, gold in requests])
            grader.close()
            return [grade.outcome for grade in grades]

    in_loop = ray.get(Loop.remote().grade.remote(REQUESTS), timeout=60)
    direct = Grader(RewardConfig(processes=1))
    assert in_loop == [grade.outcome for grade in direct.grade([(answer, gold) for _, answer, gold in REQUESTS])]
    direct.close()


def test_a_slow_answer_is_a_timeout(actors: list[ray.actor.ActorHandle]) -> None:
    assert grade_all(actors[:1], [("slow", SLOW, "42")], timeout_s=60) == {"slow": Outcome.TIMEOUT}


def test_an_actor_calls_itself_by_its_index(actors: list[ray.actor.ActorHandle]) -> None:
    assert [inside(actor, repr) for actor in actors] == ["RewardActor(0)", "RewardActor(1)"]


def test_repeated_answers_come_from_the_cache_and_are_counted() -> None:
    [actor] = create_reward_actors(RewardConfig(workers=1))
    grade_all([actor], [(f"t/{index}", "x + 1", "1+x") for index in range(10)], timeout_s=60)
    assert ray.get(actor.counts.remote(), timeout=60) == {"correct": 10, "cached": 9, "killed": 0, "died": 0}


def test_results_are_complete_when_an_actor_is_killed_in_the_middle() -> None:
    actors = create_reward_actors(RewardConfig(workers=2, processes=1, deadline_s=1))
    victim = inside(actors[0], lambda _: os.getpid())
    requests = [(f"t/{index}", SLOW, str(index)) for index in range(8)] + REQUESTS
    killer = threading.Timer(1.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    grades = grade_all(actors, requests, timeout_s=120)
    killer.join()
    assert inside(actors[0], lambda _: os.getpid()) != victim
    assert set(grades) == {request[0] for request in requests}
    assert all(grades[f"t/{index}"] is Outcome.TIMEOUT for index in range(8))


def test_a_late_grade_is_a_timeout_that_says_what_was_waited_for(actors: list[ray.actor.ActorHandle]) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waited 0.5 s \(reward.timeout_s\) for 1 grades from 2 reward actors.*'late'"):
        grade_all(actors, [("late", SLOW, "43")], timeout_s=0.5)
    assert time.monotonic() - start < 10


def test_what_is_put_is_graded_once_while_the_caller_does_something_else() -> None:
    [actor] = create_reward_actors(RewardConfig(workers=1, processes=1))
    queue, requests = GradeQueue([actor]), [(f"t/{index}", str(index % 2), "1") for index in range(100)]
    queue.put(requests[:60])
    queue.put(requests[40:])  # twenty of them again
    deadline = time.monotonic() + 60
    while len(queue.grades) < 100 and time.monotonic() < deadline:
        queue.put([])
        time.sleep(0.01)
    expected = {f"t/{index}": (Outcome.INCORRECT, Outcome.CORRECT)[index % 2] for index in range(100)}
    assert queue.take(requests, timeout_s=0.0) == expected
    counts = ray.get(actor.counts.remote(), timeout=60)
    assert (counts["correct"], counts["incorrect"]) == (50, 50)


def test_an_id_stands_for_one_answer_until_its_grade_is_taken(actors: list[ray.actor.ActorHandle]) -> None:
    queue = GradeQueue(actors)
    queue.put([("t/0", "1", "1")])
    with pytest.raises(ValueError, match="'t/0'"):
        queue.put([("t/0", "2", "1")])
    assert queue.take([("t/0", "1", "1")], timeout_s=60) == {"t/0": Outcome.CORRECT}
    assert queue.take([("t/0", "2", "1")], timeout_s=60) == {"t/0": Outcome.INCORRECT}


def test_no_actor_is_handed_all_the_work() -> None:
    @ray.remote(num_cpus=0)
    class Silent:
        def grade(self, requests: list) -> None:
            time.sleep(600)

    actors = [Silent.remote(), Silent.remote()]
    queue = GradeQueue(actors)
    queue.put([(f"t/{index}", "1", "1") for index in range(40)])
    # Each time a quarter of what waits: 10, then of the 30 left 8, of 22 left 6, of 16 left 4.
    assert sorted(queue.running.values()) == [0, 0, 1, 1]
    assert len(queue.waiting) == 12
    for actor in actors:
        ray.kill(actor)


def test_a_gold_that_does_not_parse_reaches_the_driver(actors: list[ray.actor.ActorHandle]) -> None:
    with pytest.raises(ValueError, match=r"gold '\?\?\?' does not parse"):
        grade_all(actors, [("t/0", "1", "???")], timeout_s=60)


def test_an_id_given_twice_is_refused(actors: list[ray.actor.ActorHandle]) -> None:
    with pytest.raises(ValueError, match="'t/0'"):
        grade_all(actors, [("t/0", "1", "1"), ("t/0", "2", "1")], timeout_s=60)


def test_nothing_to_grade_gives_nothing(actors: list[ray.actor.ActorHandle]) -> None:
    assert grade_all(actors, [], timeout_s=1) == {}


def test_the_alarm_is_one_line_and_only_above_the_share() -> None:
    grades = {Outcome.TIMEOUT: 1, Outcome.UNPARSABLE: 1, Outcome.CORRECT: 1, Outcome.NO_ANSWER: 1}
    message = share_alarm(grades, 0.25)
    assert message is not None and "2 of 4" in message and "1 timeouts, 1 unparsable" in message and "\n" not in message
    assert share_alarm(grades, 0.5) is None
    assert share_alarm({}, 0.0) is None


def test_a_model_that_mostly_does_not_answer_is_an_alarm_that_says_what_to_set() -> None:
    silent = {Outcome.NO_ANSWER: 3, Outcome.CORRECT: 1, Outcome.TIMEOUT: 1}
    boxed, stated = silence_alarm(silent, "boxed"), silence_alarm(silent, "stated")
    assert boxed is not None and "3 of 5" in boxed and "reward.answers=stated" in boxed and "\n" not in boxed
    assert stated is not None and "reward.answers=stated" not in stated
    assert silence_alarm({Outcome.NO_ANSWER: 2, Outcome.CORRECT: 2}, "boxed") is None
    assert silence_alarm({}, "boxed") is None
