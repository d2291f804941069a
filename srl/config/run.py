"""The run and the Ray it runs on."""

import os
from typing import Literal

from pydantic import Field, field_validator

from srl.config.section import Section


class RunConfig(Section):
    name: str = Field(
        "tiny",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Folder of this run under `directory`.",
    )
    recipe: str = Field(
        "",
        description="Stage-2 recipe of configs/recipes/, or a YAML file; its settings go over those of --config.",
    )
    directory: str = Field("runs", description="Where runs are kept; `~` is the home directory.")
    seed: int = Field(0, description="Seed of sampling, shuffling and problem order.")
    fresh: bool = Field(False, description="Delete what an earlier run of this name left. Also spelled `fresh=true`.")
    ray_address: str = Field(
        "",
        description="Cluster to join; empty joins the one this process is in, else starts a local one, as `local` always does.",
    )
    nodes_wait_s: float = Field(
        600, ge=0, description="Longest wait for a joined cluster's nodes, until they have room for all actors; seconds."
    )
    local_cpus: int = Field(8, ge=4, description="Logical CPUs of a local Ray; more than cores is fine, they only count actors.")
    dashboard_port: int = Field(0, ge=0, lt=65536, description="Port of a local Ray's dashboard; 0 starts none.")
    object_store_mib: int = Field(512, ge=80, description="Object store of a local Ray, MiB.")
    log: Literal["text", "json"] = Field(
        "text", description="Form of the driver's lines and of all actors' logs; json carries run, phase and step."
    )
    sinks: list[Literal["wandb", "mlflow"]] = Field(
        [], description="Where measurements go besides metrics.jsonl, TensorBoard and Prometheus; each needs its package."
    )
    heartbeat_s: float = Field(5, gt=0, description="Seconds between two heartbeats of an actor, and between two looks at them.")
    stall_s: float = Field(
        900, gt=0, description="Seconds without any movement after which the run says so and dumps all stacks."
    )

    @field_validator("directory")
    @classmethod
    def _home(cls, directory: str) -> str:
        return os.path.expanduser(directory)

    @property
    def cluster(self) -> tuple[str, str]:
        """Setting or variable that names the cluster to join, and the address; "" for none, which means a local Ray."""
        setting, address = "run.ray_address", self.ray_address
        if not address:
            setting, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
        return setting, "" if address == "local" else address
