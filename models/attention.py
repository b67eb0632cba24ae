"""How the queries of one forward see its keys: the single seam between transformers' model classes and our masks.

transformers lets a model call a registered attention function. Ours hands queries, keys and values to a `Layout`,
an object passed along with the forward, which says who sees whom and where keys are kept. No 2D mask, no causal
default, no cache class.

Shapes: B sequences, L tokens, H query heads, G key-value heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

ATTENTION_NAME = "dllm_layout"


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
    if G != H:
        key_BGLd = key_BGLd.repeat_interleave(H // G, dim=1)
        value_BGLd = value_BGLd.repeat_interleave(H // G, dim=1)
    out = F.scaled_dot_product_attention(query_BHLd, key_BGLd, value_BGLd, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


@dataclass(frozen=True)
class Masked:
    """One explicit mask for ordinary [B, L] sequences: bool [L, L] or [B, 1, L, L], None = everything sees
    everything."""

    mask: Tensor | None

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        return grouped_attention(query_BHLd, key_BGLd, value_BGLd, self.mask, scale)


@dataclass(frozen=True)
class Segment:
    """Rows of about one length inside a packed token axis.

    index_NS: positions on the packed axis, padding repeats 0; mask_N1SS: bool, or additive in the compute type;
    padded queries see column 0 so that no softmax row is empty. flat_index, source_index: where the real (unpadded)
    entries of the output go, and where they come from in [N * S].
    """

    index_NS: Tensor
    mask_N1SS: Tensor
    flat_index: Tensor
    source_index: Tensor


@dataclass(frozen=True)
class Packed:
    """Many independent rows on one packed token axis (B = 1): linear layers see no padding, attention runs row by
    row."""

    segments: Sequence[Segment]

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        _, H, L, d = query_BHLd.shape
        query_LHd, key_LGd, value_LGd = (x[0].transpose(0, 1) for x in (query_BHLd, key_BGLd, value_BGLd))
        pieces, order = [], []
        for segment in self.segments:
            q, k, v = (x[segment.index_NS].transpose(1, 2) for x in (query_LHd, key_LGd, value_LGd))
            out = grouped_attention(q, k, v, segment.mask_N1SS, scale)
            pieces.append(out.reshape(-1, H, d)[segment.source_index])
            order.append(segment.flat_index)
        if len(pieces) == 1:
            return pieces[0][None]
        return torch.cat(pieces)[torch.cat(order).argsort()][None]


def block_causal_mask(length_tokens: int, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Bool [L, L]: a token sees its own block and all earlier ones; blocks lie on the absolute grid from position 0."""
    block = torch.arange(length_tokens, device=device) // block_size
    return block[:, None] >= block[None, :]
