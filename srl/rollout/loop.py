"""Trajectories through an engine: a trajectory's next turn enters the running batch the moment it is due."""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol as Interface

from srl.protocols.chat import Chat
from srl.protocols.protocol import Generate, Protocol, Sampled, Say, Stop
from srl.rollout.engine import Completion, Sampling
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind


class StepEngine(Interface):
    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None: ...
    def step(self) -> list[Completion]: ...
    def abort(self, request_ids: list[str]) -> None: ...


def turn_seed(trajectory: Trajectory) -> int:
    """Depends on the trajectory and the turn only: results do not depend on workers, batches or order of arrival."""
    name = f"{trajectory.seed}/{trajectory.id}/{len(trajectory.turns)}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def run_trajectories(
    engine: StepEngine,
    protocol: Protocol,
    chat: Chat,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    max_length: int,
    weight_version: int,
    timeout_s: float,
) -> list[Trajectory]:
    """Run every trajectory until its protocol stops it; returns them in the order given, changed in place.

    A turn that would not fit in `max_length` tokens gets what is left; when nothing is left the trajectory stops with LENGTH.
    Raises TimeoutError after `timeout_s` with the number of unfinished trajectories, ValueError for an id that occurs twice
    or a prompt without room for an answer. Whatever is raised, the engine is left without requests.
    """
    if twice := [name for name, count in Counter(trajectory.id for trajectory in trajectories).items() if count > 1]:
        raise ValueError(f"two trajectories have the id {twice[0]}")
    deadline = time.monotonic() + timeout_s
    waiting: dict[str, tuple[Trajectory, Generate]] = {}

    def advance(trajectory: Trajectory) -> None:
        """Say what there is to say, then submit the next generation or stop."""
        while True:
            action = protocol.next_action(trajectory)
            if isinstance(action, Stop):
                trajectory.stop_reason = action.reason
                return
            if isinstance(action, Say):
                last_id = trajectory.turns[-1].token_ids[-1] if trajectory.turns and trajectory.turns[-1].token_ids else -1
                trajectory.turns.append(Turn(TurnKind.INSTRUCTION, chat.instruction(action.text, last_id), action.text))
                continue
            token_ids = trajectory.token_ids()
            budget = min(action.max_tokens, max_length - len(token_ids))
            if budget < 1 and not trajectory.turns:
                raise ValueError(
                    f"trajectory {trajectory.id}: {len(token_ids)} tokens leave no room in model.max_length={max_length}"
                )
            if budget < 1:
                trajectory.stop_reason = StopReason.LENGTH
                return
            request_id = f"{trajectory.id}#{len(trajectory.turns)}"
            waiting[request_id] = trajectory, action
            engine.submit(request_id, token_ids, Sampling(budget, temperature, turn_seed(trajectory)))
            return

    try:
        for trajectory in trajectories:
            advance(trajectory)
        while waiting:
            for done in engine.step():
                trajectory, action = waiting.pop(done.request_id)
                protocol.receive(
                    trajectory, Sampled(action.kind, done.token_ids, done.logprobs, weight_version, done.finished_by_length)
                )
                advance(trajectory)
            if waiting and time.monotonic() > deadline:
                raise TimeoutError(
                    f"rollout.timeout_s={timeout_s:g}: {len(waiting)} of {len(trajectories)} trajectories unfinished"
                )
    finally:
        if waiting:
            engine.abort(list(waiting))
    return list(trajectories)
