"""Trajectory -> training samples: what the trainer runs so that every token is scored exactly as the sampler saw it.

A block family's response becomes one sequence: one clean copy of prompt and canvas, then one noisy copy of each
block for each round (denoising step) that has trained tokens. A noisy block sees the clean blocks before its own
and itself; it holds what the sampler held at that step: earlier tokens in place (those that stood then, where they
are overwritten later), the mask id at every position decided at that step or later, or never. Blocks lie on the
absolute grid from position 0, so the prompt's tail stands in the first noisy block as it is.

Shapes: S tokens of a sample, N trained tokens of a sample, C canvas tokens, K noisy copies, b block size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from configs.schema import TrainingConfig
from models import Prompt
from sample.experts import Routing
from sample.rollout import Key, Rollout
from train.algorithm.masking import Bools, Canvas, Floats, Ints, Masking, NoisyCopy, sample_copies, trace
from train.algorithm.steps import last_events


@dataclass(frozen=True)
class TrainingSample:
    """A response, replayed: all of it for a block family, one noisy copy of it under full attention.

    ids, positions, block, copy [S]: token ids, absolute positions, block on the grid, and 0 for the clean copy or
    the number of the noisy block copy. index [N]: where in the sample the trained tokens are read; targets [N]: their
    ids; canvas_index [N]: their place in the canvas; event_index [N]: the event that chose them, their place again
    where the rollout has no events; round_index [N]: the round (rank of the step inside its block). num_rounds: rounds
    with trained tokens, the rows that dLLM-RL would run. weight [N]: of each token in the loss, before any
    normalisation. prompt: whose rows of features the ids -1 - row stand for; None without pictures. experts [S, M, k]:
    of each token in M layers, where routing is replayed. conditioned: of a text and one canvas
    (`train.algorithm.canvases`), None elsewhere.
    """

    key: Key
    ids: Ints
    positions: Ints
    block: Ints
    copy: Ints
    index: Ints
    targets: Ints
    canvas_index: Ints
    event_index: Ints
    round_index: Ints
    num_rounds: int
    weight: Floats
    prompt: Prompt | None = None
    experts: NDArray[np.int16] | None = None
    conditioned: bool | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return len(self.index)


def trained_positions(rollout: Rollout, pad_id: int | None, post_num: int | None) -> Bools:
    """Bool [C]: the response, then the first `post_num` decided pad ids after it (None: all of them). What was filled
    in without a forward (a step after the last) has no log-probability and is not trained."""
    place, step = np.arange(len(rollout.canvas_ids)), np.asarray(rollout.canvas_step_map)
    decided = (step > 0) & (step <= rollout.num_steps)
    trained = place < rollout.num_response_tokens
    if post_num != 0 and pad_id is not None:
        pads = ~trained & (np.asarray(rollout.canvas_ids) == pad_id) & decided
        if post_num is not None:
            pads &= np.cumsum(pads) <= post_num
        trained |= pads
    return trained & decided


def recorded_logprobs(rollout: Rollout) -> Floats:
    """The sampler's log-probabilities: of the events [E], or of the places [C] where there are none. event_index of a
    training sample numbers them."""
    return np.asarray(rollout.canvas_logprobs if rollout.events is None else rollout.events.logprob, dtype=np.float64)


@dataclass(frozen=True)
class Replayer:
    """How a model's responses become training samples.

    attention, logit_shift, mask_id: the family's (`models.DiffusionLM`). block_size: on the absolute grid for block
    families, from the end of the prompt under full attention.
    """

    attention: Literal["block", "full"]
    logit_shift: bool
    mask_id: int
    block_size: int

    def canvas(self, rollout: Rollout, trained_C: Bools) -> Canvas:
        ids_C, step_C = (np.asarray(x, dtype=np.int64) for x in (rollout.canvas_ids, rollout.canvas_step_map))
        place = np.arange(len(ids_C))
        block = (place if self.attention == "full" else len(rollout.prompt_ids) + place) // self.block_size
        unit = np.zeros_like(place) if self.attention == "full" else block
        return Canvas(ids_C, step_C, trained_C, block, unit, self.mask_id, rollout.events)

    def samples(
        self,
        key: Key,
        prompt: Sequence[int],
        canvas: Sequence[int],
        copies: Sequence[NoisyCopy],
        suffix: Sequence[int] = (),
    ) -> list[TrainingSample]:
        """One packed sample of all copies for a block family; a sample a copy where attention is full or causal.
        suffix: what stands right of the canvas (full attention)."""
        ids_P, ids_C, ids_S = (np.asarray(ids, dtype=np.int64) for ids in (prompt, canvas, suffix))
        assert self.logit_shift or not any(copy.causal for copy in copies)
        if self.attention == "block":
            assert not len(ids_S)
            sample = block_sample(key, ids_P, ids_C, copies, self.block_size)
            return [] if sample is None else [sample]
        if self.logit_shift and not len(ids_P):
            raise ValueError(f"{key}: an empty prompt; the first token is read at the prompt's last position.")
        position = np.arange(len(ids_P) + len(ids_C) + len(ids_S))
        zeros = np.zeros_like(position)
        return [self._whole_sample(key, ids_P, ids_S, copy, position, zeros) for copy in copies]

    def _whole_sample(
        self, key: Key, prompt: Ints, suffix: Ints, copy: NoisyCopy, position: Ints, zeros: Ints
    ) -> TrainingSample:
        place = np.flatnonzero(copy.trained_C)
        return TrainingSample(
            key=key,
            ids=np.concatenate([prompt, copy.ids_C, suffix]),
            positions=position,
            block=position if copy.causal else zeros,
            copy=zeros,
            index=len(prompt) + place - self.logit_shift,
            targets=copy.target_C[place],
            canvas_index=place,
            event_index=copy.chosen,
            round_index=np.full(len(place), copy.round),
            num_rounds=1,
            weight=np.full(len(place), copy.weight),
        )


def by_response(samples: Sequence[TrainingSample]) -> list[list[int]]:
    """Places of the samples of each response (samples with one key), in the order of their first ones."""
    places: dict[Key, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.key, []).append(i)
    return list(places.values())


def replay(
    rollout: Rollout,
    replayer: Replayer,
    training: TrainingConfig,
    *,
    method: Masking = trace,
    pad_id: int | None = None,
    rng: np.random.Generator | None = None,
    prompt: Prompt | None = None,
) -> list[TrainingSample]:
    """The samples that train a rollout; none when nothing of it is trained. rng draws the masks of the random methods,
    and which noisy copies are kept under training.rows_per_response. prompt: of a rollout with pictures, whose features
    the samples share; ValueError where it is absent.

    Pads are counted within the response; under normalization `reference` within each round of a block family, as
    dLLM-RL does.
    """
    rng = rng or np.random.default_rng(0)
    per_round = training.normalization == "reference" and replayer.attention == "block"
    trained = trained_positions(rollout, pad_id, None if per_round else training.post_num)
    if training.max_gen_length is not None:
        trained[training.max_gen_length :] = False
    if not trained.any():
        return []
    canvas = replayer.canvas(rollout, trained)
    copies = method(canvas, training, rng)
    if rollout.events is not None:
        last_C = last_events(rollout.events, len(trained))
        copies = [copy if copy.event_C is not None else replace(copy, event_C=last_C) for copy in copies]
    if per_round and training.post_num is not None:
        copies = limit_pads_per_round(copies, np.arange(len(trained)) >= rollout.num_response_tokens, training.post_num)
    if training.rows_per_response is not None:
        surprisal = -recorded_logprobs(rollout) if training.rows_by == "surprisal" else None
        copies = sample_copies(copies, training.rows_per_response, rng, surprisal)
    if min(rollout.prompt_ids, default=0) >= 0:
        samples = replayer.samples(rollout.key, rollout.prompt_ids, rollout.canvas_ids, copies, rollout.suffix_ids)
        if not training.replay_routing:
            return samples
        return [with_experts(sample, copies, rollout.routing, replayer.block_size) for sample in samples]
    if prompt is None or prompt.ids != rollout.prompt_ids:
        raise ValueError(f"rollout {rollout.key} has pictures in its prompt: replay it with that `models.Prompt`.")
    samples = replayer.samples(rollout.key, prompt.numbered(), rollout.canvas_ids, copies, rollout.suffix_ids)
    return [replace(sample, prompt=prompt) for sample in samples]


def with_experts(
    sample: TrainingSample, copies: Sequence[NoisyCopy], routing: Routing | None, block_size: int
) -> TrainingSample:
    """The sample of a block family with its experts [S, M, k], in M layers k of a token: of clean tokens those of their
    block's commit, of a noisy copy those of its denoising step. ValueError where the rollout has none recorded."""
    steps = [copy.step for copy in copies]
    if routing is None or None in steps:
        raise ValueError(
            f"rollout {sample.key} has no experts recorded, which training.replay_routing replays: sample it anew with "
            "that setting, or turn it off."
        )
    step_S = np.array([0, *steps], dtype=np.int64)[sample.copy] - 1
    is_noisy_S = sample.copy > 0
    experts = np.empty((sample.num_tokens, *routing.noisy.shape[2:]), dtype=np.int16)
    experts[~is_noisy_S] = routing.clean[sample.positions[~is_noisy_S]]
    experts[is_noisy_S] = routing.noisy[step_S[is_noisy_S], sample.positions[is_noisy_S] % block_size]
    return replace(sample, experts=experts)


