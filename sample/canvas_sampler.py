"""CanvasSampler: what `Sampler` is for masked tokens, for canvases (DiffusionGemma). Sequences come and go where all of
those at work have ended a canvas.

Prompts of unequal lengths are padded on the left, here alone: transformers' cache, which holds the keys and values,
appends a canvas at one place in all rows. Padding is masked, and positions count real tokens alone.

Shapes: n sequences at work, c tokens of a canvas, L tokens before it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from models import DiffusionLM, Prompt
from models.canvas import CanvasLM, rows_of, side_by_side, without_padding
from sample.canvas import Canvas, CanvasDenoiser, Noise, Row
from sample.config import SamplingConfig
from sample.draw import Drawing
from sample.generation import Queue
from sample.request import Request, hash_key, requests_of
from sample.rollout import Key, Rollout
from sample.sampler import Sampler
from sample.session import Session, Update
from sample.texts import Chat, token_ids


class CanvasGeneration:
    """The queue, the sequences at work, and the finished rollouts: `Generation` for canvases. seats: sequences at work
    at a time."""

    def __init__(self, queue: Queue, denoiser: CanvasDenoiser, seats: int, weights_version: int):
        self.queue, self.denoiser, self.seats, self.weights_version = queue, denoiser, seats, weights_version
        self.model, self.config = denoiser.model, denoiser.config
        self.rollouts: dict[int, Rollout] = {}
        self.rows: list[Row] = []
        self.cache: DynamicCache | None = None
        self.real = torch.zeros(0, 0, dtype=torch.bool, device=self.model.device)
        self.canvas: Canvas | None = None

    @property
    def occupant(self) -> dict[int, Request]:
        """Requests at work that somebody waits for, by their index."""
        return {row.request.index: row.request for row in self.rows if not row.removed}

    def run(self, progress: Callable[[int], None]) -> list[Rollout]:
        """The rollouts of all requests that were taken, in the order of their index."""
        self.admit()
        while self.occupant:
            progress(self.turn())
            self.admit()
        return [self.rollouts[index] for index in sorted(self.rollouts)]

    def admit(self) -> None:
        """Takes in requests where no canvas is at work."""
        if not self.occupant:
            self.rows, self.canvas = [], None
        if self.canvas is not None:
            return
        fresh: list[Row] = []
        while len(self.rows) + len(fresh) < self.seats and (request := self.queue.next()) is not None:
            drawing = request.drawing or Drawing(self.config.temperature, self.config.top_k, self.config.top_p)
            fresh.append(Row(request, hash_key(request.key, request.seed), drawing))
        if fresh:
            self._join(fresh, *self._prefilled([row.request.prompt_ids for row in fresh]))

    def compact(self) -> None:
        """Nothing: `admit` leaves no holes."""

    def turn(self) -> int:
        """One step of all sequences at work; how many have ended."""
        if self.canvas is None:
            assert self.cache is not None
            self.canvas = self.denoiser.begin(self.rows, self.cache, self.real)
        self.denoiser.step(self.canvas)
        return self._finish(self.canvas) if self.canvas.done else 0

    def remove(self, index: int) -> None:
        """Ends a request wherever it is, without a rollout."""
        self.queue.remove(index)
        for row in self.rows:
            row.removed |= row.request.index == index

    def _prefilled(self, prompts: Sequence[list[int]]) -> tuple[DynamicCache, Tensor]:
        """A cache of the prompts, equal ones computed once, padded on the left; bool [n, L]: what is no padding."""
        own = list(dict.fromkeys(map(tuple, prompts)))
        width, device = max(map(len, own)), self.model.device
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in own], device=device)
        real = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in own], device=device)
        cache = self.model.new_cache()
        self.model.encode(ids, real, (real.cumsum(1) - 1).clamp_min(0), cache)
        places = torch.tensor([own.index(tuple(prompt)) for prompt in prompts], device=device)
        return (cache if len(own) == len(prompts) else rows_of(cache, places)), real[places]

    def _join(self, fresh: list[Row], cache: DynamicCache, real: Tensor) -> None:
        if self.rows:
            assert self.cache is not None
            cache = side_by_side(self.cache, cache)
            width = max(self.real.shape[1], real.shape[1])
            real = torch.cat([F.pad(each, (width - each.shape[1], 0)) for each in (self.real, real)])
        self.rows, self.cache, self.real = [*self.rows, *fresh], cache, real

    def _finish(self, canvas: Canvas) -> int:
        """Reads the canvases, hands out the rollouts of sequences that have ended, and encodes the others'."""
        columns = (canvas.said, canvas.since, canvas.logp, canvas.steps)
        for row, ids, since, logp, steps in zip(self.rows, *(each.tolist() for each in columns), strict=True):
            row.ids += ids
            row.step_map += [row.num_steps + step for step in since]
            row.logprobs += logp
            row.num_steps += steps
        going = [i for i, row in enumerate(self.rows) if not row.removed and not self._has_ended(row)]
        ended = [row for i, row in enumerate(self.rows) if not row.removed and i not in going]
        for row in ended:
            self.rollouts[row.request.index] = self._rollout(row)
        if going:
            self._go_on(going, canvas.said)
        self.rows, self.canvas = [self.rows[i] for i in going], None
        return len(ended)

    def _go_on(self, going: list[int], said: Tensor) -> None:
        """The cache of these rows alone, without needless padding and with their newest canvas."""
        assert self.cache is not None
        index = torch.tensor(going, device=said.device)
        cache, real, said = rows_of(self.cache, index), self.real[index], said[index]
        if padding := int((~real.any(0)).sum()):
            cache, real = without_padding(cache, padding), real[:, padding:]
        start = real.sum(1, keepdim=True)
        real = torch.cat([real, real.new_ones(said.shape)], 1)
        self.model.encode(said, real, start + torch.arange(said.shape[1], device=said.device), cache)
        self.cache, self.real = cache, real

    def _stop(self, row: Row) -> int | None:
        """Place of the first stop id in the response, within its length."""
        stop_ids = self.config.stop_ids or ()
        return next((i for i, token in enumerate(row.ids[: row.request.max_new_tokens]) if token in stop_ids), None)

    def _has_ended(self, row: Row) -> bool:
        stopped = self.config.early_stop and self._stop(row) is not None
        return stopped or len(row.ids) >= row.request.max_new_tokens

    def _rollout(self, row: Row) -> Rollout:
        stop = self._stop(row)
        return Rollout(
            key=row.request.key,
            prompt_ids=list(row.request.prompt_ids),
            canvas_ids=row.ids,
            canvas_step_map=row.step_map,
            canvas_logprobs=row.logprobs,
            num_response_tokens=row.request.max_new_tokens if stop is None else stop + 1,
            finish_reason="length" if stop is None else "stop",
            num_steps=row.num_steps,
            weights_version=self.weights_version,
        )


