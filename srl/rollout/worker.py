"""The rollout actor: a thin Ray shell around an engine, a tokenizer and the loop."""

import shutil
import tempfile
import time
from pathlib import Path

import ray

from srl.config import Config
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.rollout.engine import Engine
from srl.rollout.loop import run_trajectories
from srl.trajectory import Trajectory
from srl.weights.bundle import Bundle, check_bucket

SHARED_MEMORY = Path("/dev/shm")


class StaleWeights(RuntimeError):
    """The worker holds other weights than the caller expects; load them and call again."""


class RolloutWorker:
    """One vLLM engine. After a restart by Ray it holds the weights it was created with, version 0."""

    def __init__(self, config: Config, index: int):
        self.config, self.index, self.version = config, index, 0
        path = model_folder(config.model.path)
        self.chat = Chat(path, config.prompts)
        self.engine = Engine(path, config.model, config.rollout, self.chat.stop_ids)

    def __repr__(self) -> str:
        return f"RolloutWorker({self.index})"

    def ready(self) -> int:
        return self.version

    def generate(
        self, protocol: str, trajectories: list[Trajectory], temperature: float, weight_version: int
    ) -> list[Trajectory]:
        """Run the trajectories with the weights of exactly that version. Raises StaleWeights, TimeoutError."""
        if weight_version != self.version:
            raise StaleWeights(f"{self!r} has weights {self.version}, asked for {weight_version}")
        return run_trajectories(
            self.engine,
            build_protocol(protocol, self.config, self.chat),
            self.chat,
            trajectories,
            temperature=temperature,
            max_length=self.config.model.max_length,
            weight_version=weight_version,
            timeout_s=self.config.rollout.timeout_s,
        )

    def load_weights(self, bundle: Bundle) -> float:
        """Replace the weights; returns seconds. Raises ValueError when a bucket arrives changed."""
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="srl-weights-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        try:
            paths = []
            for index, (reference, checksum) in enumerate(bundle.buckets):
                content = ray.get(reference, timeout=self.config.rollout.timeout_s)
                check_bucket(content, checksum, bundle.version, index)
                paths.append(folder / f"{index}.safetensors")
                paths[-1].write_bytes(content)
            self.engine.load_weights(paths)
        finally:
            shutil.rmtree(folder)
        self.version = bundle.version
        return time.monotonic() - started
