"""Every setting, with its unit and default. A YAML file and dotted overrides are merged over these defaults.

Sections follow the flow of data: model, task, prompts (wording), rollout, reward, stage1, learner, sft, rl, evaluate, run.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CONFIGS = Path(__file__).parent.parent / "configs"


class ConfigError(Exception):
    """A setting, file or resource that cannot be used; the command line prints it as one line and exits with 2."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class ModelConfig(Section):
    path: str = Field("embedded", description="Model folder or hub name; `embedded` is the base model shipped in the package.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Data type of the weights in learner and rollout.")
    max_length: int = Field(512, gt=0, description="Longest sequence, in tokens, prompt included.")


class TaskConfig(Section):
    name: Literal["chains", "file"] = Field("chains", description="`chains` is the embedded task; `file` reads the paths below.")
    train: str = Field("", description="Training problems: JSON lines or Parquet file, or hub name. Only for `file`.")
    validation: str = Field("", description="Validation problems, same forms; empty takes them from the end of `train`.")
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


class ProtocolConfig(Section):
    name: Literal["long_chain", "two_turn"] = Field(
        "long_chain",
        description="Form of the trained model's answers: one assistant message, or attempt+verdict, user, revision.",
    )
    grammar: Literal["verify", "yes_no"] = Field(
        "verify",
        description="`verify`: [VERIFY] correct/wrong; `yes_no`: Is my most recent final answer correct (Yes or No)? Yes/No.",
    )
    max_rounds: int = Field(1, ge=1, description="Most revisions in one trajectory.")


class RolloutConfig(Section):
    workers: int = Field(1, ge=1, description="Rollout actors, each with one vLLM engine.")
    cpus: float = Field(1, ge=0, description="CPUs that Ray reserves per rollout actor.")
    gpus: float = Field(0, ge=0, description="GPUs per rollout actor; 0 runs vLLM on CPU.")
    threads: int = Field(2, ge=1, description="Torch threads per engine on CPU.")
    tensor_parallel: int = Field(1, ge=1, description="vLLM tensor parallelism; needs gpus >= this.")
    kv_cache_gib: float = Field(0.25, gt=0, description="Key-value cache on CPU, GiB.")
    gpu_memory: float = Field(0.85, gt=0, le=1, description="Share of GPU memory for vLLM.")
    max_sequences: int = Field(256, ge=1, description="Most sequences that one engine runs at once.")
    max_attempt_tokens: int = Field(64, gt=0, description="Tokens per attempt or revision sampled on its own.")
    max_verdict_tokens: int = Field(160, gt=0, description="Tokens per verdict sampled on its own.")
    max_response_tokens: int = Field(360, gt=0, description="Tokens per long chain.")
    timeout_s: float = Field(600, gt=0, description="Longest wait for one batch of trajectories, seconds.")
    start_timeout_s: float = Field(300, gt=0, description="Longest wait for an engine to start, seconds.")
    retries: int = Field(2, ge=0, description="How often a batch moves to another worker before the run stops.")

    @model_validator(mode="after")
    def _gpus(self) -> "RolloutConfig":
        if self.tensor_parallel > 1 and self.gpus < self.tensor_parallel:
            raise ValueError(f"rollout.tensor_parallel={self.tensor_parallel} needs rollout.gpus >= it, found {self.gpus}")
        return self


class RewardConfig(Section):
    workers: int = Field(1, ge=1, description="Grading actors.")
    cpus: float = Field(0.25, ge=0, description="CPUs that Ray reserves per grading actor.")
    parse_timeout_s: int = Field(5, ge=1, description="math-verify's limit per parse and per comparison, whole seconds.")
    timeout_s: float = Field(300, gt=0, description="Longest wait for a batch of grades, seconds.")
    alarm_share: float = Field(
        0.05, ge=0, le=1, description="Share of timeouts or unparsable answers in a batch above which the run says so."
    )


class Stage1Config(Section):
    """Sequential rejection sampling (paper, section 3.1) and assembly of D1, D2, D3."""

    prompts: int = Field(800, ge=1, description="Training problems to sample from.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of all three steps.")
    attempts: int = Field(4, ge=1, description="N1: attempts per problem.")
    verdicts: int = Field(2, ge=1, description="N2: verdicts per attempt.")
    wrong_revisions: int = Field(4, ge=1, description="M1: revisions per wrong attempt.")
    correct_revisions: int = Field(2, ge=0, description="M2: revisions per correct attempt that a verdict called wrong.")
    block: int = Field(
        100, ge=1, description="Problems per sampling task and per Parquet file: the unit of progress and of resuming."
    )
    per_prompt_and_class: int = Field(3, ge=1, description="Most trajectories of one class (D1, D2, D3) per problem.")
    correct_share: float = Field(0.5, gt=0, lt=1, description="Share of trajectories whose first attempt is correct (D2 and D3).")
    c2c_share: float = Field(
        0.1, ge=0, lt=1, description="Share of D2 (correct, told wrong, still correct) among all trajectories, at most."
    )
    train_correct_attempts: bool = Field(True, description="Train the attempt of D3 too (the paper does, for stability).")
    validation_share: float = Field(0.05, gt=0, lt=0.5, description="Share of demonstrations held out to choose the checkpoint.")


