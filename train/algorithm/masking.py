"""Which positions of a response are masked and trained: one small function a training method.

Shapes: C canvas tokens, K noisy copies.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.schema import TrainingConfig
from sample.events import Events
from train.algorithm.steps import Ints, last_events, moments, shrink_steps

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NoisyCopy:
    """One noisy copy of unit `unit`. ids_C [C]: what it holds, outside its unit the canvas; target_C: the ids that its
    trained positions, trained_C, are to say. round: copies of one round would stand in one row of dLLM-RL. weight: of
    its tokens in the loss. causal: a position sees those left of it. event_C: number of the event that chose each
    target, None = the place's last one, or the place itself where the rollout has no events. step: the denoising step
    before which the unit stood so, None where it never did."""

    unit: int
    round: int
    ids_C: Ints
    target_C: Ints
    trained_C: Bools
    weight: float = 1.0
    causal: bool = False
    event_C: Ints | None = None
    step: int | None = None

    @property
    def chosen(self) -> Ints:
        """For each trained position the number of its event; of its place without events."""
        return np.flatnonzero(self.trained_C) if self.event_C is None else self.event_C[self.trained_C]


@dataclass(frozen=True)
class Canvas:
    """A response as the methods see it.

    ids_C: its tokens, the mask id where nothing was decided. step_C: denoising step that decided each position, 0 =
    never. trained_C: positions that may be trained. block_C: block of each position. unit_C: what one noisy copy holds:
    the block itself for block families, the whole canvas (0 everywhere) under full attention. events: the rollout's.
    """

    ids_C: Ints
    step_C: Ints
    trained_C: Bools
    block_C: Ints
    unit_C: Ints
    mask_id: int
    events: Events | None = None

    def masked(
        self, unit: int, round: int, masked_C: Bools, trained_C: Bools, weight: float = 1.0, causal: bool = False
    ) -> NoisyCopy:
        """A copy that holds the mask id at masked_C and the canvas elsewhere, and is to say the canvas."""
        ids_C = np.where(masked_C, self.mask_id, self.ids_C)
        return NoisyCopy(unit, round, ids_C, self.ids_C, trained_C, weight, causal)


Masking = Callable[[Canvas, TrainingConfig, np.random.Generator], list[NoisyCopy]]
"""(canvas, training section, random numbers of this response) -> its noisy copies."""


@dataclass(frozen=True)
class Method:
    """A training method: how it masks, and what the trainer must know about that.

    as_sampled: masks are those of the steps in step_C, one after another. RL takes the sampler's log-probabilities as
    the old ones then, SFT needs a step_map in its data. rl, sft: which command it serves. next_token: for models that
    predict the next token (Dream) alone. one_copy: under full attention mask_times_per_sample counts as 1. canvases:
    for models without masks (DiffusionGemma), where the mask id stands for a random token.
    """

    copies: Masking
    as_sampled: bool = False
    rl: bool = True
    sft: bool = True
    next_token: bool = False
    one_copy: bool = False
    canvases: bool = False

    def __call__(self, canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
        return self.copies(canvas, training, rng)


def trace(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """TraceRL (arXiv:2509.06949): each token is trained in the state that the sampler decided it from, once. Masked is
    what was decided at that (shrunk) step or later, or never. Of a rollout with events every choice is trained so, also
    one that was overwritten; under trained_events=last only those that stand."""
    if canvas.events is not None:
        return _edited(canvas, canvas.events, training)
    step_C = shrink_steps(canvas.step_C, canvas.unit_C, training.shrink)
    decided_C = np.where(step_C == 0, np.iinfo(np.int64).max, step_C)
    base = step_C.max() + 1
    unit_K, step_K = np.divmod(np.unique((canvas.unit_C * base + step_C)[step_C > 0]), base)
    inside_KC = canvas.unit_C == unit_K[:, None]
    masked_KC = inside_KC & (decided_C >= step_K[:, None])
    trained_KC = inside_KC & canvas.trained_C & (step_C == step_K[:, None])
    rank_K = np.arange(len(unit_K)) - np.searchsorted(unit_K, unit_K)
    copies = []
    for k in trained_KC.any(1).nonzero()[0]:
        copy = canvas.masked(int(unit_K[k]), int(rank_K[k]), masked_KC[k], trained_KC[k])
        first = canvas.step_C[inside_KC[k] & (step_C == step_K[k])].min()
        copies.append(replace(copy, step=int(first)))
    return copies


def _edited(canvas: Canvas, events: Events, training: TrainingConfig) -> list[NoisyCopy]:
    """A copy for each unit and (shrunk) step with a trained choice: the unit as it stood before, to say what was
    chosen. Of several choices at one place in merged steps the last is trained. ValueError where tokens move between
    merged steps."""
    if events.source is not None and training.shrink > 1:
        raise ValueError(
            f"training.shrink={training.shrink}: edits of a rollout delete and insert tokens, so that a place is "
            "another one in the next step. Set training.shrink=1."
        )
    action_E, last_C = np.array(events.action, dtype=np.int64), last_events(events, len(canvas.ids_C))
    copies = []
    for moment in moments(events, canvas.ids_C, canvas.unit_C, canvas.mask_id, training.shrink):
        trained_C = canvas.trained_C & (moment.event_C >= 0)
        if training.trained_events == "last":
            trained_C &= np.isin(moment.event_C, last_C)
        if trained_C.any():
            target_C = np.where(trained_C, action_E[moment.event_C], canvas.ids_C)
            given = moment.unit, moment.rank, moment.ids_C, target_C, trained_C
            copies.append(NoisyCopy(*given, event_C=moment.event_C, step=moment.step))
    return copies


def random_masking(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """mask_times_per_sample times: a level t from U(lower_p, upper_p), each trained position masked with probability t
    (LLaDA, arXiv:2502.09992), at least one. Positions that are not trained are masked in every copy."""
    copies = []
    for number in range(training.mask_times_per_sample):
        level = rng.uniform(training.lower_p, training.upper_p)
        chosen_C = _draw(canvas.trained_C, level, rng)
        copies += _copies(canvas, chosen_C, number, _weight(training, level))
    return copies


def coupled(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """Random masking in pairs of a mask and its complement, so that each pair trains every position once (coupled-GRPO,
    DiffuCoder, arXiv:2506.20639)."""
    copies = []
    for number in range(training.mask_times_per_sample):
        level = rng.uniform(training.lower_p, training.upper_p)
        chosen_C = _draw(canvas.trained_C, level, rng)
        copies += _copies(canvas, chosen_C, 2 * number, _weight(training, level))
        copies += _copies(canvas, canvas.trained_C & ~chosen_C, 2 * number + 1, _weight(training, 1.0 - level))
    return copies


def elbo(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """Monte-Carlo masks of the evidence lower bound, unbiased: the expectation of sum_j share_j logp_j is the bound of
    the unit's L trained positions, sum_n (1 / n) E[sum of logp at n masked positions], n from 1 to L (LLaDA,
    arXiv:2502.09992). mask_times_per_sample antithetic pairs: n positions and the L - n others, n uniform from 0 to L
    and spread over the pairs, weights (L + 1) / 2n and (L + 1) / 2(L - n) (ESPO, arXiv:2512.03759)."""
    copies = []
    pairs = training.mask_times_per_sample
    for unit in np.unique(canvas.unit_C[canvas.trained_C]):
        inside_C = canvas.unit_C == unit
        places = np.flatnonzero(inside_C & canvas.trained_C)
        for number in range(pairs):
            count = int((len(places) + 1) * (number + rng.random()) / pairs)
            order = rng.permutation(places)
            for half, chosen in enumerate((order[:count], order[count:])):
                if len(chosen):
                    chosen_C = _at(canvas, chosen)
                    hidden_C = inside_C & (chosen_C | ~canvas.trained_C)
                    weight = (len(places) + 1) / (2 * len(chosen) * pairs)
                    copies.append(canvas.masked(int(unit), 2 * number + half, hidden_C, chosen_C, weight))
    return copies


def ar_order(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """Each token given those to its left, its unit masked from it on: the exact log-likelihood of writing from left to
    right, in a copy for each token (JustGRPO). Block families: from left to right inside each block."""
    copies = []
    for unit in np.unique(canvas.unit_C[canvas.trained_C]):
        inside_C = canvas.unit_C == unit
        for number, place in enumerate(np.flatnonzero(inside_C & canvas.trained_C)):
            hidden_C = inside_C & ((np.arange(len(inside_C)) >= place) | ~canvas.trained_C)
            copies.append(canvas.masked(int(unit), number, hidden_C, _at(canvas, np.array([place]))))
    return copies


def mean_field(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """Every token given nothing of its unit: one copy, all masked (diffu-GRPO, d1, arXiv:2504.12216, without its random
    masks of the prompt)."""
    return _copies(canvas, canvas.trained_C, 0, 1.0)


def semi_ar(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """mask_times_per_sample noisy copies of each block, all before it clean and all after it masked: a level t from
    U(lower_p, upper_p), each trained position of the block masked with probability t, at least one (Block Diffusion,
    arXiv:2503.09573). What is not trained is masked, so that padding does not reveal where the response ends."""
    copies = []
    for number in range(training.mask_times_per_sample):
        for block in np.unique(canvas.block_C[canvas.trained_C]):
            inside_C = (canvas.block_C == block) & canvas.trained_C
            level = rng.uniform(training.lower_p, training.upper_p)
            trained_C = _draw(inside_C, level, rng)
            unit = int(canvas.unit_C[inside_C][0])
            hidden_C = trained_C | ~canvas.trained_C | (canvas.block_C > block)
            copies.append(
                canvas.masked(unit, number, hidden_C & (canvas.unit_C == unit), trained_C, _weight(training, level))
            )
    return copies


def autoregressive(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """Next-token prediction, for models whose outputs are shifted by one."""
    nothing_C = np.zeros_like(canvas.trained_C)
    return [canvas.masked(0, 0, nothing_C, canvas.trained_C, causal=True)]


def uniform(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
    """mask_times_per_sample times one block, each as likely as the others, and a level t from U(lower_p, upper_p): each
    of its positions holds noise with probability t, and all that are trained say what stands there. The likelihood
    bound of uniform noise is flat in t, so no copy weighs more (DiffusionGemma)."""
    copies = []
    blocks = np.unique(canvas.unit_C[canvas.trained_C])
    for number in range(training.mask_times_per_sample):
        block, level = int(rng.choice(blocks)), rng.uniform(training.lower_p, training.upper_p)
        inside_C = canvas.unit_C == block
        noise_C = inside_C & (rng.random(len(inside_C)) < level)
        weight = 1.0 / training.mask_times_per_sample
        copies.append(canvas.masked(block, number, noise_C, inside_C & canvas.trained_C, weight))
    return copies


TRACE = Method(trace, as_sampled=True)
METHODS: dict[str, Method] = {
    "TraceRL": replace(TRACE, sft=False),
    "coupled": Method(coupled),
    "random_masking": Method(random_masking),
    "elbo": Method(elbo),
    "ar_order": Method(ar_order, sft=False),
    "mean_field": Method(mean_field, sft=False),
    "semi-ar": Method(semi_ar, rl=False, one_copy=True),
    "trace": replace(TRACE, rl=False),
    "ar": Method(autoregressive, rl=False, next_token=True),
    "uniform": Method(uniform, rl=False, canvases=True),
}


def with_replaced(method: Masking, share: float, vocab_size: int, unmasked: float) -> Masking:
    """The method's copies with noise on what they leave clean: inside the blocks that a copy trains, each position that
    it does not mask becomes another random id below `vocab_size` with probability `share`; all of them are trained to
    say their token, those that were left right too: a model that is asked only where a token is wrong learns to change
    every one (LLaDA2.1, arXiv:2602.08676, mask-to-token and token-to-token in one loss; its ratios are not public).

    unmasked: chance that a copy masks nothing there, at a token's weight of 1. A block's last steps see it so, and a
    method never shows it: each masks one position at least."""

    def noisy(copy: NoisyCopy, canvas: Canvas, rng: np.random.Generator) -> NoisyCopy:
        if copy.causal or copy.event_C is not None:
            return copy
        inside_C = (canvas.unit_C == copy.unit) & np.isin(canvas.block_C, canvas.block_C[copy.trained_C])
        if rng.random() < unmasked:
            shown_C = inside_C & canvas.trained_C
            ids_C = np.where(shown_C, canvas.ids_C, copy.ids_C)
            copy = replace(copy, ids_C=ids_C, trained_C=np.zeros_like(shown_C), weight=1.0)
        clean_C = inside_C & canvas.trained_C & ~copy.trained_C & (copy.ids_C == canvas.ids_C)
        replaced_C = clean_C & (rng.random(len(clean_C)) < share)
        kept_CK = np.sort(np.stack([canvas.ids_C, np.full_like(canvas.ids_C, canvas.mask_id)], 1), 1)
        other_C = rng.integers(vocab_size - 2, size=len(clean_C))
        other_C += other_C >= kept_CK[:, 0]
        other_C += other_C >= kept_CK[:, 1]
        ids_C = np.where(replaced_C, other_C, copy.ids_C)
        return replace(copy, ids_C=ids_C, trained_C=copy.trained_C | clean_C)

    return lambda canvas, training, rng: [noisy(copy, canvas, rng) for copy in method(canvas, training, rng)]


def check_copies(copies: object, canvas: Canvas, next_token: bool = False) -> list[NoisyCopy]:
    """The noisy copies that a method gave for `canvas`; ValueError where they cannot be trained: another type or
    length, a unit that is not there, a position outside the unit, one that is trained though it holds its target or is
    not to be trained, a copy that trains nothing, none at all, a causal one of a method that is not `next_token`."""
    if not isinstance(copies, list) or not all(isinstance(copy, NoisyCopy) for copy in copies):
        raise ValueError("it must return a list of train.algorithm.masking.NoisyCopy.")
    if not copies and canvas.trained_C.any():
        raise ValueError("it returned no copy of a response that has tokens to train.")
    for number, copy in enumerate(copies):
        for name, kind in (("ids_C", np.integer), ("target_C", np.integer), ("trained_C", np.bool_)):
            value, shape = getattr(copy, name), canvas.trained_C.shape
            if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, kind) or value.shape != shape:
                words = "a bool array" if kind is np.bool_ else "an array of token ids"
                raise ValueError(f"copy {number}: {name} must be {words} of shape {shape}.")
        if copy.causal and not next_token:
            raise ValueError(f"copy {number} is causal: declare it with Method(..., next_token=True).")
        if problem := _problem(copy, canvas):
            raise ValueError(f"copy {number} {problem}.")
    return copies


def _problem(copy: NoisyCopy, canvas: Canvas) -> str:
    if not (canvas.unit_C == copy.unit).any():
        return f"is of unit {copy.unit}, which the canvas has not"
    if not copy.trained_C.any():
        return "trains no position"
    if (copy.trained_C & ~canvas.trained_C).any():
        return "trains a position that is not in canvas.trained_C"
    if ((copy.trained_C | (copy.ids_C != canvas.ids_C)) & (canvas.unit_C != copy.unit)).any():
        return f"changes or trains a position outside its unit {copy.unit} (canvas.unit_C)"
    if not copy.causal and canvas.events is None and (copy.trained_C & (copy.ids_C == copy.target_C)).any():
        return "trains a position that holds its target: mask it, as canvas.masked does"
    return "" if np.isfinite(copy.weight) else f"has the weight {copy.weight}"


def sample_copies(
    copies: list[NoisyCopy], count: int, rng: np.random.Generator, score: Floats | None = None
) -> list[NoisyCopy]:
    """`count` of the copies, in their order; each one's weight grows by 1 / (its chance to be drawn), so that the
    expectation of a weighted sum over copies stays what it was.

    Without scores all have one chance. score: a number a place [C], or an event [E] where copies name events. A copy's
    chance grows with the sum of the scores of what it trains (AGRPO, arXiv:2510.04019, and RLDF, arXiv:2605.25638, draw
    steps by entropy and surprisal), mixed with an equal chance, so that no weight exceeds twice that of equal chances;
    places are drawn systematically, at even distances.
    """
    if len(copies) <= count:
        return copies
    if score is None:
        chosen = np.sort(rng.choice(len(copies), count, replace=False))
        growth_K = np.full(len(copies), len(copies) / count)
    else:
        chance_K = inclusion_chances(np.array([score[copy.chosen].sum() for copy in copies]), count)
        chosen = np.searchsorted(np.cumsum(chance_K), rng.random() + np.arange(count)).clip(max=len(copies) - 1)
        growth_K = 1.0 / chance_K
    return [replace(copies[i], weight=copies[i].weight * float(growth_K[i])) for i in chosen]


def inclusion_chances(score_K: Floats, count: int) -> Floats:
    """Chances [K] that sum to `count`, none above 1, the rest in proportion to half the mean score and half the
    score."""
    score_K = np.maximum(score_K, 0.0)
    score_K = score_K + score_K.mean() if score_K.any() else np.ones_like(score_K)
    chance_K = np.zeros_like(score_K)
    sure_K = np.zeros(len(score_K), dtype=bool)
    while True:
        left = count - int(sure_K.sum())
        chance_K = np.where(sure_K, 1.0, left * score_K / score_K[~sure_K].sum())
        above_K = ~sure_K & (chance_K >= 1.0)
        if not above_K.any() or left == 0:
            return chance_K
        sure_K |= above_K


def _draw(from_C: Bools, level: float, rng: np.random.Generator) -> Bools:
    """Each of the positions with probability `level`, at least one."""
    places = np.flatnonzero(from_C)
    drawn = rng.random(len(places)) < level
    drawn[rng.integers(len(places))] |= not drawn.any()
    chosen_C = np.zeros_like(from_C)
    chosen_C[places[drawn]] = True
    return chosen_C


def _at(canvas: Canvas, places: Ints) -> Bools:
    chosen_C = np.zeros_like(canvas.trained_C)
    chosen_C[places] = True
    return chosen_C


def _copies(canvas: Canvas, chosen_C: Bools, number: int, weight: float) -> list[NoisyCopy]:
    """The copies of one mask over the whole response: one for each unit with a chosen position."""
    hidden_C = chosen_C | ~canvas.trained_C
    return [
        canvas.masked(int(unit), number, hidden_C & (canvas.unit_C == unit), chosen_C & (canvas.unit_C == unit), weight)
        for unit in np.unique(canvas.unit_C[chosen_C])
    ]


def _weight(training: TrainingConfig, level: float) -> float:
    """A token's weight in a copy of noise level `level`: 1 / copies, and 1 / level under loss_weight "inverse_level",
    the likelihood bound of masked diffusion (arXiv:2406.07524)."""
    share = 1.0 / training.mask_times_per_sample
    return share / max(level, 1e-3) if training.loss_weight == "inverse_level" else share
