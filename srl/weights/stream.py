"""Weights of one version handed over part by part, straight from the learners' memory, while both sides wait for each other.

Each learner rank gathers a bucket, copies it into one piece of memory and computes its digest (`Outgoing`). The workers open that
memory (`ipc`) or take part in a broadcast from rank 0 (`broadcast`), check the digest and load (`receive_part`). Meanwhile the
next bucket is gathered. The driver makes one call per part and process (`hand_over`).
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from srl.weights.broadcast import BroadcastGroup
from srl.weights.bucket import Named
from srl.weights.bundle import Bundle, Lazy
from srl.weights.flat import Entry, cut, digest, fill, lay_out
from srl.weights.share import Handle, Lent, open_lent, place

LIMIT = "learner.transfer_timeout_s"
EVERYWHERE = ""  # the place of a part that comes by broadcast
DEAD = (RayActorError, OutOfMemoryError)  # of a call to a dead actor; the latter if Ray's memory monitor killed it for good


@dataclass(frozen=True, slots=True)
class Part:
    """One bucket in one piece of `size` bytes at `place`; with `handle` it can be opened there."""

    version: int
    index: int
    size: int
    digest: str
    entries: list[Entry]
    place: str
    handle: Handle
    gather_s: float
    pack_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """Where the members of a broadcast meet, how many they are, and the rank of the first process of the one it is given to."""

    address: tuple[str, int]
    first_rank: int
    size: int
    timeout_s: float


class Source(Protocol):
    """What hands weights over: all learner ranks behind one face."""

    linked: frozenset[str]  # members of the broadcast group; empty when there is none

    def open_link(self) -> tuple[str, int]: ...
    def join_link(self, size: int) -> ray.ObjectRef: ...
    def stage(self) -> list[ray.ObjectRef]: ...
    def staged(self, references: list[ray.ObjectRef]) -> list[Part | None]: ...
    def finish(self) -> None: ...
    def break_off(self) -> None: ...
    def whole(self, version: int) -> Bundle: ...


@dataclass
class Stream:
    """Weights that are still with the learners. `size` (bytes) and `seconds` are those of the last hand-over."""

    version: int
    source: Source
    broadcast: bool
    size: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    copy: Bundle | None = None

    def bundle(self) -> Bundle:
        """The same weights through the object store, for who comes late. The learners must not have moved on."""
        self.copy = self.copy or self.source.whole(self.version)
        return self.copy


class Outgoing:
    """One rank's side. Two parts exist at a time: the one that is being received and the next.

    What is held until it was received is the copy, so the gathered tensors are shards again as soon as they are copied. Without
    `sends` the rank only takes part in the gathering. Parts are `broadcast` to a group, or lent.
    """

    def __init__(
        self,
        version: int,
        buckets: Iterator[tuple[Lazy, ExitStack]],
        device: torch.device,
        sends: bool,
        broadcast: bool,
    ):
        self.version, self.buckets, self.device, self.sends, self.broadcast = version, buckets, device, sends, broadcast
        self.index = 0
        self.going: deque[tuple[int, Lent | torch.Tensor, Any]] = deque()

    def stage(self, group: BroadcastGroup | None) -> Part | None:
        """Make the next part ready, and begin to send it. None after the last, and always for a rank that does not send.

        When this is called for part n + 2, part n was received.
        """
        started = time.monotonic()
        bucket = next(self.buckets, None)
        gathered = time.monotonic()
        if bucket is None:
            return None
        lazy, opened = bucket
        with opened:
            self._settle(1, group)
            return self._pack(lazy(), gathered - started, group) if self.sends else None

    def finish(self, group: BroadcastGroup | None) -> None:
        """Returns when everything was received."""
        self._settle(0, group)

    def drop(self) -> None:
        """Forget what is on its way, received or not."""
        while self.going:
            _, memory, _ = self.going.popleft()
            if isinstance(memory, Lent):
                memory.close()

    def _pack(self, named: Named, gather_s: float, group: BroadcastGroup | None) -> Part:
        started, index = time.monotonic(), self.index
        self.index += 1
        entries, size = lay_out(named)
        lent = None if self.broadcast else Lent(size, self.device)
        flat = lent.flat if lent else torch.empty(size, dtype=torch.uint8, device=self.device)
        fill(flat, named, entries)
        found = digest(flat)  # waits for the copies
        # On a GPU this is only begun: the gathering of the next bucket goes on beside it. Neither ever waits for the other, as
        # the workers take part in the broadcast only, and the other ranks in the gathering only.
        work = group.begin(flat) if self.broadcast else None
        self.going.append((index, lent or flat, work))
        where, handle = (place(self.device), lent.handle()) if lent else (EVERYWHERE, [])
        return Part(self.version, index, size, found, entries, where, handle, gather_s, time.monotonic() - started)

    def _settle(self, most: int, group: BroadcastGroup | None) -> None:
        while len(self.going) > most:
            index, memory, work = self.going.popleft()
            if self.broadcast:
                group.wait(work, f"part {index} of weights {self.version} to be received")
            else:
                memory.close()


def receive_part(
    parts: Mapping[str, Mapping[str, Any]], device: torch.device, group: BroadcastGroup | None
) -> tuple[Named, float]:
    """The tensors of a part, of which there is a copy at each place, and the seconds until they were here and checked.

    Raises ValueError when none is at this place, or it arrives changed.
    """
    started = time.monotonic()
    here = EVERYWHERE if EVERYWHERE in parts else place(device)
    if here not in parts:
        raise ValueError(f"learner.transfer=ipc: this process is on {here}, learners are on {', '.join(sorted(parts))}")
    part = Part(**parts[here])
    if part.place == EVERYWHERE:
        if group is None:
            raise ValueError(f"weights version {part.version}: part {part.index} is broadcast to a group that was not joined")
        flat = torch.empty(part.size, dtype=torch.uint8, device=device)
        group.wait(group.begin(flat), f"part {part.index} of weights {part.version}")
    else:
        flat = open_lent(part.handle, device)
        if device.type == "cuda":
            # A copy: the learner writes the part after the next one where this one was. A file is written once.
            flat = flat.clone()
    if (found := digest(flat)) != part.digest:
        raise ValueError(f"weights version {part.version}, part {part.index}: checksum {found} instead of {part.digest}")
    return cut(flat, part.entries), time.monotonic() - started


def hand_over(stream: Stream, receivers: Mapping[str, ActorHandle], processes: int, timeout_s: float) -> dict[str, str]:
    """Every part to every receiver, each of `processes` processes, all of which wait for the first part.

    Returns why receivers that did not get all of it did not; of a broadcast these are all when one is missing. Raises what the
    learners raise, and ValueError for a part that arrives changed.
    """
    source, lost = stream.source, {}
    stream.size, stream.seconds = 0, Counter()
    if stream.broadcast and source.linked != frozenset(receivers):
        lost = link(source, receivers, processes, timeout_s)
    if not lost:
        lost = send_parts(stream, receivers, timeout_s)
    if lost and stream.broadcast:
        source.break_off()
        return {name: lost.get(name, "another member of the broadcast was lost") for name in receivers}
    source.finish()
    return lost


def send_parts(stream: Stream, receivers: Mapping[str, ActorHandle], timeout_s: float) -> dict[str, str]:
    """Part after part, the next of which is staged while one loads; who was lost on the way, and why. A broadcast ends with the
    first loss, lent parts go on to those that are left."""
    source, left, lost = stream.source, dict(receivers), {}
    staging = source.stage()
    while parts := [part for part in source.staged(staging) if part is not None]:
        if not left:
            break
        offered = {part.place: asdict(part) for part in parts}
        loading = {worker.load_part.remote(offered): name for name, worker in left.items()}
        staging = source.stage()
        count(stream, parts)
        what = f"part {parts[0].index} of weights {stream.version} to load"
        lost |= failed(loading, timeout_s, what, all_or_none=stream.broadcast)
        if lost and stream.broadcast:
            break
        left = {name: worker for name, worker in receivers.items() if name not in lost}
    return lost


def count(stream: Stream, copies: list[Part]) -> None:
    """Ranks work side by side: the slowest counts."""
    stream.size += copies[0].size
    stream.seconds["gather"] += max(part.gather_s for part in copies)
    stream.seconds["pack"] += max(part.pack_s for part in copies)


def link(source: Source, receivers: Mapping[str, ActorHandle], processes: int, timeout_s: float) -> dict[str, str]:
    """A new broadcast group of the first learner and every process of the receivers; why it could not be made, if so."""
    address, size = source.open_link(), 1 + processes * len(receivers)
    joining = {
        worker.load_part.remote(Link(address, 1 + processes * position, size, timeout_s)): name
        for position, (name, worker) in enumerate(receivers.items())
    }
    joined = source.join_link(size)
    lost = failed({joined: "learner", **joining}, timeout_s, "the members of a broadcast to meet", all_or_none=True)
    if not lost:
        source.linked = frozenset(receivers)
    return lost


def failed(
    calls: Mapping[ray.ObjectRef, Any], timeout_s: float, what: str, setting: str = LIMIT, all_or_none: bool = False
) -> dict[Any, str]:
    """Whose call did not return in `timeout_s`, the value of `setting`, and why; with `all_or_none` the first ends the wait."""
    lost, pending, deadline = {}, dict(calls), time.monotonic() + timeout_s
    while pending and not (lost and all_or_none):
        ready, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return lost | dict.fromkeys(pending.values(), f"{setting}={timeout_s:g}: waited for {what}")
        for reference in ready:
            name = pending.pop(reference)
            try:
                ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None
                lost[name] = last_line(error)
            except DEAD as error:
                lost[name] = last_line(error)
    return lost


def last_line(error: Exception) -> str:
    """Of a remote traceback: the error itself. Of the memory monitor's report, which ends with advice, how it begins."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0 if isinstance(error, OutOfMemoryError) else -1].strip()
