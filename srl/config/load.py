"""The whole configuration: YAML and dotted overrides merged over the defaults, with errors that name the field."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, model_validator

from srl.config.evaluate import EvaluateConfig
from srl.config.learner import LearnerConfig
from srl.config.pretrain import PretrainConfig
from srl.config.reward import RewardConfig
from srl.config.rl import CreditConfig, CriticConfig, ObjectiveConfig, RlConfig
from srl.config.rollout import ProtocolConfig, RolloutConfig
from srl.config.run import RunConfig
from srl.config.section import ConfigError, Section
from srl.config.stage1 import SftConfig, Stage1Config
from srl.config.task import ModelConfig, PromptsConfig, TaskConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = CONFIGS / "recipes"


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
    credit: CreditConfig = CreditConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    critic: CriticConfig = CriticConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    pretrain: PretrainConfig = PretrainConfig()
    run: RunConfig = RunConfig()

    @property
    def own_protocol(self) -> str:
        """How a model that was trained on this answers: as protocol.name says; without verdicts after RAFT (stage1.recipe)."""
        own = self.protocol.name
        return "intrinsic" if self.stage1.recipe != "ift" and own in ("long_chain", "two_turn") else own

    @property
    def transfer(self) -> Literal["store", "ipc", "broadcast"]:
        """How weights go from learners to engines: learner.transfer, or what fits their places."""
        if self.learner.transfer != "auto":
            return self.learner.transfer
        apart = not (self.learner.gpus and self.rollout.gpus)
        if apart or self.rollout.replay or self.rl.previous_share:
            return "store"
        return "ipc" if self.rollout.colocate else "broadcast"

    @model_validator(mode="after")
    def _places(self) -> "Config":
        check_places(self)
        return self

    @model_validator(mode="after")
    def _combinations(self) -> "Config":
        if self.rollout.max_response_tokens >= self.model.max_length:
            raise ValueError(
                f"rollout.max_response_tokens={self.rollout.max_response_tokens} leaves no room for a prompt in "
                f"model.max_length={self.model.max_length}"
            )
        if self.rl.prompts % self.rl.mini_batches:
            raise ValueError(f"rl.prompts={self.rl.prompts} is not a multiple of rl.mini_batches={self.rl.mini_batches}")
        if self.rl.refill and self.objective.loss in ("sft", "kto"):
            raise ValueError(f"rl.refill={self.rl.refill}: objective.loss={self.objective.loss} trains groups that agree, too")
        if self.learner.lora_rank and (self.rl.reference_every or self.objective.consistency):
            raise ValueError(
                f"learner.lora_rank={self.learner.lora_rank}: the reference is the model without adapters, which stays; "
                "rl.reference_every and objective.consistency need learner.lora_rank=0"
            )
        if self.learner.offload_optimizer and not self.learner.gpus:
            raise ValueError("learner.offload_optimizer=true needs learner.gpus > 0")
        return self


def check_places(config: Config) -> None:
    """Raises ValueError when learners and engines cannot be placed, or weights sent, as is asked."""
    learner, rollout, rl = config.learner, config.rollout, config.rl
    if rollout.colocate:
        for name in ("workers", "gpus", "nodes"):
            one, other = getattr(rollout, name), getattr(learner, name)
            if one != other:
                who = "engine i shares the GPU of learner rank i"
                raise ValueError(f"rollout.colocate=true: {who}, but rollout.{name}={one} and learner.{name}={other}")
        if rollout.gpus not in (0, 1):
            raise ValueError(f"rollout.colocate=true: learner and engine share one GPU, but rollout.gpus={rollout.gpus:g}")
        if rl.ahead:
            raise ValueError(f"rollout.colocate=true: engines sleep while learners train, so rl.ahead={rl.ahead} must be 0")
    if learner.transfer in ("ipc", "broadcast"):
        why = {
            "rollout.replay": rollout.replay,
            "rl.previous_share": rl.previous_share,
            "rollout.colocate": rollout.colocate and learner.transfer == "broadcast",
        }
        if found := [f"{name}={value}" for name, value in why.items() if value]:
            raise ValueError(f"learner.transfer={learner.transfer} does not go with {', '.join(found)}")
        if learner.transfer == "ipc" and not rollout.colocate:
            raise ValueError(
                "learner.transfer=ipc opens the memory of the learner beside the engine: it needs rollout.colocate=true"
            )
        if bool(learner.gpus) != bool(rollout.gpus):
            raise ValueError(
                f"learner.transfer={learner.transfer} needs both sides on GPUs, or none: learner.gpus={learner.gpus:g}, "
                f"rollout.gpus={rollout.gpus:g}"
            )


QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
ANEW = "delete it and start the run again under the settings it had, which writes it anew"
SHORTHANDS = {"fresh": "run.fresh", "seed": "run.seed", "name": "run.name", "recipe": "run.recipe"}


def load_config(path: str | None, overrides: list[str]) -> Config:
    """Defaults, then the YAML file, then the recipe that `run.recipe` names, then `section.key=value` overrides.

    Raises ConfigError with the field, the value found and, for an unknown key, the nearest valid one.
    """
    return configured(read_yaml(path, find(path, CONFIGS, "--config")) if path is not None else {}, overrides)


def load_run(folder: Path, overrides: list[str]) -> Config:
    """The settings of the run in that folder, from its config.yaml and, where it has one, its placement.yaml, with overrides.
    It has those of its recipe; what is no setting any more is left out.
    Raises ConfigError as `read_settings` and `load_config`."""
    known, data, placed = set(valid_keys()), read_settings(folder / "config.yaml"), folder / "placement.yaml"
    if placed.is_file():
        merge(data, read_yaml(f"{placed}", placed))
    settings = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" in known}
        for section, values in data.items()
        if isinstance(values, dict)
    }
    recipe = settings.get("run", {}).pop("recipe", "")
    config = configured({section: values for section, values in settings.items() if section in known}, overrides)
    return config.model_copy(update={"run": config.run.model_copy(update={"recipe": config.run.recipe or recipe})})


def read_settings(file: Path) -> dict[str, dict[str, Any]]:
    """The config.yaml of a run, by section. Raises ConfigError for one that is empty, cut off or anything but sections."""
    data = read_yaml(f"{file}", file)
    if wrong := [f"{section}" for section, settings in data.items() if not isinstance(settings, dict)]:
        raise ConfigError(f"{file}: {wrong[0]} is a section, with settings below it; {ANEW}")
    if "seed" not in data.get("run", {}):
        raise ConfigError(f"{file}: empty or cut off, its last setting is run.seed; {ANEW}")
    return data


def configured(data: dict[str, Any], overrides: list[str]) -> Config:
    for override in overrides:
        keys, value = parse_override(override)
        set_path(data, keys, value, override)
    if isinstance(run := data.get("run"), dict) and (recipe := run.get("recipe")):
        merge(data, read_yaml(recipe, find(f"{recipe}", RECIPES, "run.recipe=")))
        for override in overrides:
            set_path(data, *parse_override(override), override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(item) for item in error.errors())) from None


def find(name: str, folder: Path, setting: str) -> Path:
    """The file of that path, or the shipped one of that name, with or without .yaml."""
    for file in (Path(name), folder / Path(name).name, folder / f"{Path(name).name}.yaml"):
        if file.is_file():
            return file
    shipped = ", ".join(sorted(file.name for file in folder.glob("*.yaml")))
    raise ConfigError(f"{setting}{'' if setting.endswith('=') else ' '}{name}: no such file; shipped: {shipped}")


def read_yaml(name: str, file: Path) -> dict[str, Any]:
    """The sections of a file. Raises ConfigError for one that cannot be read or holds anything else, and for a repeated key."""
    try:
        text = file.read_text("utf-8")
        data = yaml.safe_load(text) or {}
        refuse_repeated(yaml.compose(text, yaml.SafeLoader), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{name}: not YAML: {where}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested without end, as where an anchor (&) holds its own alias (*)") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected sections such as `model:`, found {type(data).__name__}")
    return {section: settings for section, settings in data.items() if settings is not None}  # all of one may be commented out


def refuse_repeated(node: yaml.Node | None, name: str, section: str = "") -> None:
    """Raises ConfigError for a key that stands twice in one section: YAML would take the last without a word."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        setting, line = f"{section}{key.value}", key.start_mark.line + 1
        if setting in lines:
            raise ConfigError(f"{name}: {setting} stands twice, in lines {lines[setting]} and {line}")
        lines[setting] = line
        refuse_repeated(value, name, f"{setting}.")


