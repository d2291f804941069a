"""Which demonstrations an attempt can give (paper, section 3.1).

D1   wrong attempt, verdict "wrong", correct revision
D2   correct attempt, verdict "wrong", correct revision ("c2c")
D3   correct attempt, verdict "correct"
"""

from collections.abc import Mapping, Sequence
from typing import Any

from srl.trajectory import Outcome, Verdict

Row = dict[str, Any]
Candidate = tuple[str, list[Row]]  # class, samples along the path
CLASSES = ("D1", "D2", "D3")


def attempt_of(name: str) -> str:
    """The id of the attempt that a sample or demonstration of this id goes on from: p/a0 for p/a0/v1/r0 and p/a0/v1/D3."""
    return "/".join(name.split("/")[:2])


def candidates(attempt: Row, children: Mapping[str, Sequence[Row]], least_agreement: float = 0.0) -> tuple[list[Candidate], str]:
    """The demonstrations that start with this attempt, rarest class first, or none and the reason.

    `children` are samples by the id they continue. `least_agreement` is the share (0-1) of an attempt's verdicts with format
    that must agree with its grade.
    """
    if attempt["outcome"] == Outcome.TIMEOUT:
        return [], "attempt: not graded in time"
    if attempt["truncated"]:
        return [], "attempt: cut by the token budget"
    verdicts = [verdict for verdict in children.get(attempt["id"], ()) if verdict["verdict"] is not None]
    if not children.get(attempt["id"]):
        return [], "attempt: never judged, the problem had enough of its kind"
    side = "correct attempt" if attempt["outcome"] == Outcome.CORRECT else "wrong attempt"
    if not verdicts:
        return [], f"{side}: no verdict has the form"
    agreeing = [verdict for verdict in verdicts if verdict["accepted"]]
    told_wrong = [verdict for verdict in verdicts if verdict["verdict"] == Verdict.WRONG]
    if len(agreeing) / len(verdicts) < least_agreement:
        return [], f"{side}: too few of its verdicts agree"
    corrected = [
        [attempt, verdict, revision]
        for verdict in told_wrong
        for revision in children.get(verdict["id"], ())
        if revision["accepted"] and not revision["truncated"]
    ]
    if side == "wrong attempt":
        if not agreeing:
            return [], "wrong attempt: no verdict agrees"
        return ([("D1", corrected[0])], "") if corrected else ([], "wrong attempt: no revision is right")
    found = [("D2", path) for path in corrected[:1]] + [("D3", [attempt, verdict]) for verdict in agreeing[:1]]
    return found, "" if found else "correct attempt: no verdict agrees"
