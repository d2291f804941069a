"""The samples of one problem, grown as a tree: attempts, verdicts on each, revisions after "wrong" (paper, section 3.1).

Everything that waits for the engine or the grader is a coroutine, so all trees of a process share one running batch: a
verdict enters it the moment its attempt is graded, while its prefix is still cached, and no step waits for another tree.
"""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from srl.config import Config
from srl.pipelines.classes import candidates
from srl.pipelines.samples import Row, sample_row
from srl.protocols.action import Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.reward.queue import grade_all
from srl.reward.rules import GradeRequest, state_answers
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import StepEngine, said, turn_seed
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

T = TypeVar("T")
Generate = Callable[[str, list[int], Sampling], Awaitable[Completion]]
Grade = Callable[[GradeRequest], Awaitable[Outcome]]
ALL_STEPS = (TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION)


class EngineLoop:
    """One engine for everybody who awaits it. It steps while somebody does.

    At most `max_active` requests are in it; of the others the deepest in their trees come first: their prefix is still cached.
    """

    def __init__(self, engine: StepEngine, max_active: int):
        self.engine, self.max_active = engine, max_active
        self.queue: list[tuple[int, int, str, list[int], Sampling]] = []  # a heap: (-depth, order of arrival, request)
        self.arrivals = itertools.count()
        self.running: set[str] = set()
        self.waiting: dict[str, asyncio.Future[Completion]] = {}
        self.stepping: asyncio.Task | None = None
        self.counts: Counter[str] = Counter()

    async def generate(self, request_id: str, token_ids: list[int], sampling: Sampling) -> Completion:
        """Raises what the engine raises in a step, ValueError for an id that is running."""
        if request_id in self.waiting:
            raise ValueError(f"two requests have the id {request_id}")
        result = self.waiting[request_id] = asyncio.get_running_loop().create_future()
        heapq.heappush(self.queue, (-request_id.count("/"), next(self.arrivals), request_id, token_ids, sampling))
        if self.stepping is None or self.stepping.done():
            self.stepping = asyncio.create_task(self._step())
        try:
            return await result
        finally:
            # Still there only when the caller was cancelled.
            if self.waiting.pop(request_id, None) is not None and request_id in self.running:
                self.running.remove(request_id)
                self.engine.abort([request_id])

    async def while_moving(self, work: asyncio.Future[T], limit_s: float, what: str) -> T:
        """The result of work that this engine does. Raises TimeoutError when no request ends for `limit_s` seconds."""
        while True:
            ended = self.counts["turns"]
            if (await asyncio.wait([work], timeout=limit_s))[0]:
                return work.result()
            if self.counts["turns"] == ended:
                work.cancel()
                raise TimeoutError(f"{what}: no request ended for {limit_s:g} s, {len(self.waiting)} are waiting")

    async def _step(self) -> None:
        try:
            while self.waiting:
                await asyncio.sleep(0)  # everybody who can go on asks first
                self._submit()
                for done in self.engine.step():
                    self.running.discard(done.request_id)
                    self.counts.update(turns=1, sampled_tokens=len(done.token_ids))
                    if (result := self.waiting.pop(done.request_id, None)) is not None and not result.done():
                        result.set_result(done)
        except Exception as error:
            failed, self.waiting, self.queue, self.running = self.waiting, {}, [], set()
            for result in failed.values():
                if not result.done():
                    result.set_exception(error)

    def _submit(self) -> None:
        while self.queue and len(self.running) < self.max_active:
            _, _, request_id, token_ids, sampling = heapq.heappop(self.queue)
            if request_id in self.waiting:
                self.running.add(request_id)
                self.engine.submit(request_id, token_ids, sampling)


