"""Model families, checkpoints in their original layout, and the attention seam.

What is named here is loaded when it is first used, so that `models.families` can be read without torch.
"""

from typing import TYPE_CHECKING

from runtime.lazy import loader

if TYPE_CHECKING:
    from models.load import load_model
    from models.model import DiffusionLM
    from models.value import ValueModel, load_value_model
    from models.vision.prompt import Picture, Prompt

__all__ = ["DiffusionLM", "Picture", "Prompt", "ValueModel", "load_model", "load_value_model"]

_MODULES = {
    "DiffusionLM": "models.model",
    "Picture": "models.vision.prompt",
    "Prompt": "models.vision.prompt",
    "ValueModel": "models.value",
    "load_model": "models.load",
    "load_value_model": "models.value",
}

__getattr__ = loader(__name__, _MODULES)
