"""What every section of the configuration is, and the error that a bad setting ends in."""

from pydantic import BaseModel, ConfigDict


class ConfigError(Exception):
    """A setting, file or resource that cannot be used; the command line prints it as one line and exits with 2."""


class OtherRunError(ConfigError):
    """What a run of another configuration left is in the way; the command line adds fresh=true where a command may use it."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
