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
    micro_batch_tokens: int = Field(2048, gt=0, description="Tokens per forward pass and rank, without padding.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state in host memory. Only with gpus > 0.")
    lora_rank: int = Field(0, ge=0, description="Rank of low-rank adapters; 0 trains the whole model.")
    lora_alpha: float = Field(32.0, gt=0, description="Adapters are scaled by this / rank.")
    lora_targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Linear layers that get an adapter, by the last part of their names.",
    )
    threads: int = Field(2, ge=1, description="Torch threads per CPU learner.")
    start_timeout_s: float = Field(300, gt=0, description="Longest wait for the cluster to have room for all learners, seconds.")
    timeout_s: float = Field(
        900, gt=0, description="Longest wait for one call to the learners, such as a training step, seconds."
    )
    bucket_mib: int = Field(64, ge=1, description="Size of a weight-sync bucket, MiB.")
    transfer: Literal["auto", "store", "ipc", "broadcast"] = Field(
        "auto",
        description="How weights reach the engines: `store`, Ray's object store; `ipc`, the learner's own memory, opened by the "
        "engine beside it (rollout.colocate; CUDA IPC, on CPU a mapped file); `broadcast`, NCCL from GPU to GPU, gloo on CPU; "
        "`auto`, the last two on GPUs and else the first.",
    )
    transfer_timeout_s: float = Field(
        120, gt=0, description="Longest wait for one bucket to be gathered, received or loaded by `ipc` or `broadcast`, seconds."
    )
    checkpoint_every: int = Field(
        1, ge=1, description="RL steps between checkpoints to resume from; there is one more with each new best policy."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept while RL runs.")
    upload: str = Field(
        "",
        description="Path of any kind that fsspec writes, such as s3://, where RL's checkpoints and the best policy are copied, "
        "under the run's name; a run of another configuration refuses them.",
    )
    retries: int = Field(2, ge=0, description="How often lost learners are started again from the last checkpoint.")
