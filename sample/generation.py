"""Continuous batching over slots, of a call of `Sampler.generate` or of a `Session`: admit, step, collect."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from sample.denoiser import Denoiser
from sample.draw import Drawing, Mix
from sample.graphs import CommitBudget, Steps, bucket
from sample.pictures import PictureTable
from sample.request import Request, hash_key
from sample.revision import events_of
from sample.rollout import Rollout
from sample.routing import RoutingCache
from sample.seating import Copy, Seating
from sample.slots import GREEDY, Seat, SlotKV, StepState
from sample.spans import PREFILL_MAX_TOKENS, Bounds, CachePolicy

_PREFILL_MAX_PADDING = 1.25


@dataclass(frozen=True)
class Slots:
    """The slots of a call: what computes in them, keys and values (None without a cache), where each stands, and the
    steps over them.

    count: of those that may be taken; the tensors may hold more. capacity_tokens: of the longest sequence of the call,
    or all that the tensors hold; no step sees more.
    """

    count: int
    capacity_tokens: int
    cache: CachePolicy
    kv: SlotKV | None
    state: StepState
    steps: Steps


class Queue:
    """The waiting requests: all of them in order, or those that `take` returns (by index) when it is called."""

    def __init__(self, requests: Sequence[Request] = (), take: Callable[[], Sequence[int]] | None = None):
        self._requests, self._take = requests, take
        self._waiting = deque(requests if take is None else ())

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def remove(self, index: int) -> None:
        """Forgets the request of this index, if it waits."""
        self._waiting = deque(request for request in self._waiting if request.index != index)

    def next(self) -> Request | None:
        if not self._waiting and self._take is not None:
            self._waiting.extend(self._requests[i] for i in self._take())
        return self._waiting.popleft() if self._waiting else None


class Generation:
    """The queue, the slots at work, and the finished rollouts. limit: requests at work at a time; polls: steps between
    two looks at which slots have ended."""

    def __init__(self, queue: Queue, slots: Slots, denoiser: Denoiser, limit: int, polls: int, weights_version: int):
        self.queue, self.denoiser, self.limit, self.weights_version = queue, denoiser, limit, weights_version
        self.slots, self.cache, self.kv, self.state = slots.count, slots.cache, slots.kv, slots.state
        self.capacity_tokens, self.steps, self.budget = slots.capacity_tokens, slots.steps, CommitBudget()
        self.polls = 1 if self.cache.polls_every_step else polls
        self.model, self.config, self.b = denoiser.model, denoiser.config, denoiser.b
        self.pictures = PictureTable()
        self.rollouts: dict[int, Rollout] = {}
        self.occupant: dict[int, Request] = {}
        self.resident: dict[int, int] = {}
        self.width = 0

    def run(self, progress: Callable[[int], None]) -> list[Rollout]:
        """The rollouts of all requests that were taken, in the order of their index."""
        self.admit()
        while self.occupant:
            finished = self.turn()
            progress(finished)
            if finished:
                self.admit()
                self.compact()
        self.cache.features = None
        if isinstance(self.cache, RoutingCache):
            self.cache.prompts.clear()
        if self.pictures.forgets:
            self.pictures.forget()
        return [self.rollouts[index] for index in sorted(self.rollouts)]

    def turn(self) -> int:
        """Steps up to the next look at which slots have ended; how many have."""
        state = self.state.rows(self._slots_of_a_step())
        self.steps.run(state, self._bounds(state), self.polls)
        self._look_at_commits()
        return self._collect()

    def _slots_of_a_step(self) -> int:
        """Those at work, and dead ones up to a bucket where shapes are fixed."""
        if not self.steps.fixed or self.config.deterministic:
            return self.width
        return bucket(self.width, len(self.state.live))

    def _bounds(self, state: StepState) -> Bounds:
        """Tight bounds where the host looks at every step; else what no slot can exceed until the next look. Where
        shapes are fixed they follow the number of slots and the commit budget alone."""
        n, capacity, mix = len(state.start), self.capacity_tokens, self._mix()
        if self.config.deterministic:
            return Bounds(capacity, n, n * self.b, capacity, mix)
        if self.steps.fixed:
            return Bounds(self.state.ids.shape[1], self.budget.spans(n, len(self.occupant)), n * self.b, mix=mix)
        bounds = Bounds(*torch.stack(self.cache.demand(state, self.polls)).tolist())._replace(mix=mix)
        if self.polls > 1:
            bounds = bounds._replace(commits=self.budget.spans(n, len(self.occupant)), masks=n * self.b)
        rounded = -(-bounds.view_tokens // self.cache.view_multiple) * self.cache.view_multiple
        return bounds._replace(view_tokens=min(capacity, rounded))

    def _mix(self) -> Mix | None:
        own: list[Drawing] = [request.drawing for request in self.occupant.values() if request.drawing is not None]
        return Mix(not all(d.greedy for d in own), any(d.filters for d in own)) if own else None

    def admit(self) -> None:
        """Seats requests from the queue in free slots."""
        free = [slot for slot in range(self.slots) if slot not in self.occupant][: self.limit - len(self.occupant)]
        seating = Seating(free, self.occupant, self.resident)
        while seating.free and (request := self.queue.next()) is not None:
            seating.take(request)
        if seating.taken:
            self.state.place([self._seat(slot) for slot in seating.taken], self.model.mask_id)
            self._show_pictures()
        self._prefill(seating.fresh)
        self._copy_prompts(seating.copies)
        self.width = self.slots if self.config.deterministic else max(self.occupant, default=-1) + 1

    def _show_pictures(self) -> None:
        """Hands the features of the prompts at work to what runs them."""
        if self.pictures.hold(self.occupant) or self.pictures.rows is not None:
            slots, requests = list(self.occupant), self.occupant.values()
            first = [self.pictures.first_row(request) for request in requests]
            self.state.first_row[slots] = torch.tensor(first, device=self.model.device)
        self.cache.features = self.pictures.rows

    def _seat(self, slot: int) -> Seat:
        """Where the slot's new request begins and ends."""
        request = self.occupant[slot]
        P, most = len(request.prompt_ids), request.max_new_tokens
        start = self.cache.first_block(P)
        return Seat(
            slot=slot,
            prompt_ids=request.prompt.numbered(),
            start=start,
            end=self.cache.end(P, most),
            limit=P + most,
            masks=self.denoiser.first_masks(start + self.b - P),
            key=hash_key(request.key, request.seed),
            drawing=request.drawing or GREEDY,
            suffix_ids=self.denoiser.suffix_ids,
        )

    def _prefill(self, slots: Sequence[int]) -> None:
        """Prefills in batches of prompts of about one length, within a token budget; one by one if deterministic."""
        batch: list[int] = []
        tokens = 0
        for slot in sorted(slots, key=lambda slot: len(self.occupant[slot].prompt_ids)):
            length = len(self.occupant[slot].prompt_ids)
            padded = length * (len(batch) + 1)
            wasteful = padded > PREFILL_MAX_TOKENS or padded > _PREFILL_MAX_PADDING * (tokens + length)
            if batch and (wasteful or self.config.deterministic):
                self.cache.prefill([self.occupant[s].prompt_ids for s in batch], batch)
                batch, tokens = [], 0
            batch.append(slot)
            tokens += length
        if batch:
            self.cache.prefill([self.occupant[s].prompt_ids for s in batch], batch)

    def _copy_prompts(self, copies: Sequence[Copy]) -> None:
        for length in {copy.prompt_tokens for copy in copies}:
            pairs = [(copy.source, copy.target) for copy in copies if copy.prompt_tokens == length]
            source, target = torch.tensor(pairs, device=self.model.device).T
            self.cache.copy_prompt(source, target, length)

    def _look_at_commits(self) -> None:
        """What the steps since the last look needed of commit spans, where the host does not count before each."""
        if self.polls == 1 and not self.steps.fixed:
            return
        waits = self.state.needs_commit & self.state.live
        begun, waiting = torch.stack([self.state.block_index, waits]).tolist()
        blocks = {request.index: begun[slot] for slot, request in self.occupant.items()}
        self.budget.look(blocks, sum(waiting), self.polls)

    def _collect(self) -> int:
        """Turns ended slots into rollouts and frees them; how many."""
        live = self.state.live.tolist()
        ended = [slot for slot in self.occupant if not live[slot]]
        if not ended:
            return 0
        names = ("ids", "step_map", "logp", "start", "end", "step")
        columns = [getattr(self.state, name)[ended].tolist() for name in names]
        for slot, *numbers in zip(ended, *columns, strict=True):
            request = self.occupant.pop(slot)
            rollout = self._rollout(request, **dict(zip(names, numbers, strict=True)))
            if self.config.revises:
                rollout = replace(rollout, events=events_of(self.state, slot, self.model.mask_id, self.config))
            if isinstance(self.cache, RoutingCache):
                rollout = replace(rollout, routing=self.cache.take(slot, rollout.prompt_ids, rollout.num_steps))
            self.rollouts[request.index] = rollout
        return len(ended)

    def _rollout(
        self, request: Request, ids: list[int], step_map: list[int], logp: list[float], start: int, end: int, step: int
    ) -> Rollout:
        """What a slot holds, as a record. The canvas ends with the block at hand, under full attention with the
        window."""
        P = len(request.prompt_ids)
        canvas = slice(P, end if self.model.attention == "full" else start + self.b)
        longest = min(request.max_new_tokens, len(ids[canvas]))
        stop = next((j for j in range(longest) if ids[P + j] in (self.config.stop_ids or ())), None)
        return Rollout(
            key=request.key,
            prompt_ids=list(request.prompt_ids),
            canvas_ids=ids[canvas],
            canvas_step_map=step_map[canvas],
            canvas_logprobs=logp[canvas],
            num_response_tokens=longest if stop is None else stop + 1,
            finish_reason="length" if stop is None and self.config.output == "text" else "stop",
            num_steps=step,
            weights_version=self.weights_version,
            images=request.prompt.digests if request.prompt.has_rows else [],
            suffix_ids=list(self.denoiser.suffix_ids),
        )

    def remove(self, index: int) -> None:
        """Ends a request wherever it is, without a rollout: it waits no longer, or its slot is free."""
        self.queue.remove(index)
        slot = next((slot for slot, request in self.occupant.items() if request.index == index), None)
        if slot is not None:
            self.state.live[slot] = self.state.needs_commit[slot] = False
            del self.occupant[slot]

    def compact(self) -> None:
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
            if isinstance(self.cache, RoutingCache):
                self.cache.move(tail, holes)
            for old, new in zip(tail, holes, strict=True):
                self.occupant[new], self.resident[new] = self.occupant.pop(old), self.resident[old]
        self.width = len(self.occupant)
