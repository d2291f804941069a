"""Grading."""

from pydantic import Field

from srl.config.section import Section


class RewardConfig(Section):
    workers: int = Field(1, ge=1, description="Grading actors.")
    cpus: float = Field(0.25, ge=0, description="CPUs that Ray reserves per grading actor.")
    nodes: dict[str, str] = Field({}, description="Ray node labels that the node of every grading actor must have.")
    parse_timeout_s: int = Field(5, ge=1, description="math-verify's limit per parse and per comparison, whole seconds.")
    timeout_s: float = Field(300, gt=0, description="Longest wait for a batch of grades, seconds.")
    alarm_share: float = Field(
        0.05, ge=0, le=1, description="Share of timeouts or unparsable answers in a batch above which the run says so."
    )
