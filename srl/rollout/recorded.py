"""Trajectories in a file, and an engine that gives them again: for tests, and to debug the learner without vLLM.

One JSON object per line, as `to_record` makes it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from srl.config import ConfigError
from srl.observe.run_directory import append_line
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import Arriving
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind, from_record, to_record

# Ends that come from the clock, a judge or a worker, not from what was sampled.
OUTSIDE = (StopReason.TIME, StopReason.UNJUDGED, StopReason.FAILED)


def append_trajectories(file: Path, trajectories: Sequence[Trajectory]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for trajectory in trajectories:
        append_line(file, to_record(trajectory))


def read_trajectories(file: Path) -> list[Trajectory]:
    """Without a last line that was not finished. Raises ConfigError naming the file, and the line that is not a trajectory."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file of trajectories")
    trajectories = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            trajectories.append(from_record(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}, line {number}: not a trajectory: {error}") from None
    return trajectories


@dataclass(slots=True)
class Recording:
    """A trajectory with its requests, prompt and what was sampled, and those of them that were given again."""

    trajectory: Trajectory
    requests: dict[str, tuple[list[int], Completion]]
    given: set[str] = field(default_factory=set)

    def fits(self, version: int) -> bool:
        """Whether it began under these weights, as far as anything was sampled."""
        return next((done.weight_version for _, done in self.requests.values()), version) == version


class RecordedEngine:
    """Answers every request with what was sampled then, by trajectory id and turn, under the weight version of then.

    What is said between is not taken from the record, so a protocol that has changed since is noticed. Judges are asked again. A
    trajectory that was ended by `OUTSIDE` then is ended by it again, when it asks for more than was sampled. An id that was
    recorded several times, as by the methods of an evaluation, is given in that order, what fits the weights of now first; of
    several engines each begins with the first.
    """

    def __init__(self, trajectories: Iterable[Trajectory]):
        self.version = 0
        self.waiting: dict[str, list[Recording]] = {}
        for trajectory in trajectories:
            requests = {request_id: (prompt, done) for request_id, prompt, done in generations(trajectory)}
            self.waiting.setdefault(trajectory.id, []).append(Recording(trajectory, requests))
        self.playing: dict[str, Recording] = {}
        self.running: list[Completion] = []

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        """Raises ValueError for a request that was not recorded, or not after these tokens."""
        recording = self._recording(request_id)
        if recording is None or request_id not in recording.requests:
            if recording and recording.trajectory.stop_reason in OUTSIDE:
                known = recording.trajectory.token_ids()
                if token_ids[: len(known)] == known:
                    self.running.append(Completion(request_id, [], [], False, ended=recording.trajectory.stop_reason))
                    return
            raise ValueError(f"replay: no recorded trajectory has the request {request_id}")
        prompt, done = recording.requests[request_id]
        if prompt != token_ids:
            raise ValueError(f"replay: {request_id} was recorded after other tokens; prompts or protocol have changed")
        self.running.append(done)

    def _recording(self, request_id: str) -> Recording | None:
        """The one that is given; where it has answered this request, the next, or the last again."""
        name = request_id.rpartition("#")[0]
        if name not in self.playing or request_id in self.playing[name].given:
            if waiting := self.waiting.get(name):
                self.playing[name] = next((each for each in waiting if each.fits(self.version)), waiting[0])
                waiting.remove(self.playing[name])
            elif name in self.playing:
                self.playing[name].given.clear()
            else:
                return None
        self.playing[name].given.add(request_id)
        return self.playing[name]

    def step(self) -> list[Completion]:
        done, self.running = self.running, []
        return done

    def abort(self, request_ids: list[str]) -> None:
        self.running = [done for done in self.running if done.request_id not in request_ids]

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
            cut = turns[-1] is was_cut(trajectory)
            dropped = turns[-1].dropped
            logprobs = [logprob for turn in turns for logprob in turn.logprobs] + [0.0] * len(dropped)
            request_id = f"{trajectory.id}#{index - len(turns)}"
            yield request_id, list(prompt), Completion(request_id, tokens + dropped, logprobs, cut, turns[0].weight_version)
        prompt += tokens


def was_cut(trajectory: Trajectory) -> Turn | None:
    """A turn whose cut by its limit explains the end: the last that was kept whole. After an instruction no room was left."""
    ends = trajectory.truncated and was_sampled(trajectory.turns[-1])
    return next((turn for turn in reversed(trajectory.turns) if ends and was_sampled(turn) and not turn.dropped), None)


def was_sampled(turn: Turn) -> bool:
    """Also a turn that came out empty; not an attempt that was given."""
    return turn.kind is not TurnKind.INSTRUCTION and (turn.sampled or not turn.token_ids)
