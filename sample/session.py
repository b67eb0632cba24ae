"""Decoding that is fed and polled: requests come while others are decoded, each with its own length, seed and way to
draw tokens, and blocks are handed out as soon as they are final."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models import Prompt
from sample.draw import Drawing
from sample.generation import Generation
from sample.request import Request, check_prompt, prompt_key
from sample.rollout import Rollout


class TooLong(ValueError):
    """A prompt and an answer that a session has no room for."""


@dataclass(frozen=True)
class Update:
    """What has become final of a response since its last update: token ids, the steps that decided them, their
    log-probabilities (as in `Rollout`). rollout: all of it, with the last update; else None."""

    index: int
    ids: list[int]
    step_map: list[int]
    logprobs: list[float]
    rollout: Rollout | None = None


class Session:
    """Made by `Sampler.session`; one thread feeds and polls it. Requests wait in their order for a free slot.

    A response depends on its own request alone, not on what else is decoded (bit for bit in deterministic mode, else up
    to the rounding of shapes), and equals that of `Sampler.generate` under a config with its settings.
    """

    def __init__(self, generation: Generation, sequence_tokens: int):
        self._generation, self.sequence_tokens = generation, sequence_tokens
        self._indices = 0
        self._handed: dict[int, int] = {}

    def add(
        self,
        prompt: Sequence[int] | Prompt,
        n: int = 1,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        drawing: Drawing | None = None,
    ) -> list[int]:
        """Asks for n responses to a prompt; returns their indices, by which updates name them. What is None is the
        config's. ValueError as of `check`."""
        config = self._generation.config
        most = config.max_new_tokens if max_new_tokens is None else max_new_tokens
        self.check(prompt.ids if isinstance(prompt, Prompt) else prompt, most)
        own = drawing or Drawing(config.temperature, config.top_k, config.top_p)
        prompt = Prompt.of(prompt)
        digest, first = prompt_key(prompt), self._indices
        self._indices += n
        for member in range(n):
            key, hashed = (digest, member), config.seed if seed is None else seed
            self._handed[first + member] = 0
            self._generation.queue.add(Request(first + member, first, prompt, key, most, hashed, own))
        return list(range(first, first + n))

    def check(self, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        """ValueError: a prompt that `generate` refuses; `TooLong`: prompt and response longer than the session's
        sequences, or a response longer than the config's. Any thread may ask."""
        most_new, most = self._generation.config.max_new_tokens, self.sequence_tokens
        if not 1 <= max_new_tokens <= most_new or len(prompt_ids) + max_new_tokens > most:
            raise TooLong(
                f"a prompt of {len(prompt_ids)} tokens and an answer of up to {max_new_tokens}: at most {most_new} "
                f"tokens of an answer, {most} in all."
            )
        check_prompt(prompt_ids, "the prompt", self._generation.model, max_new_tokens)

    @torch.inference_mode()
    def cancel(self, index: int) -> None:
        """Forgets a request; its slot is free for another. One that has ended is none any more."""
        if self._handed.pop(index, None) is not None:
            self._generation.remove(index)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._generation.queue)

    @property
    def running(self) -> int:
        """Requests in slots."""
        return len(self._generation.occupant)

    @torch.inference_mode()
    def poll(self) -> list[Update]:
        """Gives free slots to waiting requests, runs a few steps, and returns what has become final in them; nothing
        where there is no request."""
        generation = self._generation
        generation.admit()
        generation.compact()
        if not generation.occupant:
            return []
        generation.turn()
        updates = [self._last(rollout, index) for index, rollout in generation.rollouts.items()]
        generation.rollouts.clear()
        return updates + self._committed()

    @torch.inference_mode()
    def canvas(self, index: int) -> tuple[list[int], list[int]]:
        """Ids and steps of all that a request in a slot has after its prompt, mask ids and 0 where nothing is decided;
        empty where it has no slot."""
        generation = self._generation
        for slot, request in generation.occupant.items():
            if request.index == index:
                P = len(request.prompt_ids)
                ids, steps = (getattr(generation.state, name)[slot] for name in ("ids", "step_map"))
                end = P + request.max_new_tokens
                return ids[P:end].tolist(), steps[P:end].tolist()
        return [], []

    def _last(self, rollout: Rollout, index: int) -> Update:
        handed = self._handed.pop(index)
        new = slice(handed, None)
        return Update(index, rollout.token_ids[new], rollout.step_map[new], rollout.logprobs[new], rollout)

    def _committed(self) -> list[Update]:
        """Of blocks that were decided since the last poll, in slots that go on: no step changes them."""
        state, updates = self._generation.state, []
        starts = state.start.tolist()
        for slot, request in self._generation.occupant.items():
            P, handed = len(request.prompt_ids), self._handed[request.index]
            new = slice(P + handed, starts[slot])
            if new.stop > new.start:
                ids, steps, logp = (getattr(state, name)[slot, new].tolist() for name in ("ids", "step_map", "logp"))
                updates.append(Update(request.index, ids, steps, logp))
                self._handed[request.index] = starts[slot] - P
        return updates
