"""What one step of stage 2 samples: groups of trajectories, some by the previous policy, some from given attempts."""

from srl.driver.session import Session
from srl.pipelines.restarts import restart_groups, verification_groups
from srl.tasks.problems import Problem
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle


def sample_groups(session: Session, problems: list[Problem], step: int, previous: Bundle | None) -> list[Trajectory]:
    """`rl.group` trajectories of each problem, not graded; `rl.previous_share` of them by the weights of `previous`."""
    settings, protocol, pool = session.config.rl, session.config.protocol.name, session.pool()
    asked = [
        session.new_trajectory(f"rl/{step}/{problem.prompt_id}/{member}", problem)
        for problem in problems
        for member in range(settings.group)
    ]
    old = round(settings.previous_share * settings.group) if previous else 0
    if not old:
        return pool.generate(protocol, asked, 1.0)
    current, by_old = pool.bundle, {trajectory.id for index, trajectory in enumerate(asked) if index % settings.group < old}
    pool.load_weights(previous)
    done = pool.generate(protocol, [trajectory for trajectory in asked if trajectory.id in by_old], 1.0)
    pool.load_weights(current)
    done += pool.generate(protocol, [trajectory for trajectory in asked if trajectory.id not in by_old], 1.0)
    by_id = {trajectory.id: trajectory for trajectory in done}
    return [by_id[trajectory.id] for trajectory in asked]


def sample_extra(session: Session, trajectories: list[Trajectory]) -> list[Trajectory]:
    """The further groups of `rl.extra`, graded, from this step's graded trajectories; none if the recipe wants none."""
    settings = session.config.rl
    if settings.extra == "none":
        return []
    make, protocol = {
        "verification": (verification_groups, "verdict"),
        "restart": (restart_groups, session.config.protocol.name),
    }[settings.extra]
    extra = make(trajectories, max(1, round(settings.extra_share * settings.prompts)), settings.group)
    done = session.pool().generate(protocol, extra, 1.0)
    session.grade(done)
    return done
