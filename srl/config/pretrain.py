"""The embedded base model."""

from pydantic import Field

from srl.config.section import Section


class PretrainStage(Section):
    tokens: int = Field(4_000_000, ge=1, description="Training tokens, padding included.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate; 2 % warm-up, cosine to a tenth.")
    mixture: dict[str, float] = Field(
        {"solve": 0.15, "check": 0.5, "revise": 0.3, "reask": 0.05}, description="Share of documents of each kind."
    )


class PretrainConfig(Section):
    """How the shipped base model was made; nobody needs to run it again.

    Checks are learned first and whole sums last, suddenly: the share of "solve" in the short last stage decides how often an
    attempt is right. With more of it nothing is left to correct.
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
                tokens=300_000, learning_rate=1.5e-3, mixture={"solve": 0.36, "check": 0.37, "revise": 0.22, "reask": 0.05}
            ),
        ],
        min_length=1,
        description="Corpora one after the other.",
    )
    log_every: int = Field(100, ge=1, description="Steps between log lines.")
