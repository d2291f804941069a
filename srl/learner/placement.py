"""Room in the cluster for a group of actors: all of it or none, by a deadline, and what was missing if it never came."""

from collections import Counter
from collections.abc import Sequence

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from srl.config import Config, ConfigError

SHARE = 0.5  # of a GPU, to Ray, that each of two actors has which share it


def reserve(
    bundles: Sequence[dict[str, float]], nodes: dict[str, str], timeout_s: float, setting: str, who: str
) -> PlacementGroup:
    """One bundle per actor, on as few nodes as will hold them, all with the labels `nodes`.

    Raises ConfigError after `timeout_s`, the value of `setting`, naming what is asked, what is free and what is missing.
    """
    free = Counter(ray.available_resources())
    group = placement_group(list(bundles), strategy="PACK", bundle_label_selector=[nodes] * len(bundles) if nodes else None)
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except GetTimeoutError:
        remove_placement_group(group)
        raise ConfigError(
            f"{setting}={timeout_s:g}: no room for {who}: {missing(bundles, free, ray.cluster_resources(), nodes)}"
        ) from None
    return group


def missing(bundles: Sequence[dict[str, float]], free: dict[str, float], present: dict[str, float], nodes: dict[str, str]) -> str:
    """Per resource: asked, free and present; or that no single node has enough together."""
    asked: Counter[str] = Counter()
    for bundle in bundles:
        asked.update(bundle)
    short = [
        f"{amount:g} {kind} asked, {free.get(kind, 0):g} of {present.get(kind, 0):g} free"
        for kind, amount in asked.items()
        if amount > free.get(kind, 0)
    ]
    where = f" on nodes with the labels {nodes}" if nodes else ""
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in bundles[0].items() if amount)
    return "; ".join(short) or f"no node{where} has {each} free for one actor"


def learner_room(config: Config) -> PlacementGroup:
    learner = config.learner
    bundle = {"CPU": learner.cpus} | ({"GPU": learner.gpus} if learner.gpus else {})
    who = f"{learner.workers} learners"
    return reserve([bundle] * learner.workers, learner.nodes, learner.start_timeout_s, "learner.start_timeout_s", who)


def shared_room(config: Config) -> PlacementGroup:
    """Bundle i is for learner rank i and engine i, on one GPU."""
    learner, rollout = config.learner, config.rollout
    bundle = {"CPU": learner.cpus + rollout.cpus} | ({"GPU": learner.gpus} if learner.gpus else {})
    who = f"{learner.workers} learners, each with an engine beside it (rollout.colocate)"
    return reserve([bundle] * learner.workers, learner.nodes, learner.start_timeout_s, "learner.start_timeout_s", who)
