"""One denoising step's proposals: which token each masked position would get, how sure it is, and by which score it is
ranked; and how the steps of a block share its positions.

Shapes: N positions that need a candidate, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sample.choices import Choices
from sample.draw import CHUNK, Drawing, Drawings, argmax, draw, filtered, filtered_each
from sample.strategies import Proposal, Strategy
from sample.targets import ORDER_STREAM, Candidates, Coordinates, Target

TOKEN_STREAM = 0


@dataclass(frozen=True)
class Rules:
    """What a denoising step goes by: the choices, and the strategy and target that they name."""

    choices: Choices
    strategy: Strategy
    target: Target

    @property
    def needs_entropy(self) -> bool:
        return self.strategy.needs_entropy or self.target.needs_entropy

    @property
    def needs_confidence(self) -> bool:
        """Whether a threshold is compared with something else than the score."""
        return (self.strategy.by_threshold or self.choices.edit_threshold is not None) and not self.target.bounded

    @property
    def filters(self) -> bool:
        """Whether tokens are drawn from another distribution than the model's."""
        return Drawing(self.choices.temperature, self.choices.top_k, self.choices.top_p).filters


def schedule(positions: int, steps: int) -> list[int]:
    """How many positions each of `steps` steps commits: an even share, the first steps one more (the remainder
    first)."""
    share, rest = divmod(positions, steps)
    return [share + (i < rest) for i in range(steps)]


def timestep_schedule(positions: int, steps: int) -> list[int]:
    """Dream's: the first step decides one position; step i of the others, with m left, floor(m (1 - t[i + 1] / t[i])),
    t = linspace(1, 0.001, steps + 1) in fp32; the last step all that are left.

    Steps that would decide none are left out, since they would change nothing. One step of several positions is two.
    https://github.com/DreamLM/Dream (generation_utils)
    """
    time = torch.linspace(1.0, 1e-3, steps + 1)
    plan, left = [1], positions - 1
    for i in range(1, steps - 1):
        plan.append(int(left * (1 - time[i + 1] / time[i])))
        left -= plan[-1]
    return [k for k in (*plan, left) if k > 0]


def cosine_schedule(positions: int, steps: int) -> list[int]:
    """MaskGIT's (arXiv:2202.04200) as MMaDA counts it: after step s of T, min(m - 1, floor(positions cos(pi/2 s/T))) of
    the m masked ones stay masked, at least one, in fp32; the last step decides what is left. Steps that would decide
    none are left out.
    """
    plan, left = [], positions
    for step in range(1, steps):
        share = torch.cos(torch.tensor(step / steps) * math.pi * 0.5)
        after = max(1, min(left - 1, int((positions * share).floor())))
        plan.append(left - after)
        left = after
    return [k for k in (*plan, left) if k > 0]


SCHEDULES: dict[str, Callable[[int, int], list[int]]] = {"even": schedule, "timesteps": timestep_schedule}


def propose(
    logits_NV: Tensor,
    coordinates: Coordinates,
    rules: Rules,
    mask_id: int | None,
    text_vocab_size: int | None = None,
    drawings: Drawings | None = None,
    standing_N: Tensor | None = None,
    never: Sequence[int] = (),
) -> Proposal:
    """A candidate for each position. The mask id (None: it is not among these), those of `never` and ids from
    text_vocab_size on but DELETE and INSERT, where edits choose them, are never drawn but stay in the softmax of
    `logp`.

    logits_NV is float32 and is overwritten. drawings: how each position draws its token; None = all as the choices say.
    standing_N: the ids that stand there, for `Proposal.held`.
    """
    choices, strategy, target = rules.choices, rules.strategy, rules.target
    weight_NV = logits_NV.softmax(-1)
    lse = logits_NV.amax(-1) - weight_NV.amax(-1).log()
    held = None if standing_N is None else (_at(logits_NV, standing_N) - lse).exp()
    entropy = lse - (weight_NV * logits_NV).sum(-1) if rules.needs_entropy else None
    margin = _margin(weight_NV) if target.needs_margin else None
    moves = choices.delete_insert_ids
    forbidden = (*never, *(() if mask_id is None else (mask_id,)))
    _forbid(logits_NV, forbidden, text_vocab_size, -math.inf, moves or ())
    if drawings is not None or not (choices.greedy or rules.filters):
        _forbid(weight_NV, forbidden, text_vocab_size, 0.0, moves or ())
    token, drawn_NV = _drawn(logits_NV, weight_NV, coordinates, rules, drawings)
    logp = _at(logits_NV, token) - lse
    confidence = logp.exp()
    if drawn_NV is not None and choices.confidence == "tempered":
        tempered = (_at(drawn_NV, token).log() - drawn_NV.sum(-1).log()).exp()
        confidence = tempered if drawings is None else torch.where(drawings.greedy, confidence, tempered)
    score = target.score(Candidates(token, logp, confidence, entropy, margin, coordinates))
    compared = confidence if rules.needs_confidence else None
    if choices.pad_target_penalty != 1.0 and choices.pad_id is not None:
        is_pad = token == choices.pad_id
        score = _penalised(score, is_pad, choices.pad_target_penalty)
        compared = None if compared is None else _penalised(compared, is_pad, choices.pad_target_penalty)
    if choices.alg_temp > 0.0 and strategy.draws_order:
        uniform = coordinates.uniform(ORDER_STREAM).clamp_min(2.0**-53)
        score = score / choices.alg_temp - (-uniform.log()).log().float()
    proposal = Proposal(token, logp, score, entropy, compared, held)
    if moves is None:
        return proposal
    second = _second(logits_NV, token, rules, drawings)
    second_logp = _at(logits_NV, second) - lse
    for value_NV, fill in ((logits_NV, -math.inf), (weight_NV, 0.0)):
        _forbid(value_NV, moves, None, fill)
    text, _ = _drawn(logits_NV, weight_NV, coordinates, rules, drawings)
    text_logp = _at(logits_NV, text) - lse
    return proposal._replace(text=text, text_logp=text_logp, second=second, second_logp=second_logp)


