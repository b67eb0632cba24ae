"""How token losses are averaged: the weight that a trained token has in the loss of its update.

Shapes: N trained tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sample.rollout import Key
from train.algorithm.packing import TrainedTokens
from train.algorithm.replay import TrainingSample


@dataclass(frozen=True)
class Weights:
    """Weights [N] of each sample's trained tokens in the policy's (or SFT's) loss, and in the KL term."""

    policy: list[NDArray[np.float64]]
    kl: list[NDArray[np.float64]]


def per_token(
    values: Sequence[float | NDArray[np.floating]] | Mapping[int, float | NDArray[np.floating]],
    tokens: TrainedTokens,
    device: torch.device,
) -> Tensor:
    """values[i] of each sample i, one number or one a trained token, as [N] in fp32."""
    counts = np.bincount(tokens.sample_of_N, minlength=len(tokens.samples))
    spread = [
        np.broadcast_to(np.asarray(values[i], np.float32), count)
        for i, count in zip(tokens.samples, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(spread)).to(device)


def token_weights(
    samples: Sequence[TrainingSample], kind: str, *, max_gen_length: int, longest_response: int | None = None
) -> Weights:
    """Weights in an update made of `samples`, which are whole responses.

    constant: mean over responses of (sum over tokens / max_gen_length). token_mean: sum / trained tokens of the update.
    response_mean: mean over responses of the mean over their tokens (GRPO, arXiv:2402.03300).
    reference: dLLM-RL's, which depends on batch mates. With longest_response (block families): mean over rows (one a
    round) of (sum / longest response of the step). Without (full attention): mean over rows of the row's mean, and
    for the KL of its sum.
    """
    rounds = sum(sample.num_rounds for sample in samples)
    if kind == "constant":
        scale = 1.0 / (len({sample.key for sample in samples}) * max_gen_length)
    elif kind == "token_mean":
        scale = 1.0 / max(1.0, sum(float(sample.weight.sum()) for sample in samples))
    elif kind == "response_mean":
        return _response_mean(samples)
    elif kind == "reference":
        scale = 1.0 / rounds if longest_response is None else 1.0 / (rounds * longest_response)
    else:
        raise ValueError(
            f"training.normalization is {kind!r}; choose from constant, token_mean, response_mean, reference."
        )
    plain = [scale * sample.weight for sample in samples]
    if kind == "reference" and longest_response is None:
        return Weights([weight / len(weight) for weight in plain], plain)
    return Weights(plain, plain)


def _response_mean(samples: Sequence[TrainingSample]) -> Weights:
    total: dict[Key, float] = {}
    for sample in samples:
        total[sample.key] = total.get(sample.key, 0.0) + float(sample.weight.sum())
    weights = [sample.weight / (len(total) * total[sample.key]) for sample in samples]
    return Weights(weights, weights)
