"""Names of a package that are loaded when they are first used. Standard library only."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader(package: str, module_of: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package: name -> the module that has it. AttributeError for another name."""

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return load
