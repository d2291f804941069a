"""What heartbeats mean: who is silent, what does not move, whose memory runs out, why an actor probably died. Pure functions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MEMORY_SHARE = 0.92  # of its node's or container's memory; Ray's own monitor kills at 0.95


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of one process. Memory is in bytes.

    No two actors of a role have one `rank`, but two may have one `pid`: every pod counts its own. `doing` is the function of srl
    that each busy thread is in; `counts` only ever grow while the process works. The receiver adds, in its own monotonic seconds,
    when it came, when its counts last moved and since when it does this, and how often the actor has started.
    """

    role: str
    rank: int | str
    actor_id: str
    node: str
    pid: int
    doing: str
    resident: int
    node_used: int
    node_limit: int
    counts: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    heard: float = 0.0
    moved: float = 0.0
    since: float = 0.0
    starts: int = 1

    @property
    def name(self) -> str:
        return f"{self.role} {self.rank}"

    @property
    def process(self) -> str:
        return f"{self.name} {self.node} {self.pid}"


def silent(beats: Iterable[Beat], now: float, limit_s: float) -> list[Beat]:
    """Those that have not been heard for `limit_s`."""
    return [beat for beat in beats if now - beat.heard > limit_s]


def stalled(beats: Sequence[Beat], phase: str, still_s: float, now: float, limit_s: float) -> str | None:
    """A line when nothing has moved for longer than the limit: who is busy with what."""
    if still_s <= limit_s:
        return None
    busy = [f"{beat.name} in {beat.doing} for {now - beat.since:.0f} s" for beat in beats if beat.doing != "idle"]
    return f"phase {phase} has not moved for {still_s:.0f} s: {'; '.join(busy) or 'every actor is idle'}"


def memory_risks(beats: Iterable[Beat]) -> list[str]:
    """A line for each node that is nearly full, with what fills it, the largest first."""
    nodes: dict[str, list[Beat]] = {}
    for beat in beats:
        nodes.setdefault(beat.node, []).append(beat)
    lines = []
    for node, on_node in nodes.items():
        latest = max(on_node, key=lambda beat: beat.heard)
        share = latest.node_used / max(1, latest.node_limit)
        if share > MEMORY_SHARE:
            largest = sorted(on_node, key=lambda beat: -beat.resident)[:3]
            shares = ", ".join(f"{beat.name} {gibibytes(beat.resident)}" for beat in largest)
            lines.append(
                f"node {node} uses {share:.0%} of its {gibibytes(latest.node_limit)} memory ({shares}); {remedy(largest[0])}"
            )
    return lines


def likely_cause(actor_id: str, message: str, beats: Iterable[Beat], now: float) -> str | None:
    """Why an actor died, from Ray's message and its last heartbeat; None if it was never heard."""
    beat = next((beat for beat in beats if beat.actor_id == actor_id), None)
    if beat is None:
        return None
    share = beat.node_used / max(1, beat.node_limit)
    seen = (
        f"{beat.name} on {beat.node} (pid {beat.pid}) died in {beat.doing}; {now - beat.heard:.0f} s before, it had "
        f"{gibibytes(beat.resident)} resident and its node used {share:.0%} of {gibibytes(beat.node_limit)}"
    )
    # Ray's message about any crash speaks of the OOM killer, nodes and deaths: only these sentences mean them.
    if "killed due to the node running low on memory" in message or share > MEMORY_SHARE:
        return f"{seen}: out of memory; {remedy(beat)}"
    if "because its node has died" in message:
        return f"{seen}: its node left the cluster"
    return f"{seen}: killed by a signal or by an error in native code; its own log says more (`ray logs actor --id {actor_id}`)"


def killed_for_memory(report: str, beats: Iterable[Beat]) -> Beat | None:
    """The last heartbeat of what Ray's memory monitor killed, from its report, which names those it spared too.

    It knows an actor by its process: one whose constructor still runs has no id there.
    """
    pids = {int(pid) for pid in re.findall(r"^Selected to kill: \(.*?\bpid=(\d+)", report, re.MULTILINE)}
    return next((beat for beat in beats if beat.pid in pids and f"(IP: {beat.node}," in report), None)


def remedy(beat: Beat) -> str:
    settings = {
        "learner": "learner.micro_batch_tokens, learner.gradient_checkpointing, learner.zero_stage or more learner.workers",
        "rollout": "rollout.kv_cache_gib or rollout.max_sequences",
        "reward": "reward.workers",
    }
    return f"settings that change it: {settings.get(beat.role, 'the size of the batch')}"


def gibibytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
