"""What tests of every room use: tiny random models, and where golden vectors and real files lie."""

from pathlib import Path

import pytest

from models.tiny import TINY_CONFIGS, random_prompts, tiny_checkpoint, tiny_model

__all__ = ["FAMILIES", "GOLDEN", "REAL", "TINY_CONFIGS", "random_prompts", "thinned", "tiny_checkpoint", "tiny_model"]

GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).parents[2] / "shared" / "real"
FAMILIES = tuple(TINY_CONFIGS)


def thinned(cases, every):
    """Cases of one argument: each `every`-th is among the fast tests, the rest are slow."""
    return [case if i % every == 0 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]
