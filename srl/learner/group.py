"""All learner ranks behind one call: one interface for training, saving and publishing weights."""

from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from srl.config import Config, ConfigError
from srl.learner.actor import Learner
from srl.learner.batch import Example
from srl.learner.losses import Loss
from srl.learner.packing import pack
from srl.learner.placement import SHARE, learner_room
from srl.weights.bundle import Bundle
from srl.weights.stream import DEAD, Part, Stream, last_line

EXAMPLES_AT_ONCE = 1024  # of an evaluation
PING_S = 5.0  # for a rank that is alive and not busy to say so


class LearnerLost(RuntimeError):
    """A rank died, and the others with it: `rebuild` and load the last checkpoint."""


class LearnerGroup:
    """Ranks live and die together: an error of one ends the group's call.

    The model at `path` is trained (a critic: with a value head); the one at `reference` is frozen.
    """

    def __init__(
        self,
        config: Config,
        path: str,
        reference: str | None,
        weight_decay: float,
        clip: float,
        critic: bool = False,
        shared: PlacementGroup | None = None,
    ):
        """`shared` is room for learner and engine i in bundle i; without it the group reserves its own."""
        self.config = config
        self.arguments = (path, reference, critic, weight_decay, clip)
        self.shared, self.room = shared is not None, shared or learner_room(config)
        self.linked: frozenset[str] = frozenset()
        self._come_up()

    def _come_up(self) -> None:
        """Start; a rank that dies meanwhile has cost nothing yet, so that all start again, `learner.retries` times at most."""
        for _ in range(self.config.learner.retries):
            try:
                self._start()
                return
            except LearnerLost:
                self._kill()
        self._start()

    def _start(self) -> None:
        learner = self.config.learner
        self.ranks = [
            ray.remote(Learner)
            .options(
                num_cpus=learner.cpus,
                num_gpus=learner.gpus * (SHARE if self.shared else 1),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.room, rank),
            )
            .remote(self.config, rank, learner.workers)
            for rank in range(learner.workers)
        ]
        path, reference, critic, weight_decay, clip = self.arguments
        self.linked = frozenset()
        address = self._get([self.ranks[0].address.remote()], "the first learner to start")[0]
        self._all("start", path, reference, critic, address, weight_decay, clip)

    def rebuild(self) -> None:
        """New ranks in the place of the old ones, with the weights the group was created with."""
        self._kill()
        self._start()

    def _kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)

    def train(self, examples: Sequence[Example], loss: Loss, learning_rate: float) -> dict[str, float]:
        """One optimizer step on all examples; losses and metrics are means over the weighted tokens of all ranks."""
        denominator = token_weight(examples)
        parts = self._split(examples)
        results = self._get(
            [rank.train.remote(part, loss, denominator, learning_rate) for rank, part in zip(self.ranks, parts, strict=True)],
            "a training step",
        )
        metrics = {name: sum(result[name] for result in results) for name in results[0]}
        return {**metrics, "gradient_norm": results[0]["gradient_norm"], "trained_tokens": denominator}

    def evaluate(self, examples: Sequence[Example], loss: Loss) -> float:
        """Mean loss per weighted token. Where `examples` makes each when asked, `EXAMPLES_AT_ONCE` are in memory."""
        denominator, total = token_weight(examples), 0.0
        for begin in range(0, len(examples), EXAMPLES_AT_ONCE):
            parts = self._split(list(examples[begin : begin + EXAMPLES_AT_ONCE]))
            total += sum(
                self._get(
                    [rank.evaluate.remote(part, loss, denominator) for rank, part in zip(self.ranks, parts, strict=True)],
                    "an evaluation",
                )
            )
        return total

    def logprobs(self, examples: Sequence[Example], model: str = "") -> dict[str, list[float]]:
        """Log-probabilities of the trained tokens by example id: the current policy's, or those of a frozen model."""
        return self._forward(examples, model, "log-probabilities")

    def values(self, examples: Sequence[Example]) -> dict[str, list[float]]:
        """A critic's values of the states before the trained tokens, by example id."""
        return self._forward(examples, "", "values")

    def freeze(self, name: str) -> None:
        """Keep the current policy as the frozen model of that name: "reference" is what the KL is measured against."""
        self._all("freeze", name)

    def _forward(self, examples: Sequence[Example], model: str, what: str) -> dict[str, list[float]]:
        parts = self._split(examples)
        results = self._get([rank.forward.remote(part, model) for rank, part in zip(self.ranks, parts, strict=True)], what)
        return {name: values for result in results for name, values in result.items()}

    def publish(self, version: int) -> Bundle | Stream:
        """The current weights for the rollout workers: a copy in the object store, or what hands them over."""
        if self.config.transfer == "store":
            return self.whole(version)
        self._all("begin_stream", version)
        return Stream(version, self, self.config.transfer == "broadcast")

    def whole(self, version: int) -> Bundle:
        """A copy of the current weights in the object store."""
        return self._all("publish", version)[0]

    def open_link(self) -> tuple[str, int]:
        self.linked = frozenset()
        return self._get([self.ranks[0].open_link.remote()], "the first learner to open a broadcast")[0]

    def join_link(self, size: int) -> ray.ObjectRef:
        return self.ranks[0].join_link.remote(size)

    def stage(self) -> list[ray.ObjectRef]:
        return [rank.stage.remote() for rank in self.ranks]

    def staged(self, references: list[ray.ObjectRef]) -> list[Part | None]:
        return self._get(references, "a part of the weights to be gathered", "transfer_timeout_s")

    def finish(self) -> None:
        self._all("finish_stream")

    def break_off(self) -> None:
        """Raises LearnerLost when a rank does not answer: NCCL waits without a deadline for members that died while they met."""
        self.linked = frozenset()
        try:
            self._get([rank.break_off.remote() for rank in self.ranks], "learners to break a transfer off", "transfer_timeout_s")
        except TimeoutError as error:
            raise LearnerLost(str(error)) from None

    def save(self, folder: Path) -> None:
        """A Hugging Face folder with the current weights."""
        self._all("save", str(folder))

    def save_state(self, folder: Path) -> None:
        """Everything the ranks need to continue; the folder must exist and be one that every rank can reach."""
        self._all("save_state", str(folder))

    def load_state(self, folder: Path) -> None:
        """Continue from a `save_state`, whatever the number of ranks that wrote it."""
        self._all("load_state", str(folder))

    def close(self) -> None:
        self._kill()
        if not self.shared:
            remove_placement_group(self.room)

    def _split(self, examples: Sequence[Example]) -> list[list[list[Example]]]:
        lengths, units = [len(example.token_ids) for example in examples], [example.unit for example in examples]
        plan = pack(lengths, self.config.learner.micro_batch_tokens, len(self.ranks), units)
        return [[[examples[index] for index in row] for row in rank] for rank in plan]

    def _all(self, method: str, *arguments) -> list:
        return self._get([getattr(rank, method).remote(*arguments) for rank in self.ranks], f"learners to {method}")

    def _get(self, references: list[ray.ObjectRef], what: str, limit: str = "timeout_s") -> list:
        """Raises LearnerLost when a rank is dead, TimeoutError when one hangs, and a rank's own error as it is."""
        timeout_s = getattr(self.config.learner, limit)
        try:
            return ray.get(references, timeout=timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"learner.{limit}={timeout_s:g}: waited for {what}") from None
        except DEAD as error:
            raise LearnerLost(f"a learner died during {what}: {last_line(error)}") from error
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise error.cause from None
            # The ranks that live on fail too, when the dead one leaves their collective.
            if self._some_rank_is_dead():
                raise LearnerLost(f"a learner died during {what}: {last_line(error)}") from error
            raise

    def _some_rank_is_dead(self) -> bool:
        answers, _ = ray.wait([rank.ping.remote() for rank in self.ranks], num_returns=len(self.ranks), timeout=PING_S)
        for answer in answers:
            try:
                ray.get(answer)
            except DEAD:
                return True
        return False


def token_weight(examples: Sequence[Example]) -> float:
    """Weighted tokens over all examples. Raises ValueError when there is nothing to train on."""
    total = sum(sum(example.weights[1:]) for example in examples)
    if total <= 0:
        raise ValueError(f"none of {len(examples)} examples has a token with weight")
    return total
