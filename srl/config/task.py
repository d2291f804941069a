"""The model, the problems, and the wording of what is said to it."""

from typing import Literal

from pydantic import Field, model_validator

from srl.config.section import Section


class ModelConfig(Section):
    path: str = Field("embedded", description="Model folder or hub name; `embedded` is the base model shipped in the package.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Data type of the weights in learner and rollout.")
    max_length: int = Field(512, gt=0, description="Longest sequence, in tokens, prompt included.")


class TaskConfig(Section):
    name: Literal["chains", "file"] = Field("chains", description="`chains` is the embedded task; `file` reads the paths below.")
    train: str = Field(
        "",
        description="Training problems: BENCHMARK, BENCHMARK=FILE, JSON lines or Parquet file, or hub name. Only for `file`.",
    )
    validation: str = Field("", description="Validation problems, same forms; empty holds out some of `train`. Only for `file`.")
    test: dict[str, str] = Field({}, description="Benchmarks: name -> file or hub name. Only for `file`.")
    question_key: str = Field("problem", description="Column with the problem text.")
    answer_key: str = Field("answer", description="Column with the gold answer.")
    min_operations: int = Field(4, ge=1, le=6, description="Fewest operations of a chain. Only for `chains`.")
    max_operations: int = Field(4, ge=1, le=6, description="Most operations of a chain. Only for `chains`.")
    seed: int = Field(0, description="Seed of the generated problems.")

    @model_validator(mode="after")
    def _complete(self) -> "TaskConfig":
        if self.name == "file" and not (self.train and self.test):
            raise ValueError("task.name=file needs task.train and at least one entry in task.test")
        if self.name == "chains":
            files = {"task.train": self.train, "task.validation": self.validation}
            files |= {f"task.test.{name}": source for name, source in self.test.items()}
            if named := [f"{setting}={source} needs task.name=file" for setting, source in files.items() if source]:
                raise ValueError("; ".join(named))
        if self.min_operations > self.max_operations:
            raise ValueError(f"task.min_operations={self.min_operations} is above task.max_operations={self.max_operations}")
        return self


class PromptsConfig(Section):
    """Wording of everything that is said to the model. `{question}` stands for the problem."""

    system: str = Field("", description="System message; empty for none.")
    question: str = Field("{question}", description="First user message.")
    verify: str = Field("Check the solution.", description="Asks for a verdict on the attempt above (stage-1 sampling).")
    revise: str = Field(
        "The solution is wrong. Correct it.", description="Says that the attempt is wrong and asks for a revision."
    )
    reask: str = Field(
        "There may be an error. Correct it.", description="Intrinsic self-correction: asks again without any verdict."
    )
    joiner: str = Field("\n", description="What stands between attempt, verdict and revision inside one long chain.")

    @model_validator(mode="after")
    def _placeholder(self) -> "PromptsConfig":
        if "{question}" not in self.question:
            raise ValueError(f"prompts.question={self.question!r} does not contain {{question}}")
        return self
