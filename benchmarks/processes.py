"""The processes of a run, found below its driver by what they call themselves."""

import psutil

ROLES = {
    "ray::RolloutWorker": "rollout",
    "ray::Learner": "learner",
    "ray::RewardActor": "reward",
    "srl.reward.worker": "grading",
    "gcs_server": "head",  # Ray's tables of everything
    "EngineActor": "sampling",  # of stage 1's pipelines
}


def role(command: str) -> str:
    """What a process below a driver is for; `ray` for Ray's own."""
    return next((role for words, role in ROLES.items() if words in command), "ray")


def by_role(driver: int) -> dict[str, list[psutil.Process]]:
    """The driver and everything it has started and that still runs; empty when it is gone."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        top = psutil.Process(driver)
        below = top.children(recursive=True)
        if top.status() == psutil.STATUS_ZOMBIE:
            return {}
    except psutil.NoSuchProcess:
        return {}
    found["driver"] = [top]
    for process in below:
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if command:  # a zombie has none
            found.setdefault(role(command), []).append(process)
    return found