class CanvasSampler(Sampler):
    """Decodes prompts with a model of canvases in the same process, as `Sampler` does with one of masks.

    The response to a prompt depends on weights, config, prompt and key, up to the rounding of shapes, which
    self-conditioning may amplify from step to step until other tokens are drawn; in deterministic mode prompts are
    decoded one by one, and it has the same bits. Step maps and log-probabilities name the step from
    which on a token was the likeliest one of its place. noise: where random numbers come from.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig | None = None, noise: Noise | None = None):
        assert isinstance(model, CanvasLM)
        self.model = model
        self.config = (config or SamplingConfig()).for_model(model)
        self.weights_version, self.steps_between_polls = 0, 1
        self.capture = self._held = None
        self.keeps_slots = self.forgets_pictures = False
        self._parameters = dict(model.named_parameters())
        self._canvases = CanvasDenoiser(model, self.config, noise)

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
        read = [token_ids(prompt, self.model) for prompt in prompts]
        requests = requests_of(read, n, keys, self.model, self.config)
        if not requests:
            return []
        was_training = self.model.training
        self.model.eval()
        try:
            generation = self._generation(Queue(requests, take), limit or len(requests))
            return generation.run(progress or (lambda finished: None))
        finally:
            self.model.train(was_training)

    def session(self, sequence_tokens: int) -> Session:
        self.check_session(sequence_tokens)
        self.model.eval()
        return CanvasSession(self._generation(Queue(), self.config.max_slots), sequence_tokens)

    def _generation(self, queue: Queue, limit: int) -> CanvasGeneration:
        seats = 1 if self.config.deterministic else min(self.config.max_slots, limit)
        return CanvasGeneration(queue, self._canvases, seats, self.weights_version)


class CanvasSession(Session):
    """Decoding that is fed and polled: canvases are handed out when they are done."""

    _generation: CanvasGeneration  # type: ignore[assignment]

    def __init__(self, generation: CanvasGeneration, sequence_tokens: int):
        super().__init__(generation, sequence_tokens)  # type: ignore[arg-type]

    @torch.inference_mode()
    def canvas(self, index: int) -> tuple[list[int], list[int]]:
        """Ids and steps of all that a request at work has after its prompt; of the canvas at hand the likeliest tokens
        so far, each with the step since which it is that; -1 and 0 where no step was taken."""
        generation = self._generation
        for place, row in enumerate(generation.rows):
            if row.request.index == index and not row.removed:
                ids, steps = list(row.ids), list(row.step_map)
                if generation.canvas is not None:
                    ids += generation.canvas.said[place].tolist()
                    steps += [step and row.num_steps + step for step in generation.canvas.since[place].tolist()]
                end = row.request.max_new_tokens
                rest = max(0, end - len(ids))
                return [*ids[:end], *[-1] * rest], [*steps[:end], *[0] * rest]
        return [], []

    def _committed(self) -> list[Update]:
        updates = []
        for row in self._generation.rows:
            index = row.request.index
            if not row.removed and (handed := self._handed[index]) < len(row.ids):
                updates.append(Update(index, row.ids[handed:], row.step_map[handed:], row.logprobs[handed:]))
                self._handed[index] = len(row.ids)
        return updates


def sampler_of(model: DiffusionLM, config: SamplingConfig | None = None) -> Sampler:
    """The sampler that decodes a model of any family: a `Sampler`, or a `CanvasSampler` for canvases."""
    return CanvasSampler(model, config) if isinstance(model, CanvasLM) else Sampler(model, config)
