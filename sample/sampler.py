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
from sample.slots import SlotKV, StepState
from sample.spans import CachePolicy, ExactBlockCache, FullRecompute
from sample.unmask import STRATEGIES, propose, schedule

_PREFILL_MAX_TOKENS = 16384
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

    The answer to a prompt is a pure function of weights, config, prompt and key: batch mates, order of arrival and number of slots
    do not enter (on one device; across devices and types up to rounding).
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig | None = None):
        self.model = model
        self.config = (config or SamplingConfig()).for_model(model)
        self.weights_version = 0
        self._parameters = dict(model.named_parameters())
        self._slots: tuple[SlotKV | None, StepState] | None = None
        self._device_constants()

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies new weights in place, by the names of `model.named_parameters()`; tensors that share storage cost nothing.

        ValueError on an unknown name or another shape.
        """
        for name, tensor in named_tensors:
            own = self._parameters.get(name)
            if own is None or own.shape != tensor.shape:
                have = "no such parameter" if own is None else f"its shape is {tuple(own.shape)}, not {tuple(tensor.shape)}"
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
    ) -> list[Rollout]:
        """Answers to each prompt (token ids), n a prompt, prompt-major.

        keys: one name a sample (tuples of ints and strings); default (hash of the prompt's ids, index in the group). progress is called
        with the number of newly finished answers. ValueError: empty prompt, mask id in a prompt, wrong number of keys.
        """
        requests = self._requests(prompts, n, keys)
        if not requests:
            return []
        with _eval_mode(self.model):
            return _Batch(self, requests).run(progress or (lambda finished: None))

    def release(self) -> None:
        """Frees the memory of the slots; the next `generate` takes it again."""
        self._slots = None

    def _requests(self, prompts: Sequence[Sequence[int]], n: int, keys: Sequence[Key] | None) -> list[Request]:
        if n < 1:
            raise ValueError(f"n={n}: ask for at least one answer a prompt.")
        if keys is not None and len(keys) != len(prompts) * n:
            raise ValueError(f"keys has {len(keys)} entries; {len(prompts)} prompts x n={n} need {len(prompts) * n}.")
        requests = []
        for group, prompt in enumerate(prompts):
            ids = [int(i) for i in prompt]
            if not ids:
                raise ValueError(f"prompt {group} is empty: give at least one token id.")
            if self.model.mask_id in ids:
                raise ValueError(f"prompt {group} contains the mask id {self.model.mask_id}: it would count as a position to fill.")
            digest = hash_key(tuple(ids))
            for member in range(n):
                index = len(requests)
                key = keys[index] if keys is not None else (digest, member)
                requests.append(Request(index, group, ids, tuple(key) if isinstance(key, (tuple, list)) else (key,)))
        return requests

    def _device_constants(self) -> None:
        """Schedule and stop ids as tensors, made once."""
        config, device = self.config, self.model.device
        assert config.block_size is not None and config.steps_per_block is not None and config.stop_ids is not None
        steps = config.steps_per_block
        per_block = [steps] if isinstance(steps, int) else list(steps)
        longest = max(per_block)
        table = [schedule(config.block_size, s) + [1] * (longest - s) for s in per_block]
        self.schedule = torch.tensor(table, device=device).clamp_min(1)
        self.stop_ids = torch.tensor(config.stop_ids, dtype=torch.long, device=device)

    def _take_slots(self, slots: int, capacity_tokens: int) -> tuple[CachePolicy, SlotKV | None, StepState]:
        device, config = self.model.device, self.config
        held = self._slots
        shape = held[1].ids.shape if held is not None else (0, 0)
        fits = shape == (slots, capacity_tokens) if config.deterministic else shape[0] >= slots and shape[1] >= capacity_tokens
        if held is None or not fits:
            kv = None
            if config.cache == "exact":
                kv = SlotKV(self.model.hf_config, slots, capacity_tokens, self.model.dtype, device)
            held = self._slots = (kv, StepState.empty(slots, capacity_tokens, self.model.mask_id, device))
        held[1].live[:] = False
        policy: CachePolicy
        policy = ExactBlockCache(self.model, config, held[0]) if held[0] is not None else FullRecompute(self.model, config)
        return policy, held[0], held[1]


class _Batch:
    """One call of `generate`: the queue, the slots at work, and what has come out."""

    def __init__(self, sampler: Sampler, requests: list[Request]):
        self.sampler, self.config, self.model = sampler, sampler.config, sampler.model
        assert self.config.block_size is not None
        self.b = self.config.block_size
        self.queue = deque(requests)
        self.rollouts: list[Rollout | None] = [None] * len(requests)
        policy = FullRecompute(self.model, self.config)
        capacity = max(policy.end(len(r.prompt_ids), self.config.max_new_tokens) for r in requests)
        slots = self.config.max_slots if self.config.deterministic else min(self.config.max_slots, len(requests))
        self.policy, self.kv, self.state = sampler._take_slots(slots, capacity)
        self.slots, self.capacity = slots, self.state.ids.shape[1]
        self.occupant: dict[int, Request] = {}
        self.width = 0
        self.steps_between_polls = _CUDA_STEPS_BETWEEN_POLLS if self.model.device.type == "cuda" else 1
        self.offset_b = torch.arange(self.b, device=self.model.device)

    def run(self, progress: Callable[[int], None]) -> list[Rollout]:
        self._admit()
        while self.occupant:
            view, commits = self._shapes()
            for _ in range(self.steps_between_polls):
                self.step(self.state.rows(self.width), view, commits)
            finished = self._collect()
            if finished:
                progress(finished)
                self._admit()
                self._compact()
        return [rollout for rollout in self.rollouts if rollout is not None]

    def step(self, state: StepState, view_tokens: int, commits: int) -> None:
        """One denoising step of every slot, and the advance to the next block where one is complete. Reads nothing to the host."""
        mask_id, b = self.model.mask_id, self.b
        hidden_nbD, active = self.policy.hidden(state, view_tokens, commits)
        position = state.start[:, None] + self.offset_b
        ids = state.ids.gather(1, position)
        masked = (ids == mask_id) & active[:, None]
        table = self.sampler.schedule
        k = table[state.block_index.clamp_max(len(table) - 1), state.block_step.clamp_max(table.shape[1] - 1)]
        logits = self.model.lm_head(hidden_nbD).float()
        proposal = propose(logits, state.key, position, state.step, mask_id, self.config)
        chosen = STRATEGIES[self.config.strategy](proposal, masked, k, self.config)

        state.step += active
        state.block_step += active
        ids = torch.where(chosen, proposal.token, ids)
        state.ids.scatter_(1, position, ids)
        state.step_map.scatter_(1, position, torch.where(chosen, state.step[:, None].int(), state.step_map.gather(1, position)))
        state.logp.scatter_(1, position, torch.where(chosen, proposal.logp, state.logp.gather(1, position)))

        undecided = torch.where(ids == mask_id, self.offset_b, b).amin(1)
        is_stop = (ids[..., None] == self.sampler.stop_ids).any(-1) if len(self.sampler.stop_ids) else torch.zeros_like(masked)
        is_stop &= (position >= state.prompt[:, None]) & (position < state.limit[:, None])
        stop = torch.where(is_stop, self.offset_b, b).amin(1)
        stopped = active & (stop < undecided)
        ended = active & (state.start + undecided >= state.limit)
        state.stopped |= stopped
        state.live &= ~(stopped | ended)
        advance = active & state.live & (undecided == b)
        state.start += b * advance
        state.block_index += advance
        state.block_step *= ~advance
        state.needs_commit |= advance

    def _shapes(self) -> tuple[int, int]:
        """How many keys the coming steps read and how many commits they have room for: bounds that the host knows."""
        state = self.state.rows(self.width)
        ahead = self.b * self.steps_between_polls
        commits = int(state.needs_commit.sum()) if self.steps_between_polls == 1 else self.width
        if self.config.deterministic:
            return self.capacity, self.width
        if isinstance(self.policy, FullRecompute):
            return int(state.end.amax()), commits
        view = int((state.start * state.live).amax()) + ahead
        return min(self.capacity, -(-view // _VIEW_MULTIPLE_TOKENS) * _VIEW_MULTIPLE_TOKENS), commits

    def _admit(self) -> None:
        """Fills free slots from the queue. A group's prompt is run once; its siblings take a copy."""
        free = deque(slot for slot in range(self.slots) if slot not in self.occupant)
        holder = {request.group: slot for slot, request in self.occupant.items()}
        fresh: dict[int, int] = {}
        copies: list[tuple[int, int, int]] = []
        while free and self.queue:
            request, slot = self.queue.popleft(), free.popleft()
            P = len(request.prompt_ids)
            if request.group in holder:
                copies.append((holder[request.group], slot, P))
            else:
                holder[request.group] = fresh[request.group] = slot
            self.state.place(
                slot, request.prompt_ids, self.policy.first_block(P), self.policy.end(P, self.config.max_new_tokens),
                self.config.max_new_tokens, hash_key(request.key), self.model.mask_id,
            )  # fmt: skip
            self.occupant[slot] = request
        self._prefill(sorted(fresh.values(), key=lambda slot: len(self.occupant[slot].prompt_ids)))
        device = self.model.device
        for length in {length for _, _, length in copies}:
            source, target = zip(*[(s, t) for s, t, other in copies if other == length], strict=True)
            self.policy.copy_prompt(torch.tensor(source, device=device), torch.tensor(target, device=device), length)
        self.width = self.slots if self.config.deterministic else max(self.occupant, default=-1) + 1

    def _prefill(self, slots: list[int]) -> None:
        """Prefills in batches of prompts of about one length, within a token budget."""
        batch: list[int] = []
        for slot in slots:
            longest = len(self.occupant[slot].prompt_ids)
            if batch and longest * (len(batch) + 1) > _PREFILL_MAX_TOKENS:
                self.policy.prefill([self.occupant[s].prompt_ids for s in batch], batch)
                batch = []
            batch.append(slot)
        if batch:
            self.policy.prefill([self.occupant[s].prompt_ids for s in batch], batch)

    def _collect(self) -> int:
        """Turns ended slots into rollouts and frees them."""
        live = self.state.live.tolist()
        ended = [slot for slot in self.occupant if not live[slot]]
        if not ended:
            return 0
        rows = {name: getattr(self.state, name)[ended].tolist() for name in ("ids", "step_map", "logp", "start", "step", "stopped")}
        for i, slot in enumerate(ended):
            request = self.occupant.pop(slot)
            P, end = len(request.prompt_ids), rows["start"][i] + self.b
            canvas = rows["ids"][i][P:end]
            length = min(self.config.max_new_tokens, len(canvas))
            if rows["stopped"][i]:
                length = next(j for j, token in enumerate(canvas) if token in (self.config.stop_ids or ())) + 1
            self.rollouts[request.index] = Rollout(
                key=request.key,
                prompt_ids=list(request.prompt_ids),
                canvas_ids=canvas,
                canvas_step_map=rows["step_map"][i][P:end],
                canvas_logprobs=rows["logp"][i][P:end],
                num_response_tokens=length,
                finish_reason="stop" if rows["stopped"][i] else "length",
                num_steps=rows["step"][i],
                weights_version=self.sampler.weights_version,
            )
        return len(ended)

    def _compact(self) -> None:
        """Moves the last slots at work into holes, so that a step never computes a finished one."""
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


def hash_key(key: Key) -> int:
    """A signed 64-bit name of a sample, stable across processes and machines."""
    text = ",".join(f"{type(part).__name__[0]}{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
