"""Model families, checkpoints in their original layout, and the attention seam.

What is named here is loaded when it is first used, so that `models.families` can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.model import DiffusionLM, load_model
    from models.value import ValueModel, load_value_model

__all__ = ["DiffusionLM", "ValueModel", "load_model", "load_value_model"]

_FILES = {
    "DiffusionLM": "models.model",
    "ValueModel": "models.value",
    "load_model": "models.model",
    "load_value_model": "models.value",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_FILES[name]), name)
