"""What a slot holds on the device: keys and values of its sequence, and where its decoding stands.

Shapes: n slots, b positions of a block, T capacity in tokens, H query heads, G key-value heads, d head size.
"""

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from sample.draw import GREEDY, Drawing, Drawings, Mix

CAPACITY_MULTIPLE = 128
"""Capacities are rounded up to a multiple of so many tokens: whole blocks of keys for attention kernels."""


def rounded_capacity(tokens: int) -> int:
    return -(-tokens // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE


class SlotKV:
    """Keys and values of every layer in one tensor, `pool` [layers, 2, n + 1, T, G, d]. Slot n is scratch: it takes the
    writes of spans that pad a shape.

    keys, values: views [n + 1, T, G, d] of it, one a layer. heads_per_key: H / G.
    """

    def __init__(
        self, hf_config: PretrainedConfig, slots: int, capacity_tokens: int, dtype: torch.dtype, device: torch.device
    ):
        self.pool = torch.zeros(self.shape(hf_config, slots, capacity_tokens), dtype=dtype, device=device)
        self.keys, self.values = list(self.pool[:, 0]), list(self.pool[:, 1])
        self.slots, self.capacity_tokens = slots, self.pool.shape[3]
        self.heads_per_key = hf_config.num_attention_heads // self.pool.shape[4]

    @staticmethod
    def shape(hf_config: PretrainedConfig, slots: int, capacity_tokens: int) -> tuple[int, ...]:
        """Of `pool`, for sequences of so many tokens."""
        H = hf_config.num_attention_heads
        G = getattr(hf_config, "num_key_value_heads", None) or H
        d = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // H
        return hf_config.num_hidden_layers, 2, slots + 1, rounded_capacity(capacity_tokens), G, d

    @staticmethod
    def bytes(hf_config: PretrainedConfig, slots: int, capacity_tokens: int, dtype: torch.dtype) -> int:
        """Of the memory that so many slots take."""
        return math.prod(SlotKV.shape(hf_config, slots, capacity_tokens)) * dtype.itemsize

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
        """Slot contents source[i] -> target[i] (disjoint), the first `length_tokens` positions or all: one gather and
        one write for all layers."""
        pool = self.pool[:, :, :, :length_tokens]
        pool.index_copy_(2, target, pool.index_select(2, source))


class Seat(NamedTuple):
    """Where a sequence begins: its slot and prompt, and StepState's numbers of the same names (of its drawing too)."""

    slot: int
    prompt_ids: Sequence[int]
    start: int
    end: int
    limit: int
    masks: int
    key: int
    drawing: Drawing = GREEDY
    suffix_ids: Sequence[int] = ()


class Room(NamedTuple):
    """What slots hold for edits: events of a response; where tokens move (`sample.moves`) also the most steps of a
    block, and its tokens."""

    events: int = 0
    steps: int = 0
    block: int = 0


NO_ROOM = Room()
Per = Literal["slot", "token", "event", "move", "place", "state"]


def _numbers(dtype: torch.dtype = torch.long, per: Per = "slot") -> Any:
    """A field of StepState: one number a slot, one a token of it, or one an event; where tokens move also one an event,
    one a place of the block, or one a place and step of it."""
    return field(metadata={"dtype": dtype, "per": per})


@dataclass
class StepState:
    """Where each slot stands; every field is a tensor whose first axis is the slot.

    ids, step_map, logp [n, T]: the sequence as decided so far (mask id, 0, 0 elsewhere).
    start: first position of the block at hand; end: first position after the last block; length: after what stands
    right of it too.
    prompt: prompt length; limit: prompt + max_new_tokens; masks: positions that the next step may decide.
    block_index: blocks begun before this one; block_step: steps taken in the block; step: steps taken in all.
    key: hash of the sample's name and the seed.
    first_row: where the features of its prompt's pictures begin in the call's table (`sample.pictures`), to which its
    ids -1 - row are relative.
    needs_commit: the block before `start` is decided, its final keys and values are not written yet; waited: steps in
    which it found no room to be.
    live: being decoded.
    temperature, top_k, top_p: of a sequence that has its own `Drawing`.
    post_steps, remasked: steps that the block at hand has begun without masks, and tokens of it that have returned to
    the mask; both stay 0 where steps do not revise.
    events: how often a token was written or remasked so far; event_step, event_place, event_token, event_logp
    [n, E + 1]: these in order, as `sample.events` has them. The last column takes what a step does not change.
    event_action, event_source [n, E + 1]: the same of events where tokens move; new_mask [n, b]: places of the block at
    hand whose mask an edit made; history [n, K, b]: the block after each of its steps, before its tokens moved. All
    four are empty where none move.
    """

    ids: Tensor = _numbers(per="token")
    step_map: Tensor = _numbers(torch.int32, per="token")
    logp: Tensor = _numbers(torch.float32, per="token")
    start: Tensor = _numbers()
    end: Tensor = _numbers()
    length: Tensor = _numbers()
    prompt: Tensor = _numbers()
    limit: Tensor = _numbers()
    masks: Tensor = _numbers()
    block_index: Tensor = _numbers()
    block_step: Tensor = _numbers()
    step: Tensor = _numbers()
    key: Tensor = _numbers()
    first_row: Tensor = _numbers()
    needs_commit: Tensor = _numbers(torch.bool)
    waited: Tensor = _numbers(torch.int32)
    live: Tensor = _numbers(torch.bool)
    temperature: Tensor = _numbers(torch.float32)
    top_k: Tensor = _numbers()
    top_p: Tensor = _numbers(torch.float32)
    post_steps: Tensor = _numbers()
    remasked: Tensor = _numbers()
    events: Tensor = _numbers()
    event_step: Tensor = _numbers(torch.int32, per="event")
    event_place: Tensor = _numbers(torch.int32, per="event")
    event_token: Tensor = _numbers(torch.int32, per="event")
    event_logp: Tensor = _numbers(torch.float32, per="event")
    event_action: Tensor = _numbers(torch.int32, per="move")
    event_source: Tensor = _numbers(torch.int32, per="move")
    new_mask: Tensor = _numbers(torch.bool, per="place")
    history: Tensor = _numbers(torch.int32, per="state")

    @staticmethod
    def empty(
        slots: int, capacity_tokens: int, mask_id: int, device: torch.device, room: Room = NO_ROOM
    ) -> "StepState":
        """Of slots that are not live, with room for edits; the capacity is rounded up as `SlotKV`'s is."""
        shapes = {item: _shape(item, slots, capacity_tokens, room) for item in fields(StepState)}
        state = StepState(
            **{
                item.name: torch.zeros(shape, dtype=item.metadata["dtype"], device=device)
                for item, shape in shapes.items()
            }
        )
        state.ids.fill_(mask_id)
        return state

    @staticmethod
    def bytes(slots: int, capacity_tokens: int, room: Room = NO_ROOM) -> int:
        """Of the memory that so many slots take."""
        return sum(
            math.prod(_shape(item, slots, capacity_tokens, room)) * item.metadata["dtype"].itemsize
            for item in fields(StepState)
        )

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Rows source[i] -> target[i] (disjoint)."""
        for item in fields(self):
            tensor = getattr(self, item.name)
            tensor[target] = tensor[source]

    def clone(self) -> "StepState":
        """A copy that shares the events: steps only append to them, and `events` counts those that stand."""
        return StepState(**{item.name: _copied(item, getattr(self, item.name)) for item in fields(self)})

    def restore(self, saved: "StepState") -> None:
        """Becomes what `clone` saved, in place."""
        for item in fields(self):
            if item.metadata["per"] not in _LOGS:
                getattr(self, item.name).copy_(getattr(saved, item.name))

    def rows(self, width: int) -> "StepState":
        """Views of the first `width` slots: what a step works on."""
        return StepState(**{item.name: getattr(self, item.name)[:width] for item in fields(self)})

    def drawings(self, slot_N: Tensor, mix: Mix) -> Drawings:
        """How positions of the given slots draw their tokens."""
        return Drawings(mix, self.temperature[slot_N], self.top_k[slot_N], self.top_p[slot_N])

    def commit(self, chosen_nb: Tensor, position_nb: Tensor, ids_nb: Tensor, logp_nb: Tensor) -> None:
        """Decides the chosen positions of each slot's block in the step that `step` counts."""
        self._write(chosen_nb, position_nb, ids_nb, self.step.int()[:, None], logp_nb)

    def remask(self, returned_nb: Tensor, position_nb: Tensor, mask_id: int) -> None:
        """Returns positions of each slot's block to the mask."""
        self._write(returned_nb, position_nb, mask_id, 0, 0.0)

    def put(self, position_nb: Tensor, ids_nb: Tensor, step_nb: Tensor, logp_nb: Tensor) -> None:
        """Makes each slot's block these ids, decided in these steps with these log-probabilities."""
        self._write(torch.ones_like(ids_nb, dtype=torch.bool), position_nb, ids_nb, step_nb, logp_nb)

    def _write(self, where_nb: Tensor, position_nb: Tensor, *values: Tensor | float) -> None:
        for column, new in zip((self.ids, self.step_map, self.logp), values, strict=True):
            column.scatter_(1, position_nb, torch.where(where_nb, new, column.gather(1, position_nb)))

    @property
    def event_room(self) -> int:
        """E."""
        return self.event_step.shape[1] - 1

    def log(self, changed_nb: Tensor, position_nb: Tensor, ids_nb: Tensor, logp_nb: Tensor, *moved_nb: Tensor) -> None:
        """Appends what the step changed: the ids that stand there now, and the log-probabilities of what was chosen.
        moved_nb: actions and sources, where tokens move."""
        index_nb = self.events[:, None] + changed_nb.cumsum(1) - 1
        index_nb = torch.where(changed_nb, index_nb, self.event_room).clamp_max(self.event_room)
        step_nb, place_nb = self.step[:, None].expand_as(ids_nb), position_nb - self.prompt[:, None]
        columns = [self.event_step, self.event_place, self.event_token, self.event_logp]
        columns += [self.event_action, self.event_source] if moved_nb else []
        for column, new in zip(columns, (step_nb, place_nb, ids_nb, logp_nb, *moved_nb), strict=True):
            column.scatter_(1, index_nb, new.to(column.dtype))
        self.events += changed_nb.sum(1)

    def place(self, seats: Sequence[Seat], mask_id: int) -> None:
        """Begins sequences: prompt ids, masks to the end, what stands right of it (then a token that stands for
        nothing), the block at `start` next."""
        device, T = self.ids.device, self.ids.shape[1]
        slot = torch.tensor([seat.slot for seat in seats], device=device)
        ids = np.full((len(seats), T), mask_id)
        for row, seat in zip(ids, seats, strict=True):
            row[: len(seat.prompt_ids)] = seat.prompt_ids
            row[seat.end :] = max(0, seat.prompt_ids[0])
            row[seat.end : seat.end + len(seat.suffix_ids)] = seat.suffix_ids
        numbers = {
            "start": [seat.start for seat in seats],
            "end": [seat.end for seat in seats],
            "length": [seat.end + len(seat.suffix_ids) for seat in seats],
            "prompt": [len(seat.prompt_ids) for seat in seats],
            "limit": [seat.limit for seat in seats],
            "masks": [seat.masks for seat in seats],
            "key": [seat.key for seat in seats],
            **{name: [getattr(seat.drawing, name) for seat in seats] for name in Drawing._fields},
        }
        for item in fields(self):
            getattr(self, item.name)[slot] = 0
        self.ids[slot] = torch.from_numpy(ids).to(device)
        self.live[slot] = True
        for name, values in numbers.items():
            getattr(self, name)[slot] = torch.tensor(values, device=device)


_LOGS = ("event", "move")


def _copied(item: Field, tensor: Tensor) -> Tensor:
    return tensor if item.metadata["per"] in _LOGS else tensor.clone()


def _shape(item: Field, slots: int, capacity_tokens: int, room: Room) -> tuple[int, ...]:
    events = room.events + (room.events > 0)
    shapes: dict[Per, tuple[int, ...]] = {
        "slot": (slots,),
        "token": (slots, rounded_capacity(capacity_tokens)),
        "event": (slots, events),
        "move": (slots, events if room.block else 0),
        "place": (slots, room.block),
        "state": (slots, room.steps, room.block),
    }
    return shapes[item.metadata["per"]]
