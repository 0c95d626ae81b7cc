"""Your own parts, objectives and recipes on the command line: COLAWORLD_IMPORT names what to import.

    COLAWORLD_IMPORT=my_adapter.py colaworld train my.adapter --data ...

Several are separated as in PATH. A configuration never imports anything: only you do.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from colaworld.config import ConfigError

VARIABLE = "COLAWORLD_IMPORT"


def import_plugins() -> None:
    """Import every file (*.py) or module that the variable names. Raises ConfigError where it fails."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f"{VARIABLE}: {name}: {type(error).__name__}: {error}") from None


def _import_file(path: Path) -> None:
    name = f"colaworld_plugin_{path.stem}"
    number = 1
    while name in sys.modules:  # another folder's file may have the same name
        if Path(str(sys.modules[name].__file__)).absolute() == path.absolute():
            return
        number += 1
        name = f"colaworld_plugin_{path.stem}_{number}"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path.absolute()}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py has a loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