class Grading:
    """Batches whatever is to be graded while the batch before is away."""

    def __init__(self, actors: list, timeout_s: float):
        self.actors, self.timeout_s = actors, timeout_s
        self.queue: list[tuple[GradeRequest, asyncio.Future[Outcome]]] = []
        self.away: asyncio.Task | None = None

    async def grade(self, request: GradeRequest) -> Outcome:
        result = asyncio.get_running_loop().create_future()
        self.queue.append((request, result))
        if self.away is None or self.away.done():
            self.away = asyncio.create_task(self._send())
        return await result

    async def _send(self) -> None:
        while self.queue:
            batch, self.queue = self.queue, []
            try:
                # In a thread: the engine goes on stepping.
                grades = await asyncio.to_thread(grade_all, self.actors, [request for request, _ in batch], self.timeout_s)
                for request, result in batch:
                    if not result.done():
                        result.set_result(grades[request[0]])
            except Exception as error:
                for _, result in batch:
                    if not result.done():
                        result.set_exception(error)


class Sampler:
    """`steps` are sampled here; what the other steps gave is taken from `recorded`, by id, and missing if it is not there."""

    def __init__(
        self,
        config: Config,
        chat: Chat,
        generate: Generate,
        grade: Grade,
        weights: str,
        steps: Collection[TurnKind] = ALL_STEPS,
        recorded: Mapping[str, Row] | None = None,
    ):
        self.config, self.chat, self.generate, self.grade, self.weights = config, chat, generate, grade, weights
        self.steps, self.recorded = steps, recorded or {}
        self.protocols: dict[TurnKind, Protocol] = {kind: build_protocol(kind.value, config, chat) for kind in ALL_STEPS}

    async def problem(self, problem: Problem) -> list[Row]:
        """All samples of a problem, wave by wave of attempts until its quotas are full.

        Only whole waves decide, so what is sampled does not depend on which request finishes first.
        """
        stage1, rows, taken = self.config.stage1, [], set()
        for start in range(0, stage1.attempts, stage1.wave):
            wave = range(start, min(start + stage1.wave, stage1.attempts))
            full = full_sides(taken, stage1.per_prompt_and_class)
            if len(full) == 2:
                break
            trees = await asyncio.gather(*(self._tree(self._root(problem, n), full) for n in wave))
            for tree in trees:
                taken.update(side_of(tree, stage1.agreement))
                rows += tree
        return rows

    def _root(self, problem: Problem, index: int) -> Trajectory:
        opening = self.chat.opening(problem.question)
        name, seed = f"{problem.prompt_id}/a{index}", self.config.run.seed
        return Trajectory(name, problem.prompt_id, problem.question, problem.gold, opening, seed=seed)

    async def _tree(self, root: Trajectory, full: Collection[bool]) -> list[Row]:
        """One attempt, its verdicts and revisions; nothing after an attempt that was cut, which no demonstration may begin with,
        or of a side (right or wrong) that is full."""
        attempts = await self._step(TurnKind.ATTEMPT, [root])
        if not attempts:
            return []
        attempt, row = attempts[0]
        if row["truncated"] or (attempt.turns[-1].outcome is Outcome.CORRECT) in full:
            return [row]
        roots = [continued(attempt, f"v{n}") for n in range(self.config.stage1.verdicts)]
        verdicts = await self._step(TurnKind.VERDICT, roots)
        revisions = await self._step(TurnKind.REVISION, self._to_revise([verdict for verdict, _ in verdicts]))
        return [row for _, row in (*attempts, *verdicts, *revisions)]

    def _to_revise(self, verdicts: Sequence[Trajectory]) -> list[Trajectory]:
        """M1 continuations of a wrong attempt, M2 of a correct one, spread over its verdicts that said "wrong"."""
        told_wrong = [t for t in verdicts if t.turns[-1].verdict is Verdict.WRONG and t.turns[0].outcome is not Outcome.TIMEOUT]
        if not told_wrong:
            return []
        right = told_wrong[0].turns[0].outcome is Outcome.CORRECT
        count = self.config.stage1.correct_revisions if right else self.config.stage1.wrong_revisions
        return [continued(told_wrong[n % len(told_wrong)], f"r{n}") for n in range(count)]

    async def _step(self, kind: TurnKind, trajectories: Sequence[Trajectory]) -> list[tuple[Trajectory, Row]]:
        if kind not in self.steps:
            trajectories = [trajectory for trajectory in trajectories if trajectory.id in self.recorded]
        return await asyncio.gather(*(self._turn(kind, trajectory) for trajectory in trajectories))

    async def _turn(self, kind: TurnKind, trajectory: Trajectory) -> tuple[Trajectory, Row]:
        """The trajectory with one more turn, graded if it answers, and that turn's row."""
        if kind not in self.steps:
            return self._replayed(kind, trajectory)
        protocol, temperature, seed = self.protocols[kind], self.config.stage1.temperature, 0
        trajectory.stop_reason = StopReason.ANSWERED
        while not isinstance(action := protocol.next_action(trajectory), Stop):
            if isinstance(action, Say):
                trajectory.turns.append(said(self.chat, trajectory, action))
                continue
            ids, seed = trajectory.token_ids(), turn_seed(trajectory)
            budget = min(action.max_tokens, self.config.model.max_length - len(ids))
            if budget < 1:
                trajectory.turns.append(Turn(kind, []))
                trajectory.stop_reason = StopReason.LENGTH
                break
            sampling = Sampling(budget, temperature, seed, self.config.rollout.top_p)
            done = await self.generate(trajectory.id, ids, sampling)
            protocol.receive(trajectory, Sampled(kind, done.token_ids, done.logprobs, 0, done.finished_by_length))
            trajectory.stop_reason = StopReason.LENGTH if done.finished_by_length else StopReason.ANSWERED
        if kind is not TurnKind.VERDICT:
            if self.config.reward.answers == "stated":
                state_answers([trajectory])
            trajectory.turns[-1].outcome = await self.grade((trajectory.id, trajectory.turns[-1].answer, trajectory.gold))
        return trajectory, sample_row(trajectory, seed, temperature, self.weights)

    def _replayed(self, kind: TurnKind, trajectory: Trajectory) -> tuple[Trajectory, Row]:
        """The same with what another model wrote, whose row stays as it is; this one is shown its own end token in its place."""
        row, protocol = self.recorded[trajectory.id], self.protocols[kind]
        while isinstance(action := protocol.next_action(trajectory), Say):
            trajectory.turns.append(said(self.chat, trajectory, action))
        ids = row["token_ids"] if row["truncated"] else [*row["token_ids"][:-1], self.chat.end_id]
        protocol.receive(trajectory, Sampled(kind, ids, row["logprobs"], 0, row["truncated"]))
        trajectory.turns[-1].outcome = row["outcome"] and Outcome(row["outcome"])
        return trajectory, row


