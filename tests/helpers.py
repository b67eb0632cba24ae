"""What tests of every room use: tiny random models, and where golden vectors and real files lie."""

import json
import shutil
from pathlib import Path

import pytest

from models.tiny import TINY_CONFIGS, random_prompts, tiny_checkpoint, tiny_model

__all__ = [
    "FAMILIES",
    "GOLDEN",
    "REAL",
    "TINY_CONFIGS",
    "golden_lladav",
    "random_prompts",
    "thinned",
    "tiny_checkpoint",
    "tiny_model",
]

GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).parents[2] / "shared" / "real"
FAMILIES = tuple(family for family in TINY_CONFIGS if family != "diffusion_gemma")  # those with masks


def thinned(cases, every):
    """Cases of one argument: each `every`-th is among the fast tests, the rest are slow."""
    return [case if i % every == 0 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


def golden_lladav(folder):
    """A copy of the golden folder without tokenizer; config.json does not name the mask, which is 255."""
    shutil.copytree(GOLDEN / "lladav", folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"mask_token_id": 255}))
    return folder