def _second(logits_NV: Tensor, token_N: Tensor, rules: Rules, drawings: Drawings | None) -> Tensor:
    """The likeliest token after a greedy one; of one that was drawn, itself."""
    if drawings is None and not rules.choices.greedy:
        return token_N
    second_N = argmax(logits_NV.scatter(1, token_N[:, None], -math.inf))
    return second_N if drawings is None else torch.where(drawings.greedy, second_N, token_N)


def _drawn(
    logits_NV: Tensor, weight_NV: Tensor, coordinates: Coordinates, rules: Rules, drawings: Drawings | None
) -> tuple[Tensor, Tensor | None]:
    """Tokens [N], and the weights that they were drawn from, None where all are greedy. weight_NV: the model's
    distribution, where it is drawn from without the ids that are never drawn."""
    choices = rules.choices
    if choices.greedy if drawings is None else not drawings.mix.draws:
        return argmax(logits_NV), None
    if drawings is None and rules.filters:
        weight_NV = filtered(logits_NV, choices.temperature, choices.top_k, choices.top_p).softmax(-1)
    elif drawings is not None and drawings.mix.filters:
        filtered_NV = filtered_each(logits_NV, drawings).softmax(-1)
        weight_NV = torch.where(drawings.filters[:, None], filtered_NV, weight_NV)
    token = draw(weight_NV, coordinates.uniform(TOKEN_STREAM))
    return (token if drawings is None else torch.where(drawings.greedy, argmax(logits_NV), token)), weight_NV


def choice_bytes(rules: Rules, positions: float, vocab_size: int) -> float:
    """The most that `propose` holds for so many positions: logits, their softmax, and what filters make of them."""
    choices, fp32, fp64 = rules.choices, 4, 8
    held = 2 * fp32
    if rules.filters:
        held = 4 * fp32 + 1
        if choices.top_p < 1.0 and not choices.top_k:
            held = (7 if choices.temperature != 1.0 else 6) * fp32
    elif vocab_size % CHUNK or rules.needs_entropy:
        held = 3 * fp32
    drawing = 0 if choices.greedy else CHUNK * (fp32 + 2 * fp64)
    weights = (3 if vocab_size % CHUNK else 2) * fp32
    return positions * max(vocab_size * held, vocab_size * weights + drawing)


def _margin(weight_NV: Tensor) -> Tensor:
    two = weight_NV.topk(2, dim=-1).values
    return two[:, 0] - two[:, 1]


def _penalised(score_N: Tensor, is_pad_N: Tensor, penalty: float) -> Tensor:
    return torch.where(is_pad_N, torch.where(score_N < 0, score_N * penalty, score_N / penalty), score_N)


def _forbid(
    value_NV: Tensor, ids: Sequence[int], text_vocab_size: int | None, fill: float, but: Sequence[int] = ()
) -> None:
    """Fills the columns of these ids and of those from text_vocab_size on, but for some."""
    kept = [value_NV[:, i].clone() for i in but]
    for i in ids:
        value_NV[:, i] = fill
    if text_vocab_size is not None:
        value_NV[:, text_vocab_size:] = fill
    for i, column_N in zip(but, kept, strict=True):
        value_NV[:, i] = column_N


def _at(value_NV: Tensor, token_N: Tensor) -> Tensor:
    return value_NV.gather(-1, token_N[:, None])[:, 0]
