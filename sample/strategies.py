"""Strategies: which positions of a block a denoising step commits.

Shapes: n slots, b positions of a block.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sample.choices import Choices


class Proposal(NamedTuple):
    """A candidate for each position: token, its log-probability at temperature 1, its score under the target; the
    entropy (nats) where strategy or target needs it; the confidence where a threshold is compared with it and the score
    is no probability; where tokens may be remasked, `held`, the probability of the token that stands there; where edits
    delete and insert, the candidate among all other tokens (`text`), and the likeliest after a greedy `token`
    (`second`), both with log-probabilities."""

    token: Tensor
    logp: Tensor
    score: Tensor
    entropy: Tensor | None = None
    confidence: Tensor | None = None
    held: Tensor | None = None
    text: Tensor | None = None
    text_logp: Tensor | None = None
    second: Tensor | None = None
    second_logp: Tensor | None = None

    @property
    def probability(self) -> Tensor:
        """What a threshold is compared with."""
        return self.score if self.confidence is None else self.confidence

    @staticmethod
    def joined(pieces: "Sequence[Proposal]") -> "Proposal":
        """Those of [N], one after another."""
        token, logp, score, *more = zip(*pieces, strict=True)
        rest = (None if column[0] is None else torch.cat(column) for column in more)
        return Proposal(torch.cat(token), torch.cat(logp), torch.cat(score), *rest)

    def spread(self, row_N: Tensor, n: int, b: int) -> "Proposal":
        """From [N] to [n, b]: entry i goes to the flat position row_N[i], the rest are 0."""

        def place(value_N: Tensor) -> Tensor:
            return value_N.new_zeros(n * b).index_copy_(0, row_N, value_N).view(n, b)

        more = (None if value is None else place(value) for value in self[3:])
        return Proposal(place(self.token), place(self.logp), place(self.score), *more)


Choose = Callable[[Proposal, Tensor, Tensor, Choices], Tensor]


@dataclass(frozen=True)
class Strategy:
    """Which of the masked positions a step commits, and what that needs.

    choose(proposal, masked_nb, k_n, choices) -> bool [n, b]: at least one position of each slot that has masked ones,
    and only masked ones. k_n: the step's share of the block, at least 1 (0 too where edits delete and insert). It runs
    inside a step: whole tensors, nothing read on the host.
    """

    choose: Choose
    needs_entropy: bool = False
    """`Proposal.entropy` is there."""
    by_threshold: bool = False
    """`Proposal.probability` is compared with a threshold: it is a probability under every target, and families that
    decide at least one position a step (`Decoding.dynamic_at_least_one`) have k = 1."""
    or_equal: Choose | None = None
    """`choose` for families in which a probability equal to the threshold passes (`Decoding.threshold_passes`)."""
    draws_order: bool = False
    """choices.alg_temp perturbs the scores."""

    def __call__(self, proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
        return self.choose(proposal, masked_nb, k_n, choices)

    def of_family(self, threshold_passes: bool) -> "Strategy":
        """The strategy under a family's reading of the threshold."""
        return replace(self, choose=self.or_equal) if threshold_passes and self.or_equal is not None else self


def best(score_nb: Tensor, masked_nb: Tensor, k_n: Tensor) -> Tensor:
    """The k highest scores among the masked positions, ties to the left; all of them where fewer are masked."""
    order = score_nb.masked_fill(~masked_nb, -math.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < k_n[:, None]) & masked_nb


def low_confidence_static(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The k best by score."""
    return best(proposal.score, masked_nb, k_n)


def low_confidence_dynamic(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """All that pass the threshold (confidence or margin > it) if they are at least k, else the k best by score.

    SDAR's and TraDo's rule. Of the other targets, which are no probabilities, the confidence is compared.
    """
    return _passed_or_best(proposal, masked_nb, k_n, masked_nb & (proposal.probability > choices.threshold))


def low_confidence_dynamic_or_equal(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The same with >= threshold: LLaDA's and Dream's rule, where k = 1."""
    return _passed_or_best(proposal, masked_nb, k_n, masked_nb & (proposal.probability >= choices.threshold))


def _passed_or_best(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, passed: Tensor) -> Tensor:
    enough = passed.sum(-1) >= k_n
    return torch.where(enough[:, None], passed, best(proposal.score, masked_nb, k_n))


def sequential(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The k leftmost."""
    return masked_nb & (masked_nb.cumsum(-1) <= k_n[:, None])


def entropy_bounded(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The surest positions while their entropies sum to less than the bound, at least one.

    Ben-Hamu et al. 2025 (arXiv:2505.24857), with dLLM-RL's cut: searchsorted of the bound in the cumulative sum.
    """
    assert proposal.entropy is not None
    entropy = proposal.entropy.masked_fill(~masked_nb, math.inf)
    k = (entropy.sort(dim=-1).values.cumsum(-1) < choices.entropy_bound).sum(-1).clamp_min(1)
    return best(-entropy, masked_nb, k)


STRATEGIES: dict[str, Strategy] = {
    "low_confidence_static": Strategy(low_confidence_static, draws_order=True),
    "low_confidence_dynamic": Strategy(
        low_confidence_dynamic, by_threshold=True, or_equal=low_confidence_dynamic_or_equal
    ),
    "sequential": Strategy(sequential),
    "entropy_bounded": Strategy(entropy_bounded, needs_entropy=True),
}
