"""What is minimised: pure functions of the trained tokens' log-probabilities.

An objective maps a `TokenBatch` and its parameters to (loss, metrics). The loss is a sum over tokens whose `weight`
carries the normalisation (0 = untrained), so that any split into micro-batches or ranks adds up to the same update; the
metrics are sums over tokens too. What an objective needs beyond single tokens it states with `@objective`.
"""

from train.algorithm.objectives.base import (
    NOTHING,
    Metrics,
    Needs,
    Objective,
    ObjectiveParams,
    TokenBatch,
    needs_of,
    objective,
    params_of,
    sum_by,
)
from train.algorithm.objectives.bound import COMPARED, BoundObjective, bind
from train.algorithm.objectives.clip import CLIP, clipped_surrogate, distill, reinforce
from train.algorithm.objectives.correction import CORRECTIONS, LEVELS, Correction
from train.algorithm.objectives.penalties import KL_ESTIMATORS, PENALTIES, k1, k2, k3
from train.algorithm.objectives.plain import clipped_value_loss, negative_log_likelihood
from train.algorithm.objectives.preference import PairLosses, dpo
from train.algorithm.objectives.sequence import bgpo, ebpo, espo, gdsd, gspo, spg, stable_drl
from train.algorithm.objectives.weights import Weights, per_token, token_weights

OBJECTIVES: dict[str, Objective] = {
    "clip": clipped_surrogate,
    "reinforce": reinforce,
    "gspo": gspo,
    "espo": espo,
    "ebpo": ebpo,
    "bgpo": bgpo,
    "spg": spg,
    "stabledrl": stable_drl,
    "gdsd": gdsd,
    "distill": distill,
}
TERMS = (*CLIP, *PENALTIES)
"""Keys of the training section that built-in objectives read, each those of its terms."""

__all__ = [
    "COMPARED",
    "CORRECTIONS",
    "KL_ESTIMATORS",
    "LEVELS",
    "NOTHING",
    "OBJECTIVES",
    "TERMS",
    "BoundObjective",
    "Correction",
    "Metrics",
    "Needs",
    "Objective",
    "ObjectiveParams",
    "PairLosses",
    "TokenBatch",
    "Weights",
    "bgpo",
    "bind",
    "clipped_surrogate",
    "clipped_value_loss",
    "distill",
    "dpo",
    "ebpo",
    "espo",
    "gdsd",
    "gspo",
    "k1",
    "k2",
    "k3",
    "needs_of",
    "negative_log_likelihood",
    "objective",
    "params_of",
    "per_token",
    "reinforce",
    "spg",
    "stable_drl",
    "sum_by",
    "token_weights",
]
