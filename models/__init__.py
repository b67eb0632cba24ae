"""Model families, checkpoints in their original layout, and the attention seam."""

from models.model import DiffusionLM, load_model

__all__ = ["DiffusionLM", "load_model"]
