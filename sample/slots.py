"""What a slot holds on the device: keys and values of its sequence, and where its decoding stands.

Shapes: n slots, b positions of a block, T capacity in tokens, G key-value heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


class SlotKV:
    """Keys and values [n + 1, G, T, d] of every layer. Row n is scratch: it takes the writes of spans that pad a shape."""

    def __init__(self, hf_config, slots: int, capacity_tokens: int, dtype: torch.dtype, device: torch.device):  # type: ignore[no-untyped-def]
        heads = hf_config.num_attention_heads
        d = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads
        shape = (slots + 1, getattr(hf_config, "num_key_value_heads", None) or heads, capacity_tokens, d)
        layers = range(hf_config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.slots, self.capacity_tokens = slots, capacity_tokens

    def copy(self, source: Tensor, target: Tensor, length_tokens: int | None = None) -> None:
        """Slot contents source[i] -> target[i] (disjoint), the first `length_tokens` positions or all."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :length_tokens] = cache[source, :, :length_tokens]


@dataclass
class StepState:
    """Where each slot stands; every field is a tensor whose first axis is the slot.

    ids, step_map, logp [n, T]: the sequence as decided so far (mask id, 0, 0 elsewhere).
    start: first position of the block at hand; end: first position after the last whole block; prompt: prompt length;
    limit: prompt + max_new_tokens; block_index: blocks begun before this one; block_step: steps taken in the block;
    step: steps taken in all; key: hash of the sample's name. needs_commit: the block before `start` is decided, its final keys and
    values are not written yet. live: being decoded; stopped: ended by a stop id.
    """

    ids: Tensor
    step_map: Tensor
    logp: Tensor
    start: Tensor
    end: Tensor
    prompt: Tensor
    limit: Tensor
    block_index: Tensor
    block_step: Tensor
    step: Tensor
    key: Tensor
    needs_commit: Tensor
    live: Tensor
    stopped: Tensor

    @staticmethod
    def empty(slots: int, capacity_tokens: int, mask_id: int, device: torch.device) -> "StepState":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        numbers = ("start", "end", "prompt", "limit", "block_index", "block_step", "step", "key")
        return StepState(
            ids=zeros(torch.long, capacity_tokens).fill_(mask_id),
            step_map=zeros(torch.int32, capacity_tokens),
            logp=zeros(torch.float32, capacity_tokens),
            **{name: zeros(torch.long) for name in numbers},
            **{name: zeros(torch.bool) for name in ("needs_commit", "live", "stopped")},
        )

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Rows source[i] -> target[i] (disjoint)."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]

    def rows(self, width: int) -> "StepState":
        """Views of the first `width` slots: what a step works on."""
        return StepState(**{field.name: getattr(self, field.name)[:width] for field in fields(self)})

    def place(
        self, slot: int, prompt_ids: Sequence[int], start: int, end: int, max_new_tokens: int, key: int, mask_id: int
    ) -> None:
        """Begins a sequence in a slot: prompt ids, masks to the end, the block at `start` next."""
        P = len(prompt_ids)
        self.ids[slot] = mask_id
        self.ids[slot, :P] = torch.as_tensor(prompt_ids, dtype=torch.long, device=self.ids.device)
        self.step_map[slot] = 0
        self.logp[slot] = 0.0
        numbers = {"start": start, "end": end, "prompt": P, "limit": P + max_new_tokens, "key": key}
        for name in ("start", "end", "prompt", "limit", "block_index", "block_step", "step", "key"):
            getattr(self, name)[slot] = numbers.get(name, 0)
        self.needs_commit[slot], self.live[slot], self.stopped[slot] = False, True, False
