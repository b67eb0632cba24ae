"""Decoding prompts with a model in the same process. One sampler for every family."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models import DiffusionLM, Prompt
from models.compiled import suits
from models.fused import compile_layers
from models.model import NO_MASK
from models.spec import whole_blocks
from sample.config import SamplingConfig
from sample.denoiser import Denoiser
from sample.generation import Generation, Queue, Slots
from sample.graphs import Capture, Steps, capture_of
from sample.request import requests_of
from sample.revision import event_room
from sample.rollout import Key, Rollout
from sample.routing import RoutingCache
from sample.session import Session
from sample.slots import SlotKV, StepState, rounded_capacity
from sample.spans import CACHES, CachePolicy, cache_policy
from sample.texts import Chat, token_ids

_CUDA_STEPS_BETWEEN_POLLS = 8


@dataclass(frozen=True)
class _Held:
    """Slots that outlive a call: tensors at fixed addresses, what computes in them, the steps captured over them."""

    kv: SlotKV | None
    state: StepState
    cache: CachePolicy
    steps: Steps

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and capacity in tokens."""
        slots, capacity_tokens = self.state.ids.shape
        return slots, capacity_tokens


class Sampler:
    """Decodes prompts with a model in the same process.

    The response to a prompt is a pure function of weights, config, prompt and key: batch mates, order of arrival and
    number of slots do not enter (on one device; across devices and types up to rounding).
    steps_between_polls: steps that run before the host looks which slots have ended. Polling tightens the next step's
    shapes; on a GPU it costs a synchronisation. capture: how steps are captured, None = they are not. keeps_slots:
    whoever shares the device leaves the slots and what was captured over them there between calls. forgets_pictures:
    features of pictures are freed when their last sample ends; they are computed again where they are wanted again.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig | None = None):
        if model.mask_id == NO_MASK:
            raise ValueError(f"a {model.family} model has no masks to decode: make its sampler with sample.sampler_of.")
        self.model = model
        self.config = (config or SamplingConfig()).for_model(model)
        self.weights_version = 0
        self.steps_between_polls = _CUDA_STEPS_BETWEEN_POLLS if model.device.type == "cuda" else 1
        self._parameters = dict(model.named_parameters())
        self._denoiser = Denoiser(model, self.config)
        if suits(model.device):
            compile_layers(model)
        self.capture: Capture | None = capture_of(model.device) if self.config.graphs == "auto" else None
        self.keeps_slots = self.forgets_pictures = False
        self._reserved = (0, 0)
        self._held: _Held | None = None

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies new weights in place, by the names of `model.named_parameters()`; shared storage costs nothing. They
        are whole ones, of which a rank of a team takes its part.

        ValueError on an unknown name or another shape.
        """
        for name, tensor in named_tensors:
            own = self._parameters.get(name)
            if self.model.parallel is not None:
                tensor = self.model.parallel.share(name, tensor)
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
        prompts: Sequence[Sequence[int] | str | Chat | Prompt],
        n: int = 1,
        keys: Sequence[Key] | None = None,
        progress: Callable[[int], None] | None = None,
        take: Callable[[], Sequence[int]] | None = None,
        limit: int | None = None,
    ) -> list[Rollout]:
        """Responses to each prompt (token ids, a text, a chat: [{"role": ..., "content": ...}, ...], or a `Prompt` with
        pictures), n a prompt, prompt-major.

        keys: one name a sample (tuples of ints and strings); default (hash of the prompt's ids and pictures, index in
        the group).
        progress is called with the number of newly finished responses, 0 included. take: called, whenever there is
        room, for which samples (places, prompt-major) to decode next; none = no more. Only these are decoded, at most
        `limit` at a time. ValueError: empty prompt, mask id in a prompt, prompt and response longer than the model's
        positions, wrong number of keys.
        """
        read = [token_ids(prompt, self.model) for prompt in prompts]
        requests = requests_of(read, n, keys, self.model, self.config, len(self._denoiser.suffix_ids))
        if not requests:
            return []
        limit = limit or len(requests)
        count = self.config.max_slots if self.config.deterministic else min(self.config.max_slots, limit)
        slots = self._slots(count, self._capacity(max(len(r.prompt_ids) for r in requests)))
        with _eval_mode(self.model):
            generation = Generation(
                Queue(requests, take), slots, self._denoiser, limit, self.steps_between_polls, self.weights_version
            )
            generation.pictures.forgets = self.forgets_pictures
            return generation.run(progress or (lambda finished: None))

    @torch.inference_mode()
    def session(self, sequence_tokens: int) -> Session:
        """Decoding that is fed and polled, of prompts and responses that have so many tokens together at most. Until it
        is done with, `generate` must not be called: the two share the slots.

        ValueError where the model has fewer positions, or the config decodes beyond a stop id.
        """
        self.check_session(sequence_tokens)
        config = self.config
        slots = self._slots(config.max_slots, sequence_tokens + self._denoiser.b - 1)
        self.model.eval()
        generation = Generation(
            Queue(), slots, self._denoiser, config.max_slots, self.steps_between_polls, self.weights_version
        )
        return Session(generation, sequence_tokens)

    def check_session(self, sequence_tokens: int) -> None:
        """ValueError as of `session`."""
        positions = int(self.model.hf_config.max_position_embeddings)
        if not 2 <= sequence_tokens <= positions:
            raise ValueError(f"sequences of {sequence_tokens} tokens: the model has {positions} positions.")
        if not self.config.early_stop:
            raise ValueError("early_stop=False: a session hands tokens out as they are final, and ends at a stop id.")

    def keep_slots(self, slots: int, prompt_tokens: int) -> None:
        """Slots are made for so many sequences with prompts of so many tokens, so that calls up to that share them (not
        in deterministic mode, where every call has its own size), and stay between calls."""
        self.keeps_slots, self._reserved = True, (slots, self._capacity(prompt_tokens))

    def release(self) -> None:
        """Frees the memory of the slots and of captured steps; the next `generate` takes it again."""
        self._held = None

    @property
    def captured_keys(self) -> int:
        """Shapes of which a step is captured now."""
        return len(self._held.steps.keys) if self._held is not None else 0

    def _capacity(self, prompt_tokens: int) -> int:
        return prompt_tokens + self.config.max_new_tokens + self._denoiser.b - 1 + len(self._denoiser.suffix_ids)

    def _slots(self, count: int, capacity_tokens: int) -> Slots:
        """Slots for a call of `generate`: those of the call before where they are large enough (in deterministic mode:
        equal). No step sees part of what the model can only run together."""
        together = whole_blocks(self.model.spec)
        capacity_tokens = -(-capacity_tokens // together) * together
        held, need = self._held, (count, rounded_capacity(capacity_tokens))
        have = held.shape if held is not None else (0, 0)
        fits = have == need if self.config.deterministic else have[0] >= need[0] and have[1] >= need[1]
        if held is None or not fits:
            self._held = held = None  # before the new ones are made
            if not self.config.deterministic:
                need = (max(need[0], self._reserved[0]), max(need[1], self._reserved[1]))
            held = self._held = self._new_slots(*need)
        held.state.live.zero_()
        if self.model.device.type != "cpu":  # whole blocks of keys suit its kernels; on a CPU they are work for nothing
            capacity_tokens = held.shape[1] // together * together
        return Slots(count, capacity_tokens, held.cache, held.kv, held.state, held.steps)

    def _new_slots(self, slots: int, capacity_tokens: int) -> _Held:
        model, config = self.model, self.config
        keeps_keys = CACHES[config.cache].keeps_keys
        kv = SlotKV(model.hf_config, slots, capacity_tokens, model.dtype, model.device) if keeps_keys else None
        room = event_room(config, self._denoiser.b, config.max_new_tokens)
        state = StepState.empty(slots, capacity_tokens, model.mask_id, model.device, room)
        cache = cache_policy(model, config, kv)
        if config.record_routing:
            assert kv is not None
            cache = RoutingCache(model, config, kv)
        return _Held(kv, state, cache, Steps(self._denoiser, cache, self.capture))


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
