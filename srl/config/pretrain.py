"""The embedded base model."""

from pydantic import Field

from srl.config.section import Section


class PretrainStage(Section):
    tokens: int = Field(5_000_000, ge=1, description="Training tokens, padding included.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate; 2 % warm-up, cosine to a tenth.")
    mixture: dict[str, float] = Field(
        {"solve": 0.14, "check": 0.56, "revise": 0.25, "reask": 0.05}, description="Share of documents of each kind."
    )


class PretrainConfig(Section):
    """How the shipped base model was made; nobody needs to run it again.

    Checks are learned first and sums at once last, so the share of "solve" in the later stages and their length decide how
    often an attempt is right: more of it, and nothing is left to correct.
    """

    seed: int = Field(0, description="Seed of weights and corpus.")
    width: int = Field(128, gt=0, multiple_of=32, description="Hidden size.")
    layers: int = Field(4, ge=1, description="Transformer layers.")
    batch_tokens: int = Field(2048, ge=256, description="Padded tokens per optimizer step.")
    min_operations: int = Field(1, ge=1, le=8, description="Fewest operations of a chain.")
    max_operations: int = Field(6, ge=1, le=8, description="Most operations of a chain.")
    stages: list[PretrainStage] = Field(
        [
            PretrainStage(),
            PretrainStage(
                tokens=1_000_000, learning_rate=2e-3, mixture={"solve": 0.3, "check": 0.52, "revise": 0.1, "reask": 0.08}
            ),
            PretrainStage(
                tokens=1_500_000, learning_rate=1.5e-3, mixture={"solve": 0.6, "check": 0.3, "revise": 0.05, "reask": 0.05}
            ),
        ],
        min_length=1,
        description="Corpora one after the other.",
    )
    log_every: int = Field(100, ge=1, description="Steps between log lines.")