def full_sides(taken: Collection[tuple[bool, str]], cap: int) -> set[bool]:
    """Which of right-first (True) and wrong-first (False) have as many trajectories as a problem may give to a class."""
    counts = Counter(side for side, _ in taken)
    return {side for side in (True, False) if counts[side] >= cap}


def side_of(tree: Sequence[Row], least_agreement: float) -> list[tuple[bool, str]]:
    """[(whether its attempt is right, what that says)] if the tree holds a demonstration, else []: copies count once."""
    if not tree:
        return []
    children: dict[str, list[Row]] = {row["id"]: [] for row in tree}
    for row in tree[1:]:
        children[row["parent"]].append(row)
    found, _ = candidates(tree[0], children, least_agreement)
    return [(tree[0]["outcome"] == Outcome.CORRECT, tree[0]["text"])] if found else []


def continued(trajectory: Trajectory, name: str) -> Trajectory:
    """A new trajectory that goes on where this one stopped."""
    return Trajectory(
        f"{trajectory.id}/{name}",
        trajectory.prompt_id,
        trajectory.question,
        trajectory.gold,
        trajectory.prompt_token_ids,
        [Turn(**{slot: getattr(turn, slot) for slot in Turn.__slots__}) for turn in trajectory.turns],
        seed=trajectory.seed,
    )
