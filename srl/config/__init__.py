"""Every setting, with its unit and default, one file for each part of the system.

Sections follow the flow of data: model, task, prompts (wording), protocol, rollout, reward, stage1, learner, sft, rl,
credit, objective, critic (all three of stage 2), evaluate, run.
"""

from srl.config.evaluate import EvaluateConfig
from srl.config.learner import LearnerConfig
from srl.config.load import (
    CONFIGS,
    RECIPES,
    Config,
    load_config,
    load_run,
    parse_override,
    read_settings,
    read_yaml,
    valid_keys,
)
from srl.config.pretrain import PretrainConfig, PretrainStage
from srl.config.reward import RewardConfig
from srl.config.rl import CreditConfig, CriticConfig, ObjectiveConfig, RlConfig
from srl.config.rollout import ProtocolConfig, RolloutConfig
from srl.config.run import RunConfig
from srl.config.section import ConfigError, OtherRunError
from srl.config.stage1 import SftConfig, Stage1Config
from srl.config.task import ModelConfig, PromptsConfig, TaskConfig

__all__ = [
    "CONFIGS",
    "RECIPES",
    "Config",
    "ConfigError",
    "CreditConfig",
    "CriticConfig",
    "EvaluateConfig",
    "LearnerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OtherRunError",
    "PretrainConfig",
    "PretrainStage",
    "PromptsConfig",
    "ProtocolConfig",
    "RewardConfig",
    "RlConfig",
    "RolloutConfig",
    "RunConfig",
    "SftConfig",
    "Stage1Config",
    "TaskConfig",
    "load_config",
    "load_run",
    "parse_override",
    "read_settings",
    "read_yaml",
    "valid_keys",
]
