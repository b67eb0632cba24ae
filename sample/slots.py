"""What a slot holds on the device: keys and values of its sequence, and where its decoding stands.

Shapes: n slots, b positions of a block, T capacity in tokens, H query heads, G key-value heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig


class SlotKV:
    """Keys and values [n + 1, T, G, d] of every layer. Row n is scratch: it takes the writes of spans that pad a shape.

    heads_per_key: H / G.
    """

    def __init__(
        self, hf_config: PretrainedConfig, slots: int, capacity_tokens: int, dtype: torch.dtype, device: torch.device
    ):
        H = hf_config.num_attention_heads
        G = getattr(hf_config, "num_key_value_heads", None) or H
        d = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // H
        layers = range(hf_config.num_hidden_layers)
        shape = (slots + 1, capacity_tokens, G, d)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.slots, self.capacity_tokens, self.heads_per_key = slots, capacity_tokens, H // G

    def rows(self, slot_SL: Tensor, position_SL: Tensor) -> Tensor:
        """Flat indices [S * L] that `write` takes; slot_SL may be [S, 1]."""
        return (slot_SL * self.capacity_tokens + position_SL).flatten()

    def write(self, layer: int, row: Tensor, key_SGLd: Tensor, value_SGLd: Tensor) -> None:
        for cache, new in ((self.keys[layer], key_SGLd), (self.values[layer], value_SGLd)):
            cache.flatten(0, 1).index_copy_(0, row, new.transpose(1, 2).flatten(0, 1))

    def view(self, layer: int, n: int, length_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values [n, G, length, d] of the first n slots, no copy."""
        keys, values = self.keys[layer][:n, :length_tokens], self.values[layer][:n, :length_tokens]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def copy(self, source: Tensor, target: Tensor, length_tokens: int | None = None) -> None:
        """Slot contents source[i] -> target[i] (disjoint), the first `length_tokens` positions or all."""
        for cache in (*self.keys, *self.values):
            cache[target, :length_tokens] = cache[source, :length_tokens]


class Seat(NamedTuple):
    """Where a sequence begins: its slot and prompt, and StepState's numbers of the same names."""

    slot: int
    prompt_ids: Sequence[int]
    start: int
    end: int
    limit: int
    masks: int
    key: int


@dataclass
class StepState:
    """Where each slot stands; every field is a tensor whose first axis is the slot.

    ids, step_map, logp [n, T]: the sequence as decided so far (mask id, 0, 0 elsewhere).
    start: first position of the block at hand; end: first position after the last block.
    prompt: prompt length; limit: prompt + max_new_tokens; masks: positions that the next step may decide.
    block_index: blocks begun before this one; block_step: steps taken in the block; step: steps taken in all.
    key: hash of the sample's name and the seed.
    needs_commit: the block before `start` is decided, its final keys and values are not written yet.
    live: being decoded.
    """

    ids: Tensor
    step_map: Tensor
    logp: Tensor
    start: Tensor
    end: Tensor
    prompt: Tensor
    limit: Tensor
    masks: Tensor
    block_index: Tensor
    block_step: Tensor
    step: Tensor
    key: Tensor
    needs_commit: Tensor
    live: Tensor

    @staticmethod
    def empty(slots: int, capacity_tokens: int, mask_id: int, device: torch.device) -> "StepState":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        numbers = ("start", "end", "prompt", "limit", "masks", "block_index", "block_step", "step", "key")
        return StepState(
            ids=zeros(torch.long, capacity_tokens).fill_(mask_id),
            step_map=zeros(torch.int32, capacity_tokens),
            logp=zeros(torch.float32, capacity_tokens),
            **{name: zeros(torch.long) for name in numbers},
            **{name: zeros(torch.bool) for name in ("needs_commit", "live")},
        )

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Rows source[i] -> target[i] (disjoint)."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]

    def rows(self, width: int) -> "StepState":
        """Views of the first `width` slots: what a step works on."""
        return StepState(**{field.name: getattr(self, field.name)[:width] for field in fields(self)})

    def commit(self, chosen_nb: Tensor, position_nb: Tensor, ids_nb: Tensor, logp_nb: Tensor) -> None:
        """Decides the chosen positions of each slot's block in the step that `step` counts."""
        step_nb = self.step.int()[:, None]
        for field, new in ((self.ids, ids_nb), (self.step_map, step_nb), (self.logp, logp_nb)):
            field.scatter_(1, position_nb, torch.where(chosen_nb, new, field.gather(1, position_nb)))

    def place(self, seats: Sequence[Seat], mask_id: int) -> None:
        """Begins sequences: prompt ids, masks to the end (beyond it a token that stands for nothing), the block at
        `start` next."""
        device, T = self.ids.device, self.ids.shape[1]
        slot = torch.tensor([seat.slot for seat in seats], device=device)
        ids = np.full((len(seats), T), mask_id)
        for row, seat in zip(ids, seats, strict=True):
            row[: len(seat.prompt_ids)] = seat.prompt_ids
            row[seat.end :] = seat.prompt_ids[0]
        numbers = {
            "start": [seat.start for seat in seats],
            "end": [seat.end for seat in seats],
            "prompt": [len(seat.prompt_ids) for seat in seats],
            "limit": [seat.limit for seat in seats],
            "masks": [seat.masks for seat in seats],
            "key": [seat.key for seat in seats],
        }
        for field in fields(self):
            getattr(self, field.name)[slot] = 0
        self.ids[slot] = torch.from_numpy(ids).to(device)
        self.live[slot] = True
        for name, values in numbers.items():
            getattr(self, name)[slot] = torch.tensor(values, device=device)
