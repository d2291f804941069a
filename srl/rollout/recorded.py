"""Trajectories in a file, and an engine that gives them again: for tests, and to debug the learner without vLLM.

One JSON object per line, as `to_record` makes it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from srl.config import ConfigError
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import Arriving
from srl.trajectory import Trajectory, Turn, TurnKind, from_record, to_record


def append_trajectories(file: Path, trajectories: Sequence[Trajectory]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.writelines(json.dumps(to_record(trajectory)) + "\n" for trajectory in trajectories)


def read_trajectories(file: Path) -> list[Trajectory]:
    """Raises ConfigError naming the file, and the line that is not a trajectory."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file of trajectories")
    trajectories = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            trajectories.append(from_record(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}, line {number}: not a trajectory: {error}") from None
    return trajectories


class RecordedEngine:
    """Answers every request with what was sampled then, by trajectory id and turn, under the weight version of then.

    What is said between is not taken from the record, so a protocol that has changed since is noticed.
    """

    def __init__(self, trajectories: Iterable[Trajectory]):
        self.version = 0
        self.recorded = {
            request_id: (prompt, done) for trajectory in trajectories for request_id, prompt, done in generations(trajectory)
        }
        self.running: list[str] = []

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        """Raises ValueError for a request that was not recorded, or not after these tokens."""
        if request_id not in self.recorded:
            raise ValueError(f"replay: no recorded trajectory has the request {request_id}")
        if self.recorded[request_id][0] != token_ids:
            raise ValueError(f"replay: {request_id} was recorded after other tokens; prompts or protocol have changed")
        self.running.append(request_id)

    def step(self) -> list[Completion]:
        done, self.running = [self.recorded[request_id][1] for request_id in self.running], []
        return done

    def abort(self, request_ids: list[str]) -> None:
        self.running = [request_id for request_id in self.running if request_id not in request_ids]

    def load_weights(self, buckets: Arriving, version: int) -> None:
        self.version = version

    def sleep(self) -> None:
        """There is no memory to give back."""


def generations(trajectory: Trajectory) -> Iterator[tuple[str, list[int], Completion]]:
    """(request id, prompt, what was sampled): sampled turns that stand together came from one request."""
    prompt, index = list(trajectory.prompt_token_ids), 0
    for sampled, group in groupby(trajectory.turns, key=was_sampled):
        turns = list(group)
        tokens = [token for turn in turns for token in turn.token_ids]
        index += len(turns)
        if sampled:
            cut = trajectory.truncated and index == len(trajectory.turns)
            judged = check_and_verdict(trajectory.turns[index:])
            logprobs = [logprob for turn in turns for logprob in turn.logprobs] + [0.0] * len(judged)
            request_id = f"{trajectory.id}#{index - len(turns)}"
            yield request_id, list(prompt), Completion(request_id, tokens + judged, logprobs, cut, turns[0].weight_version)
        prompt += tokens


def check_and_verdict(following: Sequence[Turn]) -> list[int]:
    """The check that the model wrote after its answer, and the judge's verdict for its own, which was not kept; or nothing."""
    said = [turn for turn in following[:2] if turn.kind is TurnKind.INSTRUCTION]
    if [turn.verdict is not None for turn in said] != [False, True]:
        return []
    return said[0].token_ids + said[1].token_ids


def was_sampled(turn: Turn) -> bool:
    """Also a turn that came out empty; not an attempt that was given."""
    return turn.kind is not TurnKind.INSTRUCTION and (turn.sampled or not turn.token_ids)
