"""Tensor parallel inference: the ranks of a team compute one model together, each with its share of every layer.

What is cut, and how, is transformers' plan (`tp_plan`) of the network: heads, inner sizes and the head's vocabulary by
rows ("colwise": of a layer's outputs), what reads them by columns ("rowwise"), after which the team sums. Every rank of
a team gets the same logits, so that whatever follows from them is the same too.
"""

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.experts import dense_layers, experts_of

T = TypeVar("T")

_GATHERED = ("colwise_gather_output", "colwise_rep")
_BY_ROWS = ("colwise", "packed_colwise", *_GATHERED)
_SUMMED = ("rowwise", "moe_tp_experts")
_WHOLE = ("replicated_with_grad_allreduce", "embedding_rowwise")  # the second: of tied embeddings, in 5.17 only


class Team(Protocol):
    """The ranks that compute together. size: how many; place: of this rank among them."""

    size: int
    place: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in the tensor's own memory."""
        ...

    def side_by_side(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors joined along the last axis, in order of place."""
        ...

    def gather(self, value: T) -> list[T]:
        """The values of the ranks, in order of place, on every one."""
        ...


@dataclass(frozen=True)
class Parallel:
    """What a rank of a team has of a model's weights. plan: pattern of a module's or weight's name -> transformers'
    style."""

    team: Team
    plan: Mapping[str, str]

    def share(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of the whole weight of that name."""
        style = self._style(name) or self._style(name.rpartition(".")[0])
        if style in _BY_ROWS:
            dim, parts = max(0, whole.dim() - 2), 2 if style == "packed_colwise" else 1
        elif style == "rowwise" and whole.dim() > 1:
            dim, parts = whole.dim() - 1, 1
        else:
            return whole
        pieces = [part.chunk(self.team.size, dim)[self.team.place] for part in whole.chunk(parts, dim)]
        return pieces[0] if parts == 1 else torch.cat(pieces, dim)

    def elements(self, name: str, part: Tensor) -> int:
        """Of the whole weight that this rank's part is of."""
        share = self.share(name, part.to("meta"))
        return part.numel() * (self.team.size if share.numel() != part.numel() else 1)

    def connect(self, model: nn.Module) -> None:
        """Layers of the model, which has this rank's weights, give what whole ones would."""
        for name, module in model.named_modules():
            style = self._style(name)
            if style in _SUMMED:
                module.register_forward_hook(self._summed)
            elif style in _GATHERED:
                module.register_forward_hook(lambda module, inputs, output: self.team.side_by_side(output))

    def _summed(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)  # every rank has added it
        return self.team.sum(output) if bias is None else self.team.sum(output - bias) + bias

    def _style(self, name: str) -> str | None:
        return next((style for pattern, style in self.plan.items() if fnmatch.fnmatchcase(name, pattern)), None)


def check_team(hf_config: Any, size: int, key: str) -> None:
    """ValueError where a team of so many ranks cannot share a network evenly. key: of the config that sets the size."""
    heads = int(hf_config.num_attention_heads)
    has_experts = experts_of(hf_config) > 0
    inner = ["moe_intermediate_size"] if has_experts else []
    inner += ["intermediate_size"] if not has_experts or dense_layers(hf_config) else []
    counts = {
        "num_attention_heads": heads,
        "num_key_value_heads": int(getattr(hf_config, "num_key_value_heads", None) or heads),
        **{name: int(getattr(hf_config, name)) for name in inner},
        "vocab_size": int(hf_config.vocab_size),
    }
    fits = [n for n in range(1, heads + 1) if all(count % n == 0 for count in counts.values())]
    if size not in fits:
        name, count = next((name, count) for name, count in counts.items() if count % size)
        raise ValueError(
            f"{key}={size}: {size} processes cannot share the model's {name} of {count} evenly; choose from "
            f"{', '.join(map(str, fits))}."
        )


def plan_of(head_plan: Mapping[str, str], hf_config: Any) -> dict[str, str]:
    """The plan of a `DiffusionLM`, from what transformers' class has for the head and its config for the body.
    ValueError for a style that is not known here."""
    if hf_config.tie_word_embeddings:  # every rank has the whole embedding, and its logits
        head_plan = {}
    body = getattr(hf_config, "base_model_tp_plan", None) or {}
    plan = {**head_plan, **{f"model.{pattern}": style for pattern, style in body.items()}}
    for pattern, style in plan.items():
        if style not in (*_BY_ROWS, *_SUMMED, *_WHOLE):
            raise ValueError(f"transformers shares {pattern} as {style!r}, which is not supported here.")
    return plan


def shared_heads(hf_config: Any, size: int) -> Any:
    """The config as a rank of a team sees it: its share of the heads, of which keys and values are kept."""
    shared, heads = copy.copy(hf_config), int(hf_config.num_attention_heads)
    keys = int(getattr(hf_config, "num_key_value_heads", None) or heads)
    shared.head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads
    shared.num_attention_heads, shared.num_key_value_heads = heads // size, keys // size
    return shared
