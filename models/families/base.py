"""What differs between model families. Adding one is adding one file that defines a `Family` and naming it in
`families`."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WITHOUT_FAMILY = {
    "llada2_moe": "LLaDA2.x has a sigmoid router over groups with an expert bias, shared experts, partial rotary "
    "embeddings and one query_key_value projection",
    "llava_llada": "LLaDA-V reads images",
}


@dataclass(frozen=True)
class Piece:
    """Where a checkpoint keeps one part of a network's weight.

    Rows [start, stop) of the checkpoint's tensor `name` (None: all of it) are the part `at` of the weight (an index;
    () = all of it), as part = stored * scale + shift.
    """

    name: str
    rows: tuple[int, int] | None = None
    at: tuple[int | slice, ...] = ()
    scale: float = 1.0
    shift: float = 0.0


Pieces = Callable[[Mapping[str, Any], str, Sequence[int]], list[Piece]]


def same_name(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    """A checkpoint with transformers' own names."""
    return [Piece(weight)]


@dataclass(frozen=True)
class Decoding:
    """How answers of a family are unmasked.

    schedule: how the steps of a block share its positions (a name of `sample.unmask.SCHEDULES`).
    opens_with_first: the first call of a block decides its first position and no other.
    dynamic_at_least_one: low_confidence_dynamic decides at least one position a step, not the step's share.
    threshold_passes: a score equal to the threshold passes.
    pads_end: a block of pads alone ends the answer, what is right of it is filled with pads.
    block_size: for full attention, where blocks are only a schedule and no checkpoint names them.
    """

    schedule: Literal["even", "timesteps"] = "even"
    opens_with_first: bool = False
    dynamic_at_least_one: bool = False
    threshold_passes: bool = False
    pads_end: bool = False
    block_size: int | None = None


@dataclass(frozen=True)
class Family:
    """One architecture: how its checkpoints are laid out and how its outputs are read.

    name: the canonical `model_base`; aliases: other names of the same architecture (TraDo is SDAR with other weights).
    model_types: values of config.json's `model_type` that mean this family.
    attention: "block" (clean past, bidirectional inside a block) or "full" (bidirectional everywhere).
    logit_shift: the prediction of token i is read at position i - 1.
    model_class, hf_config: transformers' class, and its config made from the checkpoint's config.json (ValueError
    on flags that the class cannot express). adapt: changes of the modules that no config of the class expresses.
    pieces: config.json, a weight's name and shape -> where the checkpoint keeps it, in and out.
    mask_token, mask_id: used when neither config.json nor the tokenizer names a mask. end_of_turn: the chat's token
    that ends an answer. tokenizer_class: stands in for the remote code that the tokenizer's files ask for.
    text_vocab_size: config.json -> ids from here on are never sampled; None = those that the tokenizer has no name for.
    decoding: how answers are unmasked.
    """

    name: str
    model_types: tuple[str, ...]
    attention: Literal["block", "full"]
    model_class: type[PreTrainedModel]
    hf_config: Callable[[Mapping[str, Any]], PretrainedConfig]
    adapt: Callable[[PreTrainedModel, Mapping[str, Any]], None] | None = None
    pieces: Pieces = same_name
    logit_shift: bool = False
    aliases: tuple[str, ...] = ()
    mask_token: str | None = None
    mask_id: int | None = None
    end_of_turn: str | None = None
    tokenizer_class: type[PreTrainedTokenizerBase] | None = None
    text_vocab_size: Callable[[Mapping[str, Any]], int] | None = None
    default_block_size: int = 1
    decoding: Decoding = Decoding()


def families() -> dict[str, Family]:
    """Every name and alias -> its family."""
    from models.families.dream import DREAM
    from models.families.llada import LLADA, MMADA
    from models.families.sdar import SDAR
    from models.families.sdar_moe import SDAR_MOE

    every = (SDAR, SDAR_MOE, DREAM, LLADA, MMADA)
    return {name: family for family in every for name in (family.name, *family.aliases)}


def find_family(
    raw_config: Mapping[str, Any], model_base: str | None, where: str, weight_names: Collection[str] = ()
) -> Family:
    """The family of a checkpoint: `model_base` if given, else config.json's model_type. ValueError when neither is
    known, when they disagree, and for layouts that no family reads (by model_type, or by `weight_names` of a vision
    tower under a text model's model_type)."""
    known = families()
    model_type = raw_config.get("model_type")
    vision = next((name for name in weight_names if "vision_tower" in name or "mm_projector" in name), None)
    if model_type in _WITHOUT_FAMILY or vision is not None:
        reason = _WITHOUT_FAMILY.get(str(model_type)) or f"its weights hold {vision}, the part that reads images"
        raise ValueError(
            f"{where} is a {model_type} checkpoint, which no family here runs yet: {reason}. "
            f"Known: {', '.join(sorted(known))}."
        )
    if model_base is not None:
        if model_base not in known:
            near = difflib.get_close_matches(model_base, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"model.model_base is {model_base!r}; known: {', '.join(sorted(known))}.{hint}")
        family = known[model_base]
    else:
        family = next((f for f in known.values() if model_type in f.model_types), None)  # type: ignore[assignment]
        if family is None:
            raise ValueError(
                f"{where}/config.json has model_type {model_type!r}, which no family here reads. "
                f"Known: {', '.join(sorted({t for f in known.values() for t in f.model_types}))}. "
                "If the layout is one of them, say so with model.model_base."
            )
    if model_type not in family.model_types:
        raise ValueError(
            f"model.model_base {model_base!r} and {where}/config.json disagree: its model_type is {model_type!r}, "
            f"{family.name} checkpoints have {' or '.join(map(repr, family.model_types))}."
        )
    return family


def pick(raw_config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The entries of config.json that a transformers config takes; what is absent keeps its default."""
    return {name: raw_config[name] for name in names if name in raw_config}
