"""The families of models, one file each. Adding one is adding a file that defines a `Family`, and its import line here.
No file of this folder imports torch or transformers when it is imported."""
# ruff: noqa: F401

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from models.families.base import ChatFormat, Decoding, Family, Piece
from models.families.diffusion_gemma import DIFFUSION_GEMMA
from models.families.dream import DREAM
from models.families.llada import LLADA, MMADA
from models.families.llada2 import LLADA2
from models.families.lladav import LLADAV
from models.families.sdar import SDAR
from models.families.sdar_moe import SDAR_MOE

FAMILIES: tuple[Family, ...] = tuple(value for value in [*globals().values()] if isinstance(value, Family))
"""Every family that is imported above."""

_WITHOUT_FAMILY = {
    "llada2_moe_veomni": "dFactory's merged form of LLaDA2; convert it back with its scripts/moe_convertor.py",
}


def families() -> dict[str, Family]:
    """Every name and alias -> its family."""
    return {name: family for family in FAMILIES for name in (family.name, *family.aliases)}


def find_family(
    raw_config: Mapping[str, Any], model_base: str | None, where: str, weight_names: Collection[str] = ()
) -> Family:
    """The family of a checkpoint: `model_base` if given, else config.json's model_type. ValueError when neither is
    known, when they disagree, and for layouts that no family reads (by model_type, or by `weight_names` of a vision
    tower under a text model's model_type)."""
    known = families()
    model_type = raw_config.get("model_type")
    vision = next((name for name in weight_names if "vision_tower" in name or "mm_projector" in name), None)
    sees = any(f.vision is not None or f.carries_vision for f in FAMILIES if model_type in f.model_types)
    if str(model_type) in _WITHOUT_FAMILY or (vision is not None and not sees):
        reason = _WITHOUT_FAMILY.get(str(model_type)) or f"its weights hold {vision}, the part that reads images"
        raise ValueError(
            f"{where} is a {model_type} checkpoint, which no family here runs yet: {reason}. "
            f"Known: {', '.join(sorted(known))}."
        )
    if model_base is not None and model_base not in known:
        near = difflib.get_close_matches(model_base, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model.model_base is {model_base!r}; known: {', '.join(sorted(known))}.{hint}")
    named = None if model_base is None else known[model_base]
    family = named or next((f for f in FAMILIES if model_type in f.model_types), None)
    if family is None:
        raise ValueError(
            f"{where}/config.json has model_type {model_type!r}, which no family here reads. "
            f"Known: {', '.join(sorted({t for f in FAMILIES for t in f.model_types}))}. "
            "If the layout is one of them, name it with model.model_base."
        )
    if model_type not in family.model_types:
        raise ValueError(
            f"model.model_base {model_base!r} and {where}/config.json disagree: its model_type is {model_type!r}, "
            f"{family.name} checkpoints have {' or '.join(map(repr, family.model_types))}."
        )
    return family
