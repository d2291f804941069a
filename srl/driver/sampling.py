"""What one step of stage 2 samples: groups of trajectories, some by the previous policy, some from given attempts."""

from srl.driver.session import Session
from srl.pipelines.restarts import restart_groups, verification_groups
from srl.tasks.problems import Problem
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle


def new_group(session: Session, problem: Problem, name: str) -> list[Trajectory]:
    """`rl.group` trajectories of a problem, to be sampled; `name` begins their ids and must be this group's own."""
    return [session.new_trajectory(f"{name}/{problem.prompt_id}/{member}", problem) for member in range(session.config.rl.group)]


def sample_mixed(session: Session, groups: list[list[Trajectory]], previous: Bundle) -> list[list[Trajectory]]:
    """The groups, sampled: `rl.previous_share` of each by the weights of `previous`, the rest by those that the pool holds."""
    settings, protocol, pool = session.config.rl, session.config.own_protocol, session.pool()
    old = settings.previous_members
    current = pool.fleet.weights
    pool.load_weights(previous)
    done = pool.generate(protocol, [trajectory for group in groups for trajectory in group[:old]], 1.0)
    pool.load_weights(current)
    done += pool.generate(protocol, [trajectory for group in groups for trajectory in group[old:]], 1.0)
    by_id = {trajectory.id: trajectory for trajectory in done}
    return [[by_id[trajectory.id] for trajectory in group] for group in groups]


def sample_extra(session: Session, trajectories: list[Trajectory]) -> list[Trajectory]:
    """The further groups of `rl.extra`, graded, from this step's graded trajectories; none if the recipe wants none."""
    settings = session.config.rl
    if settings.extra == "none":
        return []
    make, protocol = {
        "verification": (verification_groups, "verdict"),
        "restart": (restart_groups, session.config.own_protocol),
    }[settings.extra]
    extra = make(trajectories, max(1, round(settings.extra_share * settings.prompts)), settings.group)
    done = session.pool().generate(protocol, extra, 1.0)
    session.grade(done)
    return done
