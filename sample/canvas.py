"""Denoising of canvases (DiffusionGemma): blocks of random tokens that are decided whole.

The rule is that of transformers' `DiffusionGemmaForBlockDiffusion.generate`, which gets the same tokens from the same
noise. A step draws a token for every position of the canvas from the tempered logits, keeps those of the lowest
entropies while the sum of the lower ones is within `entropy_bound` (Ben-Hamu et al. 2025, arXiv:2505.24857), and puts
random tokens in place of all others. The tempered logits condition the next step. The canvas ends after
`steps_per_block` steps, or once its likeliest tokens have stood for `stable_steps` steps with a mean entropy below
`settled_entropy`; these tokens are then what it says, and the next canvas begins.

Shapes: n sequences at work, m of them whose canvas is not done, c tokens of a canvas, L tokens before it, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from models.canvas import CanvasLM, rows_of
from sample.config import SamplingConfig
from sample.draw import Drawing, Drawings, Mix, draw, filtered_each
from sample.drawing import positions_at_once
from sample.request import Request
from sample.targets import Coordinates
from sample.unmask import TOKEN_STREAM

NOISE_STREAM = 1


class Noise:
    """Where random numbers come from: a hash of key, position and step, in which the steps of canvas i begin at i times
    `steps_per_block`."""

    def ids(self, at: Coordinates, vocab_size: int) -> Tensor:
        """Tokens [n, c], each as likely as any other, that stand there before the step."""
        return (at.uniform(NOISE_STREAM) * vocab_size).long()

    def tokens(self, weight_NV: Tensor, at: Coordinates) -> Tensor:
        """A token [N] from each row of unnormalised weights."""
        return draw(weight_NV, at.uniform(TOKEN_STREAM))


@dataclass
class Row:
    """A sequence at work. ids, step_map, logprobs: of its finished canvases, as `Rollout` has them. removed: nobody
    waits for it."""

    request: Request
    key: int
    drawing: Drawing
    ids: list[int] = field(default_factory=list)
    step_map: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_steps: int = 0
    removed: bool = False

    @property
    def tokens(self) -> int:
        return len(self.request.prompt_ids) + len(self.ids)


@dataclass
class Canvas:
    """The canvases of all sequences at work, of which `step` steps are taken.

    Of all [n, c]: ids, what the next step reads; said, the likeliest tokens; since, the step (of this canvas, from 1)
    from which on each was that; logp, its log-probability then; stood [n], steps in a row after which nothing said had
    changed; steps [n], taken. Of those in `live` [m]: drawings (a list), key, position [m, c], first [m], the number of
    the canvas's first step; seen [m, L + c], bool, and the masks made of it; cache; the temperature is `cold` [m] plus
    the share of steps left times `fall` [m]; conditioning [m, c, V], the tempered logits of the last step, None before
    the first.
    """

    ids: Tensor
    said: Tensor
    since: Tensor
    logp: Tensor
    stood: Tensor
    steps: Tensor
    live: Tensor
    drawings: list[Drawing]
    key: Tensor
    position: Tensor
    first: Tensor
    fall: Tensor
    cold: Tensor
    seen: Tensor
    masks: dict[str, Tensor | None]
    cache: DynamicCache
    conditioning: Tensor | None = None
    step: int = 0

    @property
    def done(self) -> bool:
        return len(self.live) == 0

    def at(self, step: int) -> Coordinates:
        """Of the random numbers of the live rows [m, c] in this step."""
        shape = self.position.shape
        return Coordinates(self.key[:, None].expand(shape), self.position, (self.first + step)[:, None].expand(shape))


@dataclass
class Choice:
    """What a step makes of some rows: a token for every position, whether it is kept, the likeliest one and its
    log-probability (temperature 1, whole vocabulary), the tempered logits, and their mean entropy [m]."""

    token: Tensor
    kept: Tensor
    said: Tensor
    logp: Tensor
    tempered: Tensor
    entropy: Tensor


class CanvasDenoiser:
    """Steps under one config (after `for_model`)."""

    def __init__(self, model: CanvasLM, config: SamplingConfig, noise: Noise | None = None):
        assert isinstance(config.steps_per_block, int)
        self.model, self.config, self.noise = model, config, noise or Noise()
        self.c, self.steps = model.block_size, config.steps_per_block
        self.vocab_size = int(model.hf_config.vocab_size)

    def begin(self, rows: Sequence[Row], cache: DynamicCache, real_nL: Tensor) -> Canvas:
        """Canvases of noise behind what the cache holds. real: False for padding in it."""
        device, n = self.model.device, len(rows)
        position = torch.tensor([row.tokens for row in rows], device=device)[:, None] + torch.arange(
            self.c, device=device
        )
        seen = torch.cat([real_nL, real_nL.new_ones(n, self.c)], 1)
        temperatures = [self._temperatures(row.drawing) for row in rows]
        fall, cold = (torch.tensor(column, device=device) for column in zip(*temperatures, strict=True))
        zeros = torch.zeros_like(position)
        canvas = Canvas(
            ids=zeros,
            said=zeros - 1,
            since=zeros.clone(),
            logp=zeros.float(),
            stood=zeros[:, 0].clone(),
            steps=zeros[:, 0].clone(),
            live=torch.arange(n, device=device),
            drawings=[row.drawing for row in rows],
            key=torch.tensor([row.key for row in rows], device=device),
            position=position,
            first=torch.tensor([len(row.ids) // self.c * self.steps for row in rows], device=device),
            fall=fall,
            cold=cold,
            seen=seen,
            masks={},
            cache=cache,
        )
        canvas.ids = self.noise.ids(canvas.at(0), self.vocab_size)
        canvas.masks = self.model.masks(canvas.ids, seen, cache)
        return canvas

    def _temperatures(self, drawing: Drawing) -> tuple[float, float]:
        """By how much it falls, and to what. A request's own temperature scales both. A greedy row's
        entropies and conditioning are those of temperature 1."""
        if drawing.greedy:
            return 0.0, 1.0
        cold = drawing.temperature
        if self.config.final_temperature is not None and self.config.temperature:
            cold = self.config.final_temperature * (drawing.temperature / self.config.temperature)
        return drawing.temperature - cold, cold

    def step(self, canvas: Canvas) -> None:
        """One step of all rows that are not done."""
        live = canvas.live
        hidden_mcD = self.model.denoise(
            canvas.ids[live], canvas.conditioning, canvas.masks, canvas.position, canvas.cache
        )
        at = canvas.at(canvas.step)
        size = max(1, positions_at_once(self.vocab_size) // self.c)
        pieces = [
            self._choose(hidden_mcD[i : i + size], canvas, at, slice(i, i + size)) for i in range(0, len(live), size)
        ]
        names = ("token", "kept", "said", "logp", "tempered", "entropy")
        token, kept, said, logp, tempered, entropy = (torch.cat([getattr(p, name) for p in pieces]) for name in names)
        canvas.step += 1
        changed = said != canvas.said[live]
        canvas.since[live] = torch.where(changed, canvas.step, canvas.since[live])
        canvas.logp[live] = torch.where(changed, logp, canvas.logp[live])
        canvas.stood[live] = torch.where(changed.any(-1), 0, canvas.stood[live] + 1)
        canvas.said[live], canvas.steps[live], canvas.conditioning = said, canvas.step, tempered
        canvas.ids[live] = torch.where(kept, token, self.noise.ids(canvas.at(canvas.step), self.vocab_size))
        settled = (canvas.stood[live] >= self.config.stable_steps) & (entropy < self.config.settled_entropy)
        self._leave(canvas, settled | (canvas.step == self.steps))

    def _choose(self, hidden_mcD: Tensor, canvas: Canvas, at: Coordinates, piece: slice) -> Choice:
        logits = self.model.capped_logits(hidden_mcD)
        left = torch.tensor(self.steps - canvas.step, dtype=torch.int32, device=logits.device) / self.steps
        temperature = canvas.cold[piece] + canvas.fall[piece] * left
        tempered = logits / temperature[:, None, None]
        normalised = tempered - tempered.logsumexp(-1, keepdim=True)
        weights = normalised.softmax(-1)
        entropy = -(normalised * weights).sum(-1)
        said = tempered.argmax(-1)
        logp = logits.gather(-1, said[..., None])[..., 0] - logits.logsumexp(-1)
        ordered, order = entropy.sort(-1)
        within = ordered.cumsum(-1) - ordered <= self.config.entropy_bound
        kept = torch.zeros_like(within).scatter(-1, order, within)
        token = self._tokens(tempered, said, Coordinates(*(each[piece] for each in at)), canvas.drawings[piece])
        return Choice(token, kept, said, logp, tempered.to(self.model.dtype), entropy.mean(-1))

    def _tokens(self, tempered: Tensor, said: Tensor, at: Coordinates, drawings: Sequence[Drawing]) -> Tensor:
        """Tokens [m, c], each row's by its own drawing."""
        if all(drawing.greedy for drawing in drawings):
            return said
        logits_NV = tempered.flatten(0, 1)
        if any(drawing.top_k or drawing.top_p < 1.0 for drawing in drawings):
            top_k, top_p = (
                torch.tensor([getattr(d, name) for d in drawings], device=said.device).repeat_interleave(self.c)
                for name in ("top_k", "top_p")
            )
            ones = torch.ones_like(top_p)
            logits_NV = filtered_each(logits_NV, Drawings(Mix(True, True), ones, top_k, top_p))
        weights_NV = logits_NV.softmax(-1)
        token = self.noise.tokens(weights_NV, Coordinates(*(each.flatten() for each in at))).view_as(said)
        greedy = torch.tensor([drawing.greedy for drawing in drawings], device=said.device)
        return torch.where(greedy[:, None], said, token)

    def _leave(self, canvas: Canvas, done_m: Tensor) -> None:
        """Takes the rows that are done out of the steps to come."""
        if not bool(done_m.any()):
            return
        stay = (~done_m).nonzero()[:, 0]
        canvas.drawings = [canvas.drawings[i] for i in stay.tolist()]
        for name in ("live", "key", "position", "first", "fall", "cold", "seen", "conditioning"):
            setattr(canvas, name, getattr(canvas, name)[stay])
        if len(stay):
            canvas.cache = rows_of(canvas.cache, stay)
            canvas.masks = self.model.masks(canvas.ids[canvas.live], canvas.seen, canvas.cache)
