"""How the queries of one forward see its keys: the single seam between transformers' model classes and our masks.

transformers lets a model call a registered attention function. Ours hands queries, keys and values to a `Layout`,
an object passed along with the forward, which knows who sees whom and where keys are kept. No 2D mask, no causal
default, no cache class.

Shapes: B sequences, L tokens, H query heads, G key-value heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from models.compiled import obstacle, suits

ATTENTION_NAME = "dllm_layout"

AttentionKind = Literal["flex", "sdpa"]

# torch gives masked attention on Hopper to cuDNN, which plans anew for every new shape (about 22 ms), and spans change
# theirs all the time. Of no effect without CUDA.
torch.backends.cuda.enable_cudnn_sdp(False)


def attention_name(kind: AttentionKind, device: torch.device) -> str:
    """The attention in use, for people."""
    if kind == "flex":
        return f"FlexAttention, compiled for {device.type}"
    kernels = "efficient or math kernel, cuDNN off" if device.type == "cuda" else f"{device.type} kernel"
    return f"torch's SDPA under explicit masks ({kernels})"


def attention_kind(requested: str, device: torch.device) -> AttentionKind:
    """`requested` (auto, flex, sdpa), where auto is flex on a GPU that it can be compiled for, else sdpa. ValueError
    where flex is asked for and cannot be compiled."""
    if requested == "sdpa":
        return "sdpa"
    if requested == "auto":
        return "flex" if suits(device) else "sdpa"
    if problem := obstacle(device):
        raise ValueError(f"attention=flex cannot run on {device.type}: {problem}. Use attention=sdpa.")
    return "flex"


class Layout(Protocol):
    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        """Attention output [B, L, H, d] of decoder layer `layer`."""
        ...


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    layout: Layout = kwargs["layout"]
    return layout.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION_NAME, _attention)


def keep_out_of_compiled_layers() -> None:
    """Compiled layers call attention as it is: traced, it would be another function in every layer, for its number,
    and in every forward, for its layout."""
    AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(_attention))


def grouped_attention(
    query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Masked attention with G <= H key-value heads; mask is bool (True: may attend) or additive, broadcast to [B,
    1, L, Lk].

    Where the mask does not depend on the query ([B, 1, 1, Lk]) the heads of a group become further query rows: no
    key is copied. Returns [B, L, H, d].
    """
    B, H, L, d = query_BHLd.shape
    G = key_BGLd.shape[1]
    if G != H and (mask is None or mask.shape[-2] == 1):
        folded = query_BHLd.reshape(B, G, H // G * L, d)
        out = F.scaled_dot_product_attention(folded, key_BGLd, value_BGLd, attn_mask=mask, scale=scale)
        return out.reshape(B, H, L, d).transpose(1, 2)
    native = query_BHLd.device.type == "cpu"
    if G != H and not native:
        key_BGLd = key_BGLd.repeat_interleave(H // G, dim=1)
        value_BGLd = value_BGLd.repeat_interleave(H // G, dim=1)
    out = F.scaled_dot_product_attention(
        query_BHLd, key_BGLd, value_BGLd, attn_mask=mask, scale=scale, enable_gqa=G != H and native
    )
    return out.transpose(1, 2)


@dataclass(frozen=True)
class Masked:
    """One explicit mask for ordinary [B, L] sequences: bool [L, L] or [B, 1, L, L], None = everything sees
    everything."""

    mask: Tensor | None

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        return grouped_attention(query_BHLd, key_BGLd, value_BGLd, self.mask, scale)


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a packed row: first `num_shared` that later spans of the row see too, then `num_own`.

    mask_QQ: bool, which of its own tokens each sees; no row is empty. None: all of them. The shared tokens of earlier
    spans are all seen, so that a mask grows with the span and not with the row.
    rows: so many rows that are one span of this size each, one after another, with a mask each [rows, Q, Q].
    """

    num_shared: int
    num_own: int
    mask_QQ: Tensor | None
    rows: int = 1


@dataclass
class Packed:
    """Independent rows, each a run of spans, on one packed token axis (B = 1). No padding anywhere; a span's attention
    runs over the keys that it can see."""

    rows: Sequence[Sequence[Span]]
    _additive: dict[torch.dtype, list[Tensor | None]] = field(default_factory=dict, init=False, repr=False)

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        spans = [span for row in self.rows for span in row]
        parts = [count * span.rows for span in spans for count in (span.num_shared, span.num_own)]
        queries = iter(query_BHLd.split([a + b for a, b in zip(parts[::2], parts[1::2], strict=True)], dim=2))
        keys_values = zip(key_BGLd.split(parts, dim=2), value_BGLd.split(parts, dim=2), strict=True)
        masks = iter(self._masks(query_BHLd))
        outputs = []
        for row in self.rows:
            seen: list[tuple[Tensor, Tensor]] = []
            for span in row:
                seen.append(next(keys_values))
                key, value = (torch.cat(pieces, dim=2) for pieces in zip(*seen, next(keys_values), strict=True))
                query, mask = next(queries), next(masks)
                if span.rows > 1:
                    query, key, value = (_by_row(x, span.rows) for x in (query, key, value))
                output = grouped_attention(query, key, value, mask, scale)
                outputs.append(output.reshape(1, -1, *output.shape[2:]))
        return torch.cat(outputs, dim=1)

    def _masks(self, query: Tensor) -> list[Tensor | None]:
        """Of each span over all keys that it sees, additive, in the type that attention computes in; made once for all
        layers."""
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        if dtype not in self._additive:
            self._additive[dtype] = [
                _additive(span.mask_QQ, seen, dtype)
                for row in self.rows
                for span, seen in zip(row, accumulate((span.num_shared for span in row), initial=0), strict=False)
            ]
        return self._additive[dtype]


def _additive(mask_QQ: Tensor | None, seen: int, dtype: torch.dtype) -> Tensor | None:
    """The mask as a bias, after zeros for the `seen` tokens of earlier spans."""
    if mask_QQ is None:
        return None
    bias = F.pad(torch.zeros_like(mask_QQ, dtype=dtype).masked_fill_(~mask_QQ, -torch.inf), (seen, 0))
    return bias[:, None] if bias.dim() == 3 else bias[None, None]


def _by_row(x_1HLd: Tensor, rows: int) -> Tensor:
    """[1, H, rows * Q, d] as [rows, H, Q, d]."""
    return x_1HLd[0].unflatten(1, (rows, -1)).transpose(0, 1)


def block_causal_mask(length_tokens: int, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Bool [L, L]: a token sees its own block and all earlier ones; blocks lie on the absolute grid from position 0."""
    block = torch.arange(length_tokens, device=device) // block_size
    return block[:, None] >= block[None, :]