def block_sample(
    key: Key, prompt: Ints, canvas: Ints, noisy: Sequence[NoisyCopy], block_size: int
) -> TrainingSample | None:
    """Clean copy of everything before the last noisy block, then the noisy blocks, as one `TrainingSample`; None
    without noisy blocks."""
    if not noisy:
        return None
    b, P = block_size, len(prompt)
    whole = np.concatenate([prompt, canvas])
    unit_K = np.array([copy.unit for copy in noisy])
    rounds_K = np.array([copy.round for copy in noisy])
    weight_K = np.array([copy.weight for copy in noisy])
    position_Kb = unit_K[:, None] * b + np.arange(b)
    exists_Kb = position_Kb < len(whole)
    place_Kb = np.clip(position_Kb - P, 0, len(canvas) - 1)
    in_canvas_Kb = exists_Kb & (position_Kb >= P)
    there = list(zip(noisy, place_Kb, strict=True))
    held_Kb, target_Kb, chosen_Kb = (
        np.array([getattr(copy, name)[place_b] for copy, place_b in there])
        for name in ("ids_C", "target_C", "trained_C")
    )
    event_Kb = np.array([place_b if copy.event_C is None else copy.event_C[place_b] for copy, place_b in there])
    trained_Kb = in_canvas_Kb & chosen_Kb
    clean = int(unit_K.max()) * b
    offset_Kb = clean + np.cumsum(exists_Kb).reshape(exists_Kb.shape) - 1
    number_Kb = np.broadcast_to(np.arange(1, len(noisy) + 1)[:, None], exists_Kb.shape)
    copy_N = trained_Kb.nonzero()[0]
    position_S = np.concatenate([np.arange(clean), position_Kb[exists_Kb]])
    ids_Kb = np.where(in_canvas_Kb, held_Kb, whole[np.minimum(position_Kb, len(whole) - 1)])
    return TrainingSample(
        key=key,
        ids=np.concatenate([whole[:clean], ids_Kb[exists_Kb]]),
        positions=position_S,
        block=position_S // b,
        copy=np.concatenate([np.zeros(clean, dtype=np.int64), number_Kb[exists_Kb]]),
        index=offset_Kb[trained_Kb],
        targets=target_Kb[trained_Kb],
        canvas_index=place_Kb[trained_Kb],
        event_index=event_Kb[trained_Kb],
        round_index=rounds_K[copy_N],
        num_rounds=len(set(rounds_K[copy_N].tolist())),
        weight=weight_K[copy_N],
    )


def limit_pads_per_round(copies: Sequence[NoisyCopy], after_response_C: Bools, post_num: int) -> list[NoisyCopy]:
    """dLLM-RL's count of pads: the first post_num of each round are trained; copies left with nothing are left out."""
    kept = []
    seen: dict[int, int] = {}
    for copy in copies:
        pads_C = copy.trained_C & after_response_C
        allowed_C = pads_C & (np.cumsum(pads_C) <= post_num - seen.get(copy.round, 0))
        seen[copy.round] = seen.get(copy.round, 0) + int(allowed_C.sum())
        kept.append(replace(copy, trained_C=(copy.trained_C & ~pads_C) | allowed_C))
    return [copy for copy in kept if copy.trained_C.any()]
