"""Grading."""

from typing import Literal

from pydantic import Field

from srl.config.section import Section


class RewardConfig(Section):
    workers: int = Field(1, ge=1, description="Grading actors.")
    cpus: float = Field(0.25, ge=0, description="CPUs that Ray reserves per grading actor.")
    nodes: dict[str, str] = Field({}, description="Ray node labels that the node of every grading actor must have.")
    answers: Literal["boxed", "stated"] = Field(
        "boxed", description="What an answer is: only what is boxed, or without a box what a turn says its answer is."
    )
    processes: int = Field(2, ge=1, description="Processes per actor that compare by algebra; plain numbers need none.")
    deadline_s: float = Field(
        5.0, gt=0, description="Longest comparison, seconds of processor time; then the process is stopped, and killed."
    )
    memory_mib: int = Field(2048, ge=512, description="Address space of such a process, MiB; what needs more is unparsable.")
    recycle_after: int = Field(5000, ge=1, description="Comparisons after which such a process is replaced: sympy's caches grow.")
    timeout_s: float = Field(300, gt=0, description="Longest wait for a batch of grades, seconds.")
    alarm_share: float = Field(
        0.05, ge=0, le=1, description="Share of timeouts or unparsable answers in a batch above which the run says so."
    )
