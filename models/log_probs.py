"""Log-probabilities of given tokens, and entropies, from logits, in as little memory as it takes.

Shapes: N positions, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE_ELEMENTS = 2**20


def token_log_probs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probabilities [N] (fp32, temperature 1) of `targets_N`.

    The backward pass turns the logits into their gradient in place, so they must not be used elsewhere; a second
    backward through the same graph is an error.
    """
    return _TokenLogProbs.apply(logits_NV, targets_N)


def log_probs_and_entropies(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """[2, N]: `token_log_probs`, and under them the entropies H_n = - sum_v p_nv log p_nv (nats, whole vocabulary). The
    same holds for the logits and the backward pass."""
    return _WithEntropies.apply(logits_NV, targets_N)


def _pieces(logits_NV: Tensor) -> int:
    return max(1, PIECE_ELEMENTS // logits_NV.shape[-1])


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        rows = _pieces(logits_NV)
        log_total_N = torch.cat([piece.float().logsumexp(-1) for piece in logits_NV.split(rows)])
        ctx.save_for_backward(logits_NV, targets_N, log_total_N)
        return logits_NV.gather(-1, targets_N[:, None])[:, 0].float() - log_total_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        """d logp_n / d logits_nv = [v = target_n] - p_nv."""
        logits_NV, *columns = ctx.saved_tensors
        rows = _pieces(logits_NV)
        for piece, targets, log_total, grad in zip(
            logits_NV.split(rows), *(column[:, None].split(rows) for column in (*columns, grad_N)), strict=True
        ):
            gradient = (piece.float() - log_total).exp_().mul_(-grad).scatter_add_(-1, targets, grad)
            piece.copy_(gradient)
        return logits_NV, None


class _WithEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        rows = _pieces(logits_NV)
        log_total_N = torch.cat([piece.float().logsumexp(-1) for piece in logits_NV.split(rows)])
        entropy_N = torch.cat(
            [
                torch.special.entr((piece.float() - log_total).exp_()).sum(-1)
                for piece, log_total in zip(logits_NV.split(rows), log_total_N[:, None].split(rows), strict=True)
            ]
        )
        ctx.save_for_backward(logits_NV, targets_N, log_total_N, entropy_N)
        logp_N = logits_NV.gather(-1, targets_N[:, None])[:, 0].float() - log_total_N
        return torch.stack([logp_N, entropy_N])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_2N: Tensor) -> tuple[Tensor, None]:
        """d logp_n / d logits_nv = [v = target_n] - p_nv, d H_n / d logits_nv = - p_nv (log p_nv + H_n)."""
        logits_NV, *columns = ctx.saved_tensors
        rows = _pieces(logits_NV)
        for piece, targets, log_total, entropy, of_logp, of_entropy in zip(
            logits_NV.split(rows), *(column[:, None].split(rows) for column in (*columns, *grad_2N)), strict=True
        ):
            p = (piece.float() - log_total).exp_()
            gradient = (torch.special.entr(p) - p * entropy).mul_(of_entropy).sub_(p.mul_(of_logp))
            piece.copy_(gradient.scatter_add_(-1, targets, of_logp))
        return logits_NV, None
