"""What vLLM's CPU build needs of the machine beside its package, and does not name when it fails."""

import ctypes
import os
import shutil

from srl.config import ConfigError


def check_machine() -> None:
    """Raises ConfigError where libnuma or a C++ compiler is missing."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise ConfigError(f"vLLM on CPU needs libnuma (Debian's package libnuma1): {error}") from None
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"vLLM on CPU compiles a part of itself and needs a C++ compiler (Debian's package g++): no {compiler}")
