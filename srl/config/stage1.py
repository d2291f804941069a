"""Stage 1: sampling, assembly, fine-tuning."""

from typing import Literal

from pydantic import Field

from srl.config.section import Section


class Stage1Config(Section):
    """Sequential rejection sampling (paper, section 3.1) and assembly of D1, D2, D3."""

    prompts: int = Field(300, ge=1, description="Training problems to sample from.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of all three steps.")
    attempts: int = Field(4, ge=1, description="N1: attempts per problem.")
    verdicts: int = Field(2, ge=1, description="N2: verdicts per attempt.")
    wrong_revisions: int = Field(4, ge=1, description="M1: revisions per wrong attempt.")
    correct_revisions: int = Field(2, ge=0, description="M2: revisions per correct attempt that a verdict called wrong.")
    wave: int = Field(
        4,
        ge=1,
        description="Attempts per problem between two looks at its quotas: with `per_prompt_and_class` trajectories that start "
        "right and as many that start wrong it gets no more. As many as `attempts`: never stops early.",
    )
    block: int = Field(
        50, ge=1, description="Problems per sampling task and per Parquet file: the unit of progress and of resuming."
    )
    teacher: str = Field(
        "", description="Model folder or hub name that takes one step instead of the base model; must share its tokenizer."
    )
    teacher_writes: Literal["attempt", "revision"] = Field("revision", description="The step that `teacher` takes.")
    agreement: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least share of an attempt's verdicts that agree with its grade, else it is left out; 0: one is enough.",
    )
    per_prompt_and_class: int = Field(3, ge=1, description="Most trajectories of one class (D1, D2, D3) per problem.")
    samples: str = Field("", description="Folder of samples of an earlier run to assemble from; empty samples anew.")
    recipe: Literal["ift", "raft", "raft_plus"] = Field(
        "ift",
        description="`ift`: with verdicts (D1, D2, D3). Baselines without verdicts: `raft` (wrong attempt, right revision), "
        "`raft_plus` (and right attempt, right revision), both trained on the revision.",
    )
    size: int = Field(0, ge=0, description="Most demonstrations, so that sets can be compared at one size; 0 takes all.")
    correct_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of trajectories whose first attempt is correct (D2 and D3): 0.5 is the paper's balanced set, less its "
        "more-wrong, more its more-correct one.",
    )
    c2c_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of D2 (correct, told wrong, still correct) among all, at most; 0 is without c2c. An attempt that is "
        "not needed for D2 is D3 if one of its verdicts agrees.",
    )
    train_correct_attempts: bool = Field(True, description="Train the attempt of D3 too (the paper does, for stability).")
    validation_share: float = Field(0.05, gt=0, lt=0.5, description="Share of demonstrations held out to choose the checkpoint.")


class SftConfig(Section):
    """Stage-1 fine-tuning with the loss weights of equation 1."""

    epochs: int = Field(3, ge=1, description="Passes over the demonstrations (paper: 3).")
    batch: int = Field(32, ge=1, description="Trajectories per optimizer step, over all ranks.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of steps for linear warm-up; cosine to zero after it.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    checkpoint_every: int = Field(
        200, ge=1, description="Optimizer steps between checkpoints to resume from; the end of an epoch is always one."
    )
