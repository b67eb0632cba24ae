"""Continuous batching over slots: admit, step, collect. One sampler for every family.

Shapes: n slots at work, b positions of a block.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models import DiffusionLM
from sample.config import SamplingConfig
from sample.rollout import Key, Rollout
from sample.slots import Seat, SlotKV, StepState
from sample.spans import Bounds, CachePolicy, ExactBlockCache, cache_policy, first_true
from sample.targets import Coordinates
from sample.unmask import SCHEDULES, propose

PREFILL_MAX_TOKENS = 16384
_PREFILL_MAX_PADDING = 1.25
_VIEW_MULTIPLE_TOKENS = 32
_CUDA_STEPS_BETWEEN_POLLS = 8


@dataclass(frozen=True)
class Request:
    index: int
    group: int
    prompt_ids: Sequence[int]
    key: Key


class Sampler:
    """Decodes prompts with a model in the same process.

    The answer to a prompt is a pure function of weights, config, prompt and key: batch mates, order of arrival and
    number of slots do not enter (on one device; across devices and types up to rounding).
    steps_between_polls: steps that run before the host looks which slots have ended. A look makes the next shapes
    tight, and on an accelerator costs a wait.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig | None = None):
        self.model = model
        self.config = (config or SamplingConfig()).for_model(model)
        self.weights_version = 0
        self.steps_between_polls = _CUDA_STEPS_BETWEEN_POLLS if model.device.type == "cuda" else 1
        self._parameters = dict(model.named_parameters())
        self._slots: tuple[SlotKV | None, StepState] | None = None
        self.rules = self.config.rules(model.decoding.threshold_passes)
        self._device_constants()

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies new weights in place, by the names of `model.named_parameters()`; shared storage costs nothing.

        ValueError on an unknown name or another shape.
        """
        for name, tensor in named_tensors:
            own = self._parameters.get(name)
            if own is None or own.shape != tensor.shape:
                shapes = f"its shape is {tuple(own.shape)}, not {tuple(tensor.shape)}" if own is not None else ""
                have = shapes or "no such parameter"
                raise ValueError(f"update_weights: {name!r}: {have}. Pass the names of model.named_parameters().")
            if own.data_ptr() != tensor.data_ptr():
                own.copy_(tensor)
        self.weights_version += 1

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        keys: Sequence[Key] | None = None,
        progress: Callable[[int], None] | None = None,
        take: Callable[[], Sequence[int]] | None = None,
        limit: int | None = None,
    ) -> list[Rollout]:
        """Answers to each prompt (token ids), n a prompt, prompt-major.

        keys: one name a sample (tuples of ints and strings); default (hash of the prompt's ids, index in the group).
        progress is called with the number of newly finished answers, 0 included. take: asked, whenever there is room,
        which samples (places, prompt-major) to decode next; none = no more. Only these are answered, at most `limit` at
        a time. ValueError: empty prompt, mask id in a prompt, prompt and answer longer than the model's positions,
        wrong number of keys.
        """
        requests = self._requests(prompts, n, keys)
        if not requests:
            return []
        with _eval_mode(self.model):
            return _Generation(self, requests, take, limit).run(progress or (lambda finished: None))

    def release(self) -> None:
        """Frees the memory of the slots; the next `generate` takes it again."""
        self._slots = None

    def _requests(self, prompts: Sequence[Sequence[int]], n: int, keys: Sequence[Key] | None) -> list[Request]:
        if n < 1:
            raise ValueError(f"n={n}: ask for at least one answer a prompt.")
        if keys is not None and len(keys) != len(prompts) * n:
            raise ValueError(f"keys has {len(keys)} entries; {len(prompts)} prompts x n={n} need {len(prompts) * n}.")
        vocab_size, positions = int(self.model.hf_config.vocab_size), int(self.model.hf_config.max_position_embeddings)
        requests: list[Request] = []
        for group, prompt in enumerate(prompts):
            ids = [int(i) for i in prompt]
            if not ids:
                raise ValueError(f"prompt {group} is empty: give at least one token id.")
            if self.model.mask_id in ids:
                raise ValueError(
                    f"prompt {group} contains the mask id {self.model.mask_id}: it would count as a position to fill."
                )
            if not 0 <= min(ids) <= max(ids) < vocab_size:
                wrong = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(
                    f"prompt {group} contains the id {wrong}; the model's vocabulary has {vocab_size} ids."
                )
            if len(ids) + self.config.max_new_tokens > positions:
                raise ValueError(
                    f"prompt {group} has {len(ids)} tokens; with max_new_tokens={self.config.max_new_tokens} they "
                    f"exceed the {positions} positions of the model (max_position_embeddings): shorten one of them."
                )
            digest = hash_key(tuple(ids))
            for member in range(n):
                index = len(requests)
                key = keys[index] if keys is not None else (digest, member)
                parts = key if isinstance(key, (tuple, list)) else (key,)
                plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
                requests.append(Request(index, group, ids, plain))
        return requests

    def _device_constants(self) -> None:
        """Schedule and stop ids as tensors, made once."""
        config, device = self.config, self.model.device
        plans = self._plans()
        longest = max(map(len, plans))
        table = [plan + [1] * (longest - len(plan)) for plan in plans]
        self.schedule = torch.tensor(table, device=device).clamp_min(1)
        stop_ids = config.stop_ids if config.early_stop else ()
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=device)

    def _plans(self) -> list[list[int]]:
        """How many positions each step decides, a list a block; the last one holds for all further blocks."""
        config, rules = self.config, self.model.decoding
        assert config.block_size is not None and config.steps_per_block is not None
        if rules.dynamic_at_least_one and self.rules.strategy.by_threshold:
            return [[1]]
        steps = config.steps_per_block
        per_block = [steps] if isinstance(steps, int) else list(steps)
        sizes = [config.block_size] * len(per_block)
        if self.model.attention == "full":
            whole, rest = divmod(config.max_new_tokens, config.block_size)
            sizes = [config.block_size] * whole + [rest] * (rest > 0)
            per_block += per_block[-1:] * (len(sizes) - len(per_block))
        make = SCHEDULES[rules.schedule]
        return [make(size, steps) for size, steps in zip(sizes, per_block, strict=False)]

    def _take_slots(self, slots: int, capacity_tokens: int) -> tuple[CachePolicy, SlotKV | None, StepState]:
        """Slots for a call of `generate`: those of the call before where they are large enough (in deterministic mode:
        equal)."""
        model, config = self.model, self.config
        need, held = (slots, capacity_tokens), self._slots
        have = held[1].ids.shape if held is not None else (0, 0)
        fits = have == need if config.deterministic else have[0] >= need[0] and have[1] >= need[1]
        if held is None or not fits:
            self._slots = held = None
            cached = config.cache != "none"
            kv = SlotKV(model.hf_config, *need, model.dtype, model.device) if cached else None
            held = self._slots = (kv, StepState.empty(*need, model.mask_id, model.device))
        kv, state = held
        state.live.zero_()
        return cache_policy(model, config, kv), kv, state


class _Generation:
    """One call of `generate`: the queue, the slots at work, and what has come out."""

    def __init__(
        self, sampler: Sampler, requests: list[Request], take: Callable[[], Sequence[int]] | None, limit: int | None
    ):
        self.sampler, self.config, self.model = sampler, sampler.config, sampler.model
        assert self.config.block_size is not None
        self.b = self.config.block_size
        self.requests = requests
        self.queue = deque(requests if take is None else ())
        self.take = take or (lambda: ())
        self.limit = limit or len(requests)
        self.rollouts: list[Rollout | None] = [None] * len(requests)
        self.rules, self.full = self.model.decoding, self.model.attention == "full"
        capacity = max(len(r.prompt_ids) for r in requests) + self.config.max_new_tokens + self.b - 1
        slots = self.config.max_slots if self.config.deterministic else min(self.config.max_slots, self.limit)
        self.policy, self.kv, self.state = sampler._take_slots(slots, capacity)
        self.slots, self.capacity = slots, self.state.ids.shape[1]
        self.occupant: dict[int, Request] = {}
        self.resident: dict[int, int] = {}
        self.width = 0
        self.polls = 1 if self.config.cache in ("prefix", "dual") else sampler.steps_between_polls
        self.offset_b = torch.arange(self.b, device=self.model.device)

    def run(self, progress: Callable[[int], None]) -> list[Rollout]:
        self._admit()
        while self.occupant:
            state = self.state.rows(self.width)
            bounds = self._bounds(state)
            for _ in range(self.polls):
                self.step(state, bounds)
            finished = self._collect()
            progress(finished)
            if finished:
                self._admit()
                self._compact()
        return [rollout for rollout in self.rollouts if rollout is not None]

    def step(self, state: StepState, bounds: Bounds) -> None:
        """One denoising step of every slot, and the advance to the next block where one is complete.

        Reads nothing to the host. The head runs on undecided positions only, as many as the bounds leave room for.
        """
        mask_id, b, n = self.model.mask_id, self.b, len(state.start)
        hidden_nbD, active = self.policy.hidden(state, bounds)
        position = state.start[:, None] + self.offset_b
        ids = state.ids.gather(1, position)
        masked = (ids == mask_id) & active[:, None]
        if self.rules.opens_with_first:
            masked &= (state.block_step > 0)[:, None] | (self.offset_b == 0)
        row_N = first_true(masked.flatten(), bounds.masks)
        slot_N = row_N // b
        logits_NV = self.model.lm_head(hidden_nbD.flatten(0, 1)[row_N]).float()
        coordinates = Coordinates(state.key[slot_N], position.flatten()[row_N], state.step[slot_N])
        rules = self.sampler.rules
        proposal = propose(logits_NV, coordinates, rules, mask_id, self.model.text_vocab_size).spread(row_N, n, b)
        table = self.sampler.schedule
        k = table[state.block_index.clamp_max(len(table) - 1), state.block_step.clamp_max(table.shape[1] - 1)]
        chosen = rules.strategy(proposal, masked, k, self.config)

        state.step += active
        state.block_step += active
        ids = torch.where(chosen, proposal.token, ids)
        for field, new in ((state.ids, ids), (state.step_map, state.step.int()[:, None]), (state.logp, proposal.logp)):
            field.scatter_(1, position, torch.where(chosen, new, field.gather(1, position)))
        self._advance(state, active, ids, position)

    def _advance(self, state: StepState, active: Tensor, ids: Tensor, position: Tensor) -> None:
        """Ends slots whose answer is complete, moves those with a decided block on. ids, position: [n, b]."""
        b, stop_ids = self.b, self.sampler.stop_ids
        is_mask = ids == self.model.mask_id
        undecided = torch.where(is_mask, self.offset_b, b).amin(1)
        ended = state.start + undecided >= state.limit
        if len(stop_ids):
            is_stop = (ids[..., None] == stop_ids).any(-1)
            is_stop &= (position >= state.prompt[:, None]) & (position < state.limit[:, None])
            ended |= torch.where(is_stop, self.offset_b, b).amin(1) < undecided
        if self.rules.pads_end and self.config.early_stop and self.config.pad_id is not None:
            only_pads = ((ids == self.config.pad_id) | (position >= state.end[:, None])).all(1)
            self._fill_pads(state, active & only_pads & ~ended)
            ended |= only_pads
        state.live &= ~(active & ended)
        advance = active & state.live & (undecided == b)
        state.start += b * advance
        state.block_index += advance
        state.block_step *= ~advance
        state.needs_commit |= advance
        state.masks.copy_(torch.where(advance, self._first_masks(b), is_mask.sum(1)))

    def _first_masks(self, undecided: int) -> int:
        """Positions that the first step of a block may decide, of those undecided."""
        return min(undecided, 1) if self.rules.opens_with_first else undecided

    def _fill_pads(self, state: StepState, filled: Tensor) -> None:
        """Fills all that is right of the block at hand with pads, as one more step that costs no forward."""
        assert self.config.pad_id is not None
        position = torch.arange(state.ids.shape[1], device=filled.device)
        rest = (position >= (state.start + self.b)[:, None]) & (position < state.end[:, None]) & filled[:, None]
        state.ids.masked_fill_(rest, self.config.pad_id)
        state.step_map.copy_(torch.where(rest, (state.step + 1).int()[:, None], state.step_map))

    def _bounds(self, state: StepState) -> Bounds:
        """Tight bounds where the host looks at every step; else what no slot can exceed until the next look."""
        n = len(state.start)
        if self.config.deterministic:
            return Bounds(self.capacity, n, n * self.b, self.capacity)
        bounds = Bounds(*torch.stack(self.policy.demand(state, self.polls)).tolist())
        if self.polls > 1:
            bounds = bounds._replace(commits=n, masks=n * self.b)
        if isinstance(self.policy, ExactBlockCache):
            rounded = -(-bounds.view_tokens // _VIEW_MULTIPLE_TOKENS) * _VIEW_MULTIPLE_TOKENS
            bounds = bounds._replace(view_tokens=min(self.capacity, rounded))
        return bounds

    def _admit(self) -> None:
        """Fills free slots from the queue. A prompt is run once: siblings copy it, or follow in its slot."""
        empty = [slot for slot in range(self.slots) if slot not in self.occupant][: self.limit - len(self.occupant)]
        free = dict.fromkeys(empty)
        homes: dict[int | None, list[int]] = {}
        for slot in reversed(empty):
            homes.setdefault(self.resident.get(slot), []).append(slot)
        holder = {request.group: slot for slot, request in self.occupant.items()}
        seats: list[Seat] = []
        fresh: list[int] = []
        copies: list[tuple[int, int, int]] = []
        while free:
            if not self.queue:
                self.queue.extend(self.requests[i] for i in self.take())
            if not self.queue:
                break
            request = self.queue.popleft()
            group, P = request.group, len(request.prompt_ids)
            home = homes.get(group, [])
            while home and home[-1] not in free:
                home.pop()
            slot = home.pop() if home else next(iter(free))
            if self.resident.get(slot) != group:
                if group in holder:
                    copies.append((holder[group], slot, P))
                else:
                    fresh.append(slot)
            del free[slot]
            holder.setdefault(group, slot)
            self.occupant[slot], self.resident[slot] = request, group
            first, end = self.policy.first_block(P), self.policy.end(P, self.config.max_new_tokens)
            limit, key = P + self.config.max_new_tokens, hash_key(request.key, self.config.seed)
            masks = self._first_masks(first + self.b - P)
            seats.append(Seat(slot, request.prompt_ids, first, end, limit, masks, key))
        if seats:
            self.state.place(seats, self.model.mask_id)
        self._prefill(sorted(fresh, key=lambda slot: len(self.occupant[slot].prompt_ids)))
        for length in {length for _, _, length in copies}:
            pairs = [(source, target) for source, target, other in copies if other == length]
            source, target = torch.tensor(pairs, device=self.model.device).T
            self.policy.copy_prompt(source, target, length)
        self.width = self.slots if self.config.deterministic else max(self.occupant, default=-1) + 1

    def _prefill(self, slots: list[int]) -> None:
        """Prefills in batches of prompts of about one length, within a token budget; one by one if deterministic."""
        batch: list[int] = []
        tokens = 0
        for slot in slots:
            length = len(self.occupant[slot].prompt_ids)
            padded = length * (len(batch) + 1)
            wasteful = padded > PREFILL_MAX_TOKENS or padded > _PREFILL_MAX_PADDING * (tokens + length)
            if batch and (wasteful or self.config.deterministic):
                self.policy.prefill([self.occupant[s].prompt_ids for s in batch], batch)
                batch, tokens = [], 0
            batch.append(slot)
            tokens += length
        if batch:
            self.policy.prefill([self.occupant[s].prompt_ids for s in batch], batch)

    def _collect(self) -> int:
        """Turns ended slots into rollouts and frees them."""
        live = self.state.live.tolist()
        ended = [slot for slot in self.occupant if not live[slot]]
        if not ended:
            return 0
        names = ("ids", "step_map", "logp", "start", "end", "step")
        rows = {name: getattr(self.state, name)[ended].tolist() for name in names}
        for i, slot in enumerate(ended):
            request = self.occupant.pop(slot)
            P, end = len(request.prompt_ids), rows["end"][i] if self.full else rows["start"][i] + self.b
            canvas = rows["ids"][i][P:end]
            longest = min(self.config.max_new_tokens, len(canvas))
            stop = next((j for j in range(longest) if canvas[j] in (self.config.stop_ids or ())), None)
            self.rollouts[request.index] = Rollout(
                key=request.key,
                prompt_ids=list(request.prompt_ids),
                canvas_ids=canvas,
                canvas_step_map=rows["step_map"][i][P:end],
                canvas_logprobs=rows["logp"][i][P:end],
                num_response_tokens=longest if stop is None else stop + 1,
                finish_reason="length" if stop is None else "stop",
                num_steps=rows["step"][i],
                weights_version=self.sampler.weights_version,
            )
        return len(ended)

    def _compact(self) -> None:
        """Moves the last slots into the holes that an empty queue leaves, so that no step computes an ended one."""
        if self.config.deterministic:
            return
        holes = [slot for slot in range(len(self.occupant)) if slot not in self.occupant]
        tail = [slot for slot in self.occupant if slot >= len(self.occupant)]
        if holes:
            source, target = torch.tensor(tail, device=self.model.device), torch.tensor(holes, device=self.model.device)
            self.state.copy(source, target)
            if self.kv is not None:
                self.kv.copy(source, target)
            for old, new in zip(tail, holes, strict=True):
                self.occupant[new] = self.occupant.pop(old)
        self.width = len(self.occupant)


def hash_key(key: Key, seed: int = 0) -> int:
    """A signed 64-bit name of a sample under a seed, stable across processes and machines."""
    digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
