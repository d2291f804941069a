"""Stage 2."""

from pydantic import Field

from srl.config.section import Section


class RlConfig(Section):
    """Stage 2: KL-regularised policy gradient on the final answer's correctness."""

    steps: int = Field(25, ge=1, description="Rollout-and-update steps.")
    prompts: int = Field(48, ge=1, description="Problems per step.")
    group: int = Field(8, ge=2, description="Trajectories per problem.")
    mini_batches: int = Field(2, ge=1, description="Optimizer steps per rollout step.")
    learning_rate: float = Field(2e-4, gt=0, description="Learning rate, constant after warm-up.")
    warmup_steps: int = Field(2, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="Lower clip of the probability ratio is 1 - this.")
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio is 1 + this.")
    kl: float = Field(0.001, ge=0, description="eta: weight of the KL to the stage-1 model (k3 estimate, per token).")
    normalise_std: bool = Field(
        True, description="Divide advantages by the group's standard deviation (GRPO); false is Dr. GRPO's choice."
    )
    evaluate_every: int = Field(5, ge=1, description="Steps between evaluations on the validation problems.")
