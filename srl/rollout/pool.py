"""All rollout workers behind one call. Work of a worker that dies goes to it again after Ray has restarted it."""

import math
import time
from collections.abc import Callable, Sequence

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from srl.config import Config, ConfigError
from srl.rollout.worker import RolloutWorker, StaleWeights
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle


class RolloutPool:
    """`bundle` is what every worker must hold; None means the weights they start with, version 0."""

    def __init__(self, config: Config):
        self.config, self.bundle = config, None
        actor = ray.remote(RolloutWorker).options(
            num_cpus=config.rollout.cpus,
            num_gpus=config.rollout.gpus,
            label_selector=config.rollout.nodes,
            max_restarts=config.rollout.retries,
            max_task_retries=0,
        )
        self.workers: list[ActorHandle] = [actor.remote(config, index) for index in range(config.rollout.workers)]
        try:
            ray.get([worker.ready.remote() for worker in self.workers], timeout=config.rollout.start_timeout_s)
        except GetTimeoutError:
            raise ConfigError(
                f"rollout.start_timeout_s={config.rollout.start_timeout_s:g}: {config.rollout.workers} workers with "
                f"{config.rollout.cpus:g} CPUs and {config.rollout.gpus:g} GPUs each did not start; "
                f"free in the cluster: {ray.available_resources()}"
            ) from None
        except RayActorError as error:
            raise ConfigError(f"a rollout worker could not start: {cause(error)}") from None

    @property
    def version(self) -> int:
        return self.bundle.version if self.bundle else 0

    def load_weights(self, bundle: Bundle) -> float:
        """All workers take these weights; returns the seconds of the slowest."""
        self.bundle = bundle
        return max(self._wait(lambda: [worker.load_weights.remote(bundle) for worker in self.workers], "weights to load"))

    def generate(
        self, protocol: str, trajectories: Sequence[Trajectory], temperature: float, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        """Run all trajectories to their end; the order given is kept. `progress` hears how many more are done.

        Work is cut into a few chunks per worker, so that fast workers take more. Each chunk is tried `rollout.retries` times
        more if its worker dies; TimeoutError after `rollout.timeout_s` for a chunk.
        """
        if not trajectories:
            return []
        size = max(1, min(4 * self.config.rollout.max_sequences, math.ceil(len(trajectories) / len(self.workers))))
        chunks = [list(trajectories[start : start + size]) for start in range(0, len(trajectories), size)]
        results: dict[str, Trajectory] = {}
        queue = [(chunk, 0) for chunk in reversed(chunks)]
        idle, running = list(self.workers), {}
        while queue or running:
            while queue and idle:
                chunk, failures = queue.pop()
                worker = idle.pop()
                reference = worker.generate.remote(protocol, chunk, temperature, self.version)
                running[reference] = worker, chunk, failures, time.monotonic()
            ready, _ = ray.wait(list(running), timeout=1)
            for reference in ready:
                worker, chunk, failures, _ = running.pop(reference)
                done = self._result(reference, worker, failures)
                if done is None:
                    queue.append((chunk, failures + 1))
                else:
                    results.update((trajectory.id, trajectory) for trajectory in done)
                    if progress:
                        progress(len(done))
                idle.append(worker)
            self._check_deadlines(running)
        return [results[trajectory.id] for trajectory in trajectories]

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)

    def _result(self, reference: ray.ObjectRef, worker: ActorHandle, failures: int) -> list[Trajectory] | None:
        """The finished chunk, or None after the worker was brought back with the current weights."""
        try:
            return ray.get(reference)
        except RayActorError as error:
            if failures >= self.config.rollout.retries:
                raise RuntimeError(
                    f"rollout.retries={self.config.rollout.retries}: workers keep dying: {cause(error)}"
                ) from error
        except RayTaskError as error:
            if not isinstance(error.cause, StaleWeights):
                raise
        self._wait(lambda: [worker.ready.remote()], "a rollout worker to restart")
        if self.bundle:
            self._wait(lambda: [worker.load_weights.remote(self.bundle)], "a restarted worker to load weights")
        return None

    def _wait(self, call: Callable[[], list[ray.ObjectRef]], what: str) -> list:
        """Results of `call`, made again while an actor it needs is restarting."""
        limit = self.config.rollout.start_timeout_s
        deadline = time.monotonic() + limit
        while True:
            try:
                return ray.get(call(), timeout=max(0.0, deadline - time.monotonic()))
            except ActorUnavailableError:
                time.sleep(0.5)
            except GetTimeoutError:
                raise TimeoutError(f"rollout.start_timeout_s={limit:g}: waited for {what}") from None

    def _check_deadlines(self, running: dict) -> None:
        # The worker's own deadline comes first and says more; this one is for a worker that hangs.
        limit = self.config.rollout.timeout_s + 30
        for worker, chunk, _, started in running.values():
            if time.monotonic() - started > limit:
                raise TimeoutError(
                    f"rollout.timeout_s={self.config.rollout.timeout_s:g}: {worker} hangs with {len(chunk)} trajectories"
                )


def cause(error: Exception) -> str:
    """The last line of a remote traceback, which is the error itself."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
