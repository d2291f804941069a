"""Evaluation."""

from pydantic import Field, model_validator

from srl.config.section import Section


class EvaluateConfig(Section):
    problems: int = Field(
        1000, ge=1, description="Test problems per benchmark: of a larger one so many by chance, all of a smaller one."
    )
    validation_problems: int = Field(200, ge=1, description="Validation problems used during RL.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    samples: int = Field(1, ge=1, description="Trajectories per test problem; above 1 rows also have majority votes.")
    block: int = Field(
        512, ge=1, description="Trajectories per rollout worker that are written together: what an interruption loses at most."
    )
    samples_kept: int = Field(200, ge=0, description="Trajectories per method and benchmark written to trajectories.jsonl.")
    bootstrap: int = Field(1000, ge=100, description="Resamples of problems for the 95 % interval.")

    @model_validator(mode="after")
    def samples_differ(self) -> "EvaluateConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"evaluate.samples={self.samples} at evaluate.temperature=0 are {self.samples} times the same")
        return self
