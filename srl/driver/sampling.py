"""What one step of stage 2 samples: groups of trajectories, some by the previous policy, some from given attempts."""

from collections.abc import Sequence

from srl.driver.session import Session
from srl.pipelines.restarts import restart_groups, verification_groups
from srl.tasks.problems import Problem
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle


def sample_groups(session: Session, problems: list[Problem], step: int, weights: Sequence[Bundle] = ()) -> list[Trajectory]:
    """`rl.group` trajectories of each problem, not graded.

    When `weights` are (previous, current), the first `rl.previous_share` of each group come from the previous ones.
    """
    settings, protocol, pool = session.config.rl, session.config.protocol.name, session.pool()
    asked = [
        session.new_trajectory(f"rl/{step}/{problem.prompt_id}/{member}", problem)
        for problem in problems
        for member in range(settings.group)
    ]
    old = round(settings.previous_share * settings.group) if len(weights) == 2 else 0
    if not old:
        return pool.generate(protocol, asked, 1.0)
    done = {}
    for bundle, is_old in zip(weights, (True, False), strict=True):
        pool.load_weights(bundle)
        part = [trajectory for index, trajectory in enumerate(asked) if (index % settings.group < old) is is_old]
        done |= {trajectory.id: trajectory for trajectory in pool.generate(protocol, part, 1.0)}
    return [done[trajectory.id] for trajectory in asked]


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