class LearnerConfig(Section):
    workers: int = Field(1, ge=1, description="Learner actors = data-parallel ranks.")
    cpus: float = Field(1, ge=0, description="CPUs that Ray reserves per learner actor.")
    gpus: float = Field(0, ge=0, description="GPUs per learner actor; 0 trains on CPU with gloo.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    micro_batch_tokens: int = Field(8192, gt=0, description="Padded tokens per forward pass and rank.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state in host memory. Only with gpus > 0.")
    threads: int = Field(2, ge=1, description="Torch threads per CPU learner.")
    timeout_s: float = Field(900, gt=0, description="Longest wait for one training step, seconds.")
    bucket_mib: int = Field(64, ge=1, description="Size of a weight-sync bucket, MiB.")


class SftConfig(Section):
    """Stage-1 fine-tuning with the loss weights of equation 1."""

    epochs: int = Field(6, ge=1, description="Passes over the demonstrations.")
    batch: int = Field(32, ge=1, description="Trajectories per optimizer step, over all ranks.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of steps for linear warm-up; cosine to zero after it.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")


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


class EvaluateConfig(Section):
    problems: int = Field(1000, ge=1, description="Test problems per benchmark; fewer if the benchmark is smaller.")
    validation_problems: int = Field(200, ge=1, description="Validation problems used during RL.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    samples_kept: int = Field(200, ge=0, description="Trajectories per method and benchmark written to trajectories.jsonl.")
    bootstrap: int = Field(1000, ge=100, description="Resamples of problems for the 95 % interval.")


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


class RunConfig(Section):
    name: str = Field("tiny", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder of this run under `directory`.")
    directory: str = Field("runs", description="Where runs are kept.")
    seed: int = Field(0, description="Seed of sampling, shuffling and problem order.")
    fresh: bool = Field(False, description="Delete what an earlier run of this name left. Also spelled `fresh=true`.")
    ray_address: str = Field("", description="Cluster to join; empty joins the one this process is in, else starts a local one.")
    local_cpus: int = Field(8, ge=4, description="Logical CPUs of a local Ray; more than cores is fine, they only count actors.")
    dashboard_port: int = Field(0, ge=0, lt=65536, description="Port of a local Ray's dashboard; 0 starts none.")
    object_store_mib: int = Field(512, ge=80, description="Object store of a local Ray, MiB.")


class Config(Section):
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    prompts: PromptsConfig = PromptsConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    stage1: Stage1Config = Stage1Config()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    pretrain: PretrainConfig = PretrainConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _combinations(self) -> "Config":
        if self.rollout.max_response_tokens >= self.model.max_length:
            raise ValueError(
                f"rollout.max_response_tokens={self.rollout.max_response_tokens} leaves no room for a prompt in "
                f"model.max_length={self.model.max_length}"
            )
        if self.rl.prompts % self.rl.mini_batches:
            raise ValueError(f"rl.prompts={self.rl.prompts} is not a multiple of rl.mini_batches={self.rl.mini_batches}")
        if self.learner.offload_optimizer and not self.learner.gpus:
            raise ValueError("learner.offload_optimizer=true needs learner.gpus > 0")
        return self


SHORTHANDS = {"fresh": "run.fresh", "seed": "run.seed", "name": "run.name"}


def load_config(path: str | None, overrides: list[str]) -> Config:
    """Defaults, then the YAML file, then `section.key=value` overrides.

    Raises ConfigError with the field, the value found and, for an unknown key, the nearest valid one.
    """
    data: dict[str, Any] = {}
    if path is not None:
        file = Path(path)
        if not file.is_file() and (CONFIGS / file.name).is_file():
            file = CONFIGS / file.name
        if not file.is_file():
            raise ConfigError(
                f"--config {path}: no such file; shipped: {', '.join(sorted(p.name for p in CONFIGS.glob('*.yaml')))}"
            )
        try:
            data = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected sections such as `model:`, found {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r}: overrides are written section.key=value")
        try:
            parsed = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{override!r}: the value is not YAML: {' '.join(str(error).split())}") from None
        set_path(data, SHORTHANDS.get(key, key).split("."), parsed, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(item) for item in error.errors())) from None


def set_path(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{override!r}: {key} is not a section")
    data[keys[-1]] = value


def explain(error: Any) -> str:
    """One clause for one pydantic error."""
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = nearest_key(field)
        hint = f"; did you mean {close}?" if close else f"; sections are {', '.join(Config.model_fields)}"
        return f"unknown setting {field}={error['input']!r}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{field}={error['input']!r}: {message}"


def nearest_key(unknown: str) -> str | None:
    """The valid key whose last part is most like that of `unknown`: of the same section if there is one, else of any."""
    section, _, name = unknown.rpartition(".")
    for keys in ([key for key in valid_keys() if key.rpartition(".")[0] == section], valid_keys()):
        by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}
        if close := difflib.get_close_matches(name, by_name, n=1):
            return by_name[close[0]]
    return None


def valid_keys() -> list[str]:
    keys = list(Config.model_fields)
    for name, field in Config.model_fields.items():
        keys += [f"{name}.{key}" for key in field.annotation.model_fields]
    return keys
