"""The learner actor: a thin Ray shell around one rank's engine."""

import functools
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
import torch

from srl.config import Config
from srl.learner.batch import Batch, Example, collate
from srl.learner.checkpoint import read_parts, write_part
from srl.learner.engine import Engine, frozen, join_ranks, most_of_ranks, needs_weights
from srl.learner.lora import adapters_off, add_adapters
from srl.learner.losses import Loss
from srl.learner.model import TokenLogprobs, as_saved, load_critic, load_model, save_folder
from srl.observe.pulse import start_pulse
from srl.protocols.chat import load_tokenizer
from srl.weights.broadcast import BroadcastGroup, open_store
from srl.weights.bundle import Bundle, Lazy, send
from srl.weights.stream import Outgoing, Part

Metrics = dict[str, float]
FROZEN = "frozen-"  # begins the kind of tensors in a checkpoint that belong to a frozen model


class Learner:
    """One data-parallel rank. All ranks get the same calls in the same order; rank r works on its own micro-batches."""

    def __init__(self, config: Config, rank: int, world: int):
        self.config, self.rank, self.world = config, rank, world
        self.frozen: dict[str, Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]] = {}
        self.moved: set[str] = set()  # frozen models that are no longer what `start` loaded
        self.counts: Counter[str] = Counter()
        self.group: BroadcastGroup | None = None
        self.outgoing: Outgoing | None = None

    def __repr__(self) -> str:
        return f"Learner(rank={self.rank})"

    def ping(self) -> int:
        """The process, if it lives."""
        return os.getpid()

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(
        self, path: str, reference: str | None, critic: bool, address: tuple[str, int], weight_decay: float, clip: float
    ) -> None:
        """Load the model at `path` (a critic: with a value head) and a frozen copy of that at `reference`; join the ranks."""
        start_pulse("critic" if critic else "learner", self.rank, lambda: self.counts, self.levels)
        learner = self.config.learner
        join_ranks(address, self.rank, self.world, learner.gpus > 0, learner.timeout_s)
        if not learner.gpus:
            torch.set_num_threads(learner.threads)
        torch.manual_seed(self.config.run.seed)
        module = load_critic(path, self.config.model, needs_weights(self.config)) if critic else self._logprobs(path)
        if learner.lora_rank:
            add_adapters(module.model, learner.lora_rank, learner.lora_alpha, learner.lora_targets)
        if learner.gradient_checkpointing:
            module.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.path, self.pad_id = path, load_tokenizer(path).pad_token_id or 0
        self.engine = Engine(module, self.config, weight_decay, clip)
        self.device = self.engine.device
        if reference is not None:
            # With adapters the model without them is the reference, and no copy is needed.
            self.frozen["reference"] = self._without_adapters if learner.lora_rank else self._frozen(reference)

    def _frozen(self, path: str) -> torch.nn.Module:
        return frozen(self._logprobs(path), self.config, self.device)

    def _logprobs(self, path: str) -> TokenLogprobs:
        return TokenLogprobs(load_model(path, self.config.model, needs_weights(self.config)), most_of_ranks(self.config))

    def _without_adapters(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with adapters_off(self.engine.module):
            return self.engine(batch)

    def train(self, micro_batches: Sequence[Sequence[Example]], loss: Loss, denominator: float, learning_rate: float) -> Metrics:
        """One optimizer step. `denominator` is the number of weighted tokens over all ranks, so losses are means over them.

        Returns this rank's sums divided by the denominator (add them over ranks), and the gradient norm.
        """
        totals: dict[str, float] = defaultdict(float)
        self.engine.set_learning_rate(learning_rate)
        self.engine.train(True)
        norm = 0.0
        for index, examples in enumerate(micro_batches):
            batch = self._batch(examples)
            if "reference" in self.frozen:
                with torch.no_grad():
                    batch.reference_logprobs, _ = self.frozen["reference"](batch)
            logprobs_t, entropy_t = self.engine(batch)
            value, sums = loss(logprobs_t, batch)
            # DeepSpeed averages gradients over ranks; the denominator is already global.
            norm = self.engine.backward(value * (self.world / denominator), last=index == len(micro_batches) - 1)
            totals["entropy"] += float((batch.weights * entropy_t).sum()) / denominator
            for name, total in sums.items():
                totals[name] += float(total) / denominator
        return {**totals, "gradient_norm": norm}

    def evaluate(self, micro_batches: Sequence[Sequence[Example]], loss: Loss, denominator: float) -> float:
        """This rank's share of the mean loss, without training."""
        self.engine.train(False)
        total = 0.0
        with torch.no_grad():
            for examples in micro_batches:
                batch = self._batch(examples)
                logprobs_t, _ = self.engine(batch)
                total += float(loss(logprobs_t, batch)[0])
        return total / denominator

    def forward(self, micro_batches: Sequence[Sequence[Example]], model: str) -> dict[str, list[float]]:
        """Log-probabilities (a critic: values) of each example's trained tokens, by id; `model` is "" or a frozen one's name."""
        self.engine.train(False)
        module = self.frozen[model] if model else self.engine
        result = {}
        with torch.no_grad():
            for examples in micro_batches:
                batch = self._batch(examples)
                values_t = module(batch)[0]
                for index, example in enumerate(examples):
                    result[example.id] = values_t[batch.sequence == index].tolist()
        return result

    def freeze(self, name: str) -> None:
        """The frozen model of that name becomes a copy of the current policy."""
        if name not in self.frozen:
            self.frozen[name] = self._frozen(self.path)
        self.engine.copy_to(self.frozen[name])
        self.moved.add(name)

    def publish(self, version: int) -> Bundle | None:
        """The current weights under that version (rank 0; the others only take part in gathering)."""
        self.engine.free_cache()  # engines on the same GPU wake with what this gives back
        bundle = send(version, self._buckets(), sender=self.rank == 0)
        self.engine.free_cache()
        return bundle

    def _buckets(self) -> Iterator[tuple[Lazy, ExitStack]]:
        """The current weights as engines read them."""
        for bucket, opened in self.engine.buckets(self.config.learner.bucket_mib * 2**20):
            yield functools.partial(as_saved, self.engine.module.model, bucket), opened

    def open_link(self) -> tuple[str, int]:
        """Where the members of a new broadcast group meet; rank 0 only."""
        self.store, address = open_store(ray.util.get_node_ip_address(), self.config.learner.transfer_timeout_s)
        return address

    def join_link(self, size: int) -> None:
        """Rank 0 becomes the sender of a group of `size`; returns when all have met."""
        self._unlink()
        self.group = BroadcastGroup(0, size, self.device, self.config.learner.transfer_timeout_s, self.store)

    def begin_stream(self, version: int) -> None:
        """The next `stage` is the first part of the current weights under that version."""
        if self.outgoing is not None:
            self.outgoing.drop()  # what a stream that failed has left
        sends = self.config.transfer == "ipc" or self.rank == 0
        self.engine.free_cache()
        self.outgoing = Outgoing(version, self._buckets(), self.device, sends, self.config.transfer == "broadcast")

    def stage(self) -> Part | None:
        """The next part of the weights, made ready; None after the last and for ranks that only gather."""
        return self.outgoing.stage(self.group)

    def finish_stream(self) -> None:
        """Returns when all parts were received; what they took of the GPU is free for others."""
        self.outgoing.finish(self.group)
        self.engine.free_cache()

    def break_off(self) -> None:
        """Forget a stream that failed, and the broadcast group."""
        self.outgoing.drop()
        self._unlink()

    def _unlink(self) -> None:
        if self.group is not None:
            self.group.close()
        self.group = None

    def save(self, folder: str) -> None:
        """Write a Hugging Face folder (weights in the configured type, tokenizer) that appears only when whole."""
        state = {}
        for bucket, opened in self.engine.buckets(self.config.learner.bucket_mib * 2**20):
            with opened:
                if self.rank == 0:
                    state |= {name: tensor().cpu().clone() for name, tensor in bucket}
        if self.rank == 0:
            save_folder(self.engine.module, state, self.path, Path(folder))

    def save_state(self, folder: str) -> None:
        """This rank's share of a checkpoint: float32 weights and moments of every n-th parameter, whole, the generator's state,
        and the frozen models that `freeze` made."""
        mine = {}
        for index, (name, parameter) in enumerate(self.engine.trained()):
            for kind, whole in self.engine.state_of(parameter):
                if index % self.world == self.rank:
                    mine[f"{kind}:{name}"] = whole.cpu().contiguous()
                del whole  # before the next is gathered
        for frozen_name in sorted(self.moved):
            for index, (name, whole) in enumerate(self.engine.whole_parameters(self.frozen[frozen_name])):
                if index % self.world == self.rank:
                    mine[f"{FROZEN}{frozen_name}:{name}"] = whole.detach().cpu().clone()
        write_part(Path(folder), self.rank, mine, self.engine.optimizer_steps(), torch.get_rng_state())

    def _batch(self, examples: Sequence[Example]) -> Batch:
        self.counts.update(micro_batches=1, tokens=sum(len(example.token_ids) for example in examples))
        return collate(examples, self.pad_id).to(self.device)

    def load_state(self, folder: str) -> None:
        """Inverse of `save_state`, whatever the number of ranks that saved it."""
        states, steps, generator = read_parts(Path(folder), self.rank)
        frozen_states: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)

        def policy() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
            for name, state in states:
                for kind in [kind for kind in state if kind.startswith(FROZEN)]:
                    frozen_states[kind.removeprefix(FROZEN)][name] = state.pop(kind)
                if state:
                    yield name, state

        self.engine.restore(policy(), steps)
        for name, weights in frozen_states.items():
            if name not in self.frozen:
                self.frozen[name] = self._frozen(self.path)
            self.engine.overwrite(self.frozen[name], weights)
        self.moved = set(frozen_states)
        if generator is not None:
            torch.set_rng_state(generator)

    def levels(self) -> Metrics:
        """Bytes of the tensors on this rank's GPU, where it has one, for its heartbeats."""
        return {"gpu_bytes": torch.cuda.memory_allocated()} if self.config.learner.gpus else {}

    def peak_memory(self) -> float:
        """MiB: of the process, or of its GPU."""
        if self.config.learner.gpus:
            return torch.cuda.max_memory_allocated() / 2**20
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
