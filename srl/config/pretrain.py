"""The embedded base model."""

from pydantic import Field

from srl.config.section import Section


class PretrainStage(Section):
    tokens: int = Field(9_000_000, ge=1, description="Training tokens, padding included.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate; 2 % warm-up, cosine to a tenth.")
    mixture: dict[str, float] = Field(
        {"solve": 0.16, "check": 0.64, "revise": 0.14, "reask": 0.06}, description="Share of documents of each kind."
    )


class PretrainConfig(Section):
    """How the shipped base model was made; nobody needs to run it again."""

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
                tokens=3_500_000, learning_rate=2e-3, mixture={"solve": 0.06, "check": 0.79, "revise": 0.1, "reask": 0.05}
            ),
            PretrainStage(
                tokens=2_700_000, learning_rate=2e-3, mixture={"solve": 0.17, "check": 0.6, "revise": 0.18, "reask": 0.05}
            ),
        ],
        min_length=1,
        description="Corpora one after the other.",
    )
    log_every: int = Field(100, ge=1, description="Steps between log lines.")
