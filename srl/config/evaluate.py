"""Evaluation."""

from pydantic import Field

from srl.config.section import Section


class EvaluateConfig(Section):
    problems: int = Field(1000, ge=1, description="Test problems per benchmark; fewer if the benchmark is smaller.")
    validation_problems: int = Field(200, ge=1, description="Validation problems used during RL.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    samples_kept: int = Field(200, ge=0, description="Trajectories per method and benchmark written to trajectories.jsonl.")
    bootstrap: int = Field(1000, ge=100, description="Resamples of problems for the 95 % interval.")
