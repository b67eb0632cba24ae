"""Model families, checkpoints in their original layout, and the attention seam."""

from models.model import DiffusionLM, load_model
from models.value import ValueModel, load_value_model

__all__ = ["DiffusionLM", "ValueModel", "load_model", "load_value_model"]
