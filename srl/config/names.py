"""Choices that a setting names: entries of a plain dictionary, or a function of the user's own as `module:function`."""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from srl.config.section import ConfigError

Choice = TypeVar("Choice")


def look_up(setting: str, name: str, table: Mapping[str, Choice]) -> Choice:
    """Raises ConfigError with the setting, and what there is, for a name that is neither in the table nor can be imported."""
    if name in table:
        return table[name]
    module, colon, function = name.partition(":")
    if not colon or not module or module.startswith("."):
        raise ConfigError(f"{setting}={name}: there is none of that name; there are {', '.join(table)}, or module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{setting}={name}: {error}") from None