def merge(data: dict[str, Any], other: dict[str, Any]) -> None:
    """Settings of `other` replace those of `data`, section by section."""
    for section, settings in other.items():
        if isinstance(settings, dict) and isinstance(data.get(section), dict):
            data[section].update(settings)
        else:
            data[section] = settings


def parse_override(override: str) -> tuple[list[str], Any]:
    """`section.key=value` -> (keys, value): what YAML reads, but text for a setting that is text, as it is or without quotes."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r}: overrides are written section.key=value")
    keys = SHORTHANDS.get(key, key).split(".")
    # Such as name=2026-11-22 or prompts.question={question} #1, which are no text to YAML.
    if is_text(keys) and not QUOTED.fullmatch(value):
        return keys, value
    try:
        return keys, yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not YAML: {' '.join(str(error).split())}") from None


def is_text(keys: list[str]) -> bool:
    """Whether the setting of that path is a string."""
    fields = Config.model_fields
    for key in keys[:-1]:
        fields = getattr(fields[key].annotation, "model_fields", {}) if key in fields else {}
    return keys[-1] in fields and fields[keys[-1]].annotation is str


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
        if close == field:
            section, _, key = field.partition(".")
            return f"{field}={error['input']!r}: in YAML it is written as {key}: below {section}:"
        hint = f"; did you mean {close}?" if close else f"; sections are {', '.join(Config.model_fields)}"
        return f"unknown setting {field}={error['input']!r}{hint}"
    if error["type"] == "model_type":
        inside = next((key for key in valid_keys() if key.startswith(f"{field}.")), f"{field}.name")
        return f"{field}={error['input']!r}: {field} is a section, with settings such as {inside}"
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{field}={error['input']!r}: {message}"


def nearest_key(unknown: str) -> str | None:
    """The valid key whose last part is most like that of `unknown`: of its section (without one a shorthand too), else of any."""
    section, _, name = unknown.rpartition(".")
    own = [key for key in valid_keys() if key.rpartition(".")[0] == section]
    for keys in (own if section else [*own, *SHORTHANDS], valid_keys()):
        by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}
        if close := difflib.get_close_matches(name, by_name, n=1):
            return by_name[close[0]]
    return None


def valid_keys() -> list[str]:
    keys = list(Config.model_fields)
    for name, field in Config.model_fields.items():
        keys += [f"{name}.{key}" for key in field.annotation.model_fields]
    return keys
