"""Learner actors and the weights they send."""

from typing import Literal

from pydantic import Field

from srl.config.section import Section


class LearnerConfig(Section):
    workers: int = Field(1, ge=1, description="Learner actors = data-parallel ranks.")
    cpus: float = Field(1, ge=0, description="CPUs that Ray reserves per learner actor.")
    gpus: float = Field(0, ge=0, description="GPUs per learner actor; 0 trains on CPU with gloo.")
    nodes: dict[str, str] = Field({}, description="Ray node labels that the node of every learner actor must have.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    micro_batch_tokens: int = Field(8192, gt=0, description="Tokens per forward pass and rank, without padding.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state in host memory. Only with gpus > 0.")
    threads: int = Field(2, ge=1, description="Torch threads per CPU learner.")
    timeout_s: float = Field(900, gt=0, description="Longest wait for one training step, seconds.")
    bucket_mib: int = Field(64, ge=1, description="Size of a weight-sync bucket, MiB.")
