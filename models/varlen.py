"""Unmasked sequences through torch's flash attention for variable lengths, where it can take them: half precision on a
GPU.

Shapes: B sequences, L tokens, T tokens of a packed axis, H query heads, G key-value heads, d head size.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attention import Layout


def takes_lengths(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether sequences of this kind can go through it."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def takes_key_lengths(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it also takes lengths that only the device knows (not in torch 2.11)."""
    return takes_lengths(device, dtype) and "seqused_k" in _parameters()


@functools.cache
def _parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@dataclass(frozen=True)
class VarlenRows:
    """Rows on one packed token axis (B = 1), each of which sees all of itself. start_R1: where they start, and the end;
    longest: of them; otherwise: the same for what flash attention does not take."""

    start_R1: Tensor
    longest: int
    otherwise: Layout

    @staticmethod
    def of(starts: Sequence[int], device: torch.device, otherwise: Layout) -> "VarlenRows":
        """starts: and the end."""
        lengths = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        return VarlenRows(torch.tensor(starts, dtype=torch.int32, device=device), max(lengths), otherwise)

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        grouped = query_BHLd.shape[1] != key_BGLd.shape[1]
        if not takes_lengths(query_BHLd.device, query_BHLd.dtype) or (grouped and "enable_gqa" not in _parameters()):
            return self.otherwise.attend(layer, query_BHLd, key_BGLd, value_BGLd, scale)
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (x[0].transpose(0, 1) for x in (query_BHLd, key_BGLd, value_BGLd))
        options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
        starts = self.start_R1
        out = varlen_attn(query, key, value, starts, starts, self.longest, self.longest, scale=scale, **options)
        assert isinstance(out, Tensor)
        return out[None]


@dataclass(frozen=True)
class VarlenSequences:
    """Ordinary sequences [B, L], padded right: every token sees the first end_B tokens of its own."""

    start_B1: Tensor
    end_B: Tensor

    @staticmethod
    def of(end_B: Tensor, length_tokens: int) -> "VarlenSequences":
        start = torch.arange(len(end_B) + 1, dtype=torch.int32, device=end_B.device) * length_tokens
        return VarlenSequences(start, end_B.int())

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        B, H, L, d = query_BHLd.shape
        query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query_BHLd, key_BGLd, value_BGLd))
        out = varlen_attn(
            *(query, key, value, self.start_B1, self.start_B1, L, L),
            scale=scale,
            enable_gqa=key.shape[1] != H,
            seqused_k=self.end_B,
        )
        assert isinstance(out, Tensor)
        return out.view(B, L, H, d)
