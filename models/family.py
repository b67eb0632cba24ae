"""What differs between model families. Adding one is adding one file that defines a `Family` and naming it in
`FAMILIES`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One architecture: how its checkpoints are laid out and how its outputs are read.

    name: the canonical `model_base`; aliases: other names of the same architecture (TraDo is SDAR with other weights).
    model_types: values of config.json's `model_type` that mean this family.
    attention: "block" (clean past, bidirectional inside a block) or "full" (bidirectional everywhere).
    logit_shift: the prediction of token i is read at position i - 1.
    model_class, hf_config: transformers' class, and its config made from the checkpoint's config.json (ValueError
    on flags that the class cannot express). key_map: regular expression -> replacement, from the checkpoint's
    weight names to the class's names; empty = equal names. mask_id: used when neither config.json nor the tokenizer
    names one. end_of_turn: the chat's token that ends an answer.
    """

    name: str
    model_types: tuple[str, ...]
    attention: Literal["block", "full"]
    model_class: type[PreTrainedModel]
    hf_config: Callable[[Mapping[str, Any]], PretrainedConfig]
    logit_shift: bool = False
    aliases: tuple[str, ...] = ()
    key_map: Mapping[str, str] | None = None
    mask_id: int | None = None
    end_of_turn: str | None = None
    default_block_size: int = 1


def families() -> dict[str, Family]:
    """Every name and alias -> its family."""
    from models.sdar import SDAR

    return {name: family for family in (SDAR,) for name in (family.name, *family.aliases)}


def find_family(raw_config: Mapping[str, Any], model_base: str | None, where: str) -> Family:
    """The family of a checkpoint: `model_base` if given, else config.json's model_type. ValueError when neither is
    known."""
    known = families()
    if model_base is not None:
        if model_base not in known:
            near = difflib.get_close_matches(model_base, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"model.model_base is {model_base!r}; known: {', '.join(sorted(known))}.{hint}")
        family = known[model_base]
    else:
        family = next((f for f in known.values() if raw_config.get("model_type") in f.model_types), None)  # type: ignore[assignment]
        if family is None:
            raise ValueError(
                f"{where}/config.json has model_type {raw_config.get('model_type')!r}, which no family here reads. "
                f"Known: {', '.join(sorted({t for f in known.values() for t in f.model_types}))}. "
                "If the layout is one of them, say so with model.model_base."
            )
    model_type = raw_config.get("model_type")
    if model_type not in family.model_types:
        raise ValueError(
            f"model.model_base {model_base!r} and {where}/config.json disagree: its model_type is {model_type!r}, "
            f"{family.name} checkpoints have {' or '.join(map(repr, family.model_types))}."
        )
    return family


def pick(raw_config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The entries of config.json that a transformers config takes; what is absent keeps its default."""
    return {name: raw_config[name] for name in names if name in raw_config}
