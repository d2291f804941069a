"""All learner ranks behind one call: one interface for training, saving and publishing weights."""

from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError

from srl.config import Config, ConfigError
from srl.learner.actor import Learner
from srl.learner.batch import Example
from srl.learner.losses import Loss
from srl.learner.packing import pack
from srl.weights.bundle import Bundle


class LearnerGroup:
    """Ranks live and die together: an error of one ends the group's call."""

    def __init__(
        self,
        config: Config,
        path: str,
        reference: str | None,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        critic: bool = False,
    ):
        self.config = config
        world = config.learner.workers
        actor = ray.remote(Learner).options(
            num_cpus=config.learner.cpus, num_gpus=config.learner.gpus, label_selector=config.learner.nodes, max_restarts=0
        )
        self.ranks = [actor.remote(config, rank, world) for rank in range(world)]
        self.where = "learner actors to start"
        try:
            address = ray.get(self.ranks[0].address.remote(), timeout=config.learner.timeout_s)
        except GetTimeoutError:
            raise ConfigError(
                f"learner.timeout_s={config.learner.timeout_s:g}: {world} learners with {config.learner.cpus:g} CPUs and "
                f"{config.learner.gpus:g} GPUs each did not start; free in the cluster: {ray.available_resources()}"
            ) from None
        self._all("start", path, reference, critic, address, learning_rate, weight_decay, clip)

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
        """Mean loss per weighted token."""
        denominator = token_weight(examples)
        parts = self._split(examples)
        return sum(
            self._get(
                [rank.evaluate.remote(part, loss, denominator) for rank, part in zip(self.ranks, parts, strict=True)],
                "an evaluation",
            )
        )

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

    def publish(self, version: int) -> tuple[Bundle, float]:
        """The current weights for the rollout workers, and the seconds it took to gather them."""
        return self._all("publish", version)[0]

    def save(self, folder: Path) -> None:
        self._all("save", str(folder))

    def close(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)

    def _split(self, examples: Sequence[Example]) -> list[list[list[Example]]]:
        lengths, units = [len(example.token_ids) for example in examples], [example.unit for example in examples]
        plan = pack(lengths, self.config.learner.micro_batch_tokens, len(self.ranks), units)
        return [[[examples[index] for index in row] for row in rank] for rank in plan]

    def _all(self, method: str, *arguments) -> list:
        return self._get([getattr(rank, method).remote(*arguments) for rank in self.ranks], f"learners to {method}")

    def _get(self, references: list[ray.ObjectRef], what: str) -> list:
        try:
            return ray.get(references, timeout=self.config.learner.timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"learner.timeout_s={self.config.learner.timeout_s:g}: waited for {what}") from None


def token_weight(examples: Sequence[Example]) -> float:
    """Weighted tokens over all examples. Raises ValueError when there is nothing to train on."""
    total = sum(sum(example.weights[1:]) for example in examples)
    if total <= 0:
        raise ValueError(f"none of {len(examples)} examples has a token with weight")
    return total
