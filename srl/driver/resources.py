"""Whether a cluster can ever hold all actors at once: asked and there, side by side. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srl.config import Config


@dataclass(slots=True)
class Node:
    """What a Ray node has, and what is left of it while actors are placed on paper."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        labels = "".join(f" {key}={value}" for key, value in self.labels.items() if not key.startswith("ray.io/"))
        return f"{self.name} {self.cpus:g} CPUs {self.gpus:g} GPUs{labels}"


def alive_nodes(table: Sequence[Mapping[str, Any]]) -> list[Node]:
    """From `ray.nodes()`."""
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node.get("Labels") or {},
        )
        for node in table
        if node["Alive"]
    ]


def shortage(config: Config, nodes: Sequence[Node], trains: bool = True) -> str | None:
    """One line when some actors can have no place, else None; with `trains` false, learners are none of them.

    Actors are placed largest first, each on the node with the least left that still takes it. Stage-1 pipelines need one CPU
    more, anywhere.
    """
    there = "; ".join(str(node) for node in nodes)
    left = [Node(node.name, node.cpus, node.gpus, node.labels) for node in nodes]
    for role, again, part in sorted(parts(config, trains), key=lambda item: (-getattr(item[2], "gpus", 0), -item[2].cpus)):
        gpus = getattr(part, "gpus", 0)
        for placed in range(part.workers):
            if not place(left, part.cpus, gpus, part.nodes):
                where = "".join(f" on a node with {key}={value}" for key, value in part.nodes.items())
                return (
                    f"{role}.workers={part.workers} asked{again}, {placed} of them fit: each needs {part.cpus:g} CPUs and "
                    f"{gpus:g} GPUs{where}, beside the other actors; in the cluster: {there}"
                )
    if not place(left, 1, 0, {}):
        return f"stage 1's pipelines need 1 CPU beside all actors, none is left; in the cluster: {there}"
    return None


def parts(config: Config, trains: bool) -> list[tuple[str, str, Any]]:
    """Section, what its workers are besides or again, and what each of them takes."""
    learner, rollout = config.learner, config.rollout
    found: list[tuple[str, str, Any]] = [("reward", "", config.reward)]
    if rollout.colocate:
        both = learner.model_copy(update={"cpus": learner.cpus + rollout.cpus})
        found.append(("learner", ", each with an engine beside it", both))
    else:
        found += [("learner", "", learner)] * trains + [("rollout", "", rollout)]
    if config.credit.needs_critic and trains:
        found.append(("learner", " again for the critic", learner))
    if "/" in config.protocol.judge:  # a reward model's folder: an actor for each engine, as large as a learner
        found.append(("rollout", " and as many judges (protocol.judge)", learner.model_copy(update={"workers": rollout.workers})))
    return found


def demand(config: Config, trains: bool) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """What every actor takes, and stage 1's pipelines, as Ray's bundles, and the labels that the node of each must have."""
    bundles: list[dict[str, float]] = [{"CPU": 1}]
    labels: list[dict[str, str]] = [{}]
    for _, _, part in parts(config, trains):
        takes = {"CPU": part.cpus, "GPU": getattr(part, "gpus", 0)}
        bundles += [{name: amount for name, amount in takes.items() if amount}] * part.workers
        labels += [part.nodes] * part.workers
    return bundles, labels


def place(left: list[Node], cpus: float, gpus: float, labels: Mapping[str, str]) -> bool:
    """Take room for one actor; False when no node has it."""
    room = [
        node
        for node in left
        if node.cpus >= cpus and node.gpus >= gpus and all(node.labels.get(key) == value for key, value in labels.items())
    ]
    if not room:
        return False
    # Nodes without GPUs first for those that need none, as Ray does.
    node = min(room, key=lambda node: (node.gpus > 0 and not gpus, node.gpus, node.cpus))
    node.cpus -= cpus
    node.gpus -= gpus
    return True
