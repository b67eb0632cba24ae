"""Preferences: pairs of a chosen and a rejected response.

Shapes: P pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairLosses:
    """Of each pair [P]: its loss, its margin, and the loss's derivative with respect to the chosen response's
    log-likelihood, which is that with respect to the rejected one's with the other sign."""

    loss_P: Floats
    margin_P: Floats
    slope_P: Floats


def dpo(chosen_P: Floats, rejected_P: Floats, beta: float) -> PairLosses:
    """DPO (arXiv:2305.18290, eq. 7) on gains of log-likelihood over the reference [P], g = l - l_ref:

        loss = - log sigmoid(margin),    margin = beta (g_chosen - g_rejected)
        d loss / d l_chosen = - beta sigmoid(- margin)

    With l estimated by method=elbo, policy and reference under the same masks, it is VRPO's (LLaDA 1.5,
    arXiv:2505.19223).
    """
    margin_P = beta * (np.asarray(chosen_P, np.float64) - np.asarray(rejected_P, np.float64))
    with np.errstate(invalid="ignore"):  # of a margin that is not finite, which the updater skips
        loss_P, log_share_P = np.logaddexp(0.0, -margin_P), -np.logaddexp(0.0, margin_P)
    return PairLosses(loss_P, margin_P, -beta * np.exp(log_share_P))
