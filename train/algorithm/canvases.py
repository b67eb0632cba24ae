"""A text and its answer -> training samples of a model whose canvases of random tokens are denoised whole.

A sample is the whole text, which the encoder reads, and behind it one noisy canvas, which sees the text before it. The
encoder is trained on the next token of the text, the decoder on every token of the canvas; each of the two means counts
the same, and half of the canvases are conditioned on what a first reading says of them (the published recipe for
DiffusionGemma: TRL's examples/scripts/sft_diffusion_gemma.py).

Shapes: P prompt tokens, R tokens of the answer, L = P + R, c tokens of a canvas, C tokens of all of the answer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import TrainingConfig
from sample.rollout import Key
from train.algorithm.masking import Canvas, Masking, NoisyCopy
from train.algorithm.replay import TrainingSample

CONDITIONED_SHARE = 0.5
ENCODER_WEIGHT = 1.0


@dataclass(frozen=True)
class Easel:
    """What a model's canvases are: tokens of one, ids of the vocabulary, what fills the last one behind the answer, and
    the id that stands for noise until it is drawn (`models.model.NO_MASK`)."""

    canvas_tokens: int
    vocab_size: int
    fill_id: int
    mask_id: int


def canvas_samples(
    key: Key,
    prompt: Sequence[int],
    answer: Sequence[int],
    easel: Easel,
    training: TrainingConfig,
    method: Masking,
    rng: np.random.Generator,
    ended: bool,
) -> list[TrainingSample]:
    """A sample for each noisy copy that the method draws. ended: the answer has its end; what fills the last canvas
    behind one that was cut is not trained."""
    R, c = len(answer), easel.canvas_tokens
    filled = -R % c
    ids_C = np.array([*answer, *[easel.fill_id] * filled], dtype=np.int64)
    block_C = np.arange(R + filled) // c
    trained_C = (np.arange(R + filled) < R) | ended
    canvas = Canvas(ids_C, np.ones_like(ids_C), trained_C, block_C, block_C, easel.mask_id)
    text_L = np.array([*prompt, *answer], dtype=np.int64)
    return [_sample(key, text_L, len(prompt), copy, easel, rng) for copy in method(canvas, training, rng)]


def _sample(
    key: Key, text_L: np.ndarray, P: int, copy: NoisyCopy, easel: Easel, rng: np.random.Generator
) -> TrainingSample:
    L, c = len(text_L), easel.canvas_tokens
    inside = slice(copy.unit * c, copy.unit * c + c)
    held_c = np.where(copy.ids_C[inside] == easel.mask_id, rng.integers(easel.vocab_size, size=c), copy.ids_C[inside])
    conditioned = bool(rng.random() < CONDITIONED_SHARE)
    place = np.flatnonzero(copy.trained_C[inside])
    read, nexts = L + place, np.arange(1, L)
    of_canvas = np.full(len(place), copy.weight / len(place))
    of_encoder = np.full(L - 1, ENCODER_WEIGHT * copy.weight / max(1, L - 1))
    block_L = np.where(np.arange(L) < P, 0, 1 + (np.arange(L) - P) // c)
    canvas_index = np.concatenate([copy.unit * c + place, nexts - P])
    return TrainingSample(
        key=key,
        ids=np.concatenate([text_L, held_c]),
        positions=np.concatenate([np.arange(L), P + copy.unit * c + np.arange(c)]),
        block=np.concatenate([block_L, np.full(c, 1 + copy.unit)]),
        copy=np.concatenate([np.zeros(L, dtype=np.int64), np.ones(c, dtype=np.int64)]),
        index=np.concatenate([read, nexts - 1]),
        targets=np.concatenate([copy.target_C[inside][place], text_L[1:]]),
        canvas_index=canvas_index,
        event_index=canvas_index,
        round_index=np.full(len(canvas_index), copy.round),
        num_rounds=1,
        weight=np.concatenate([of_canvas, of_encoder]),
        conditioned=conditioned,
    )
