"""Reward rules: pure functions of a graded trajectory."""

from collections.abc import Iterable, Iterator, Mapping

from srl.reward.answer import stated_answer
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind

GradeRequest = tuple[str, str | None, str]  # id, answer, gold
MOST = 0.5  # share of attempts and revisions without an answer above which the run says so


def final_outcome(trajectory: Trajectory) -> float:
    """1.0 if the final answer is correct, else 0.0; 0.0 also if the trajectory answers nothing.

    Raises ValueError if the final answer was not graded.
    """
    final = trajectory.final()
    if final is None:
        return 0.0
    if final.outcome is None:
        raise ValueError(f"trajectory {trajectory.id}: its final answer was not graded")
    return float(final.outcome is Outcome.CORRECT)


def grade_request(trajectory: Trajectory) -> list[GradeRequest]:
    """(id of the turn, its answer, gold) for every attempt and revision."""
    return [(turn_id, turn.answer, trajectory.gold) for turn_id, turn in answer_turns(trajectory)]


def state_answers(trajectories: Iterable[Trajectory]) -> None:
    """Give attempts and revisions without a box the answer that they state, for benchmarks that ask for no box."""
    for trajectory in trajectories:
        for _, turn in answer_turns(trajectory):
            if turn.answer is None:
                turn.answer = stated_answer(turn.text)


def apply_grades(trajectories: Iterable[Trajectory], grades: Mapping[str, Outcome]) -> None:
    """Set `outcome` of every attempt and revision. Raises KeyError naming a turn that has no grade."""
    for trajectory in trajectories:
        for turn_id, turn in answer_turns(trajectory):
            if turn_id not in grades:
                raise KeyError(f"no grade for turn {turn_id}")
            turn.outcome = grades[turn_id]


def share_alarm(grades: Mapping[Outcome, int], alarm_share: float) -> str | None:
    """One line if timeouts and unparsable answers together exceed this share of all grades, counted by outcome; else None."""
    total = sum(grades.values())
    timeouts, unparsable = grades.get(Outcome.TIMEOUT, 0), grades.get(Outcome.UNPARSABLE, 0)
    if timeouts + unparsable <= alarm_share * total:
        return None
    return (
        f"the grader could not judge {timeouts + unparsable} of {total} answers "
        f"({timeouts} timeouts, {unparsable} unparsable; neither is right), more than reward.alarm_share={alarm_share:g}"
    )


def silence_alarm(grades: Mapping[Outcome, int], answers: str) -> str | None:
    """One line if most attempts and revisions, counted by outcome, hold no answer as `reward.answers` takes it; else None."""
    silent, total = grades.get(Outcome.NO_ANSWER, 0), sum(grades.values())
    if silent <= MOST * total:
        return None
    unboxed = "; reward.answers=stated also takes what is said without a box" if answers == "boxed" else ""
    return (
        f"{silent} of {total} attempts and revisions hold no answer ({answers}): they need prompts that ask for one, and token "
        f"limits that leave room for it{unboxed}"
    )


def answer_turns(trajectory: Trajectory) -> Iterator[tuple[str, Turn]]:
    """Attempts and revisions with their ids, `<trajectory>/<index among its turns>`."""
    for index, turn in enumerate(trajectory.turns):
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            yield f"{trajectory.id}/{index}", turn
