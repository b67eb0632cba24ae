"""Log-probabilities of given tokens, and entropies, read from hidden states through a linear layer, in as little memory
as it takes.

Shapes: N positions, V vocabulary, D hidden size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE_ELEMENTS = 2**20


def keeps_fp32(device_type: str) -> bool:
    """Whether `linear_logits` does not round the logits of half-precision inputs."""
    return device_type == "cuda"


def linear_logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits [N, V] of a linear layer: on a GPU the sums of half-precision products as they are, in fp32, elsewhere in
    the inputs' type. No gradient."""
    if hidden_ND.dtype not in (torch.bfloat16, torch.float16) or not keeps_fp32(hidden_ND.device.type):
        return F.linear(hidden_ND, weight_VD, bias_V)
    logits_NV = _fp32_product(hidden_ND, weight_VD.t())
    return logits_NV if bias_V is None else logits_NV.add_(bias_V)


def _fp32_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32)


def linear_log_probs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    rows: int,
    entropy: bool = False,
) -> Tensor:
    """Log-probabilities [N] (fp32, temperature 1) of `targets_N` under the logits of a linear layer; entropy: [2, N],
    under them the entropies H_n = - sum_v p_nv log p_nv (nats, whole vocabulary).

    Logits exist for `rows` positions at a time, and are computed again in the backward pass where that takes several
    turns. The weight's gradient is summed over them in fp32. A second backward through the same graph is an error.
    """
    return _LinearLogProbs.apply(hidden_ND, weight_VD, bias_V, targets_N, rows, entropy)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        rows: int,
        entropy: bool,
    ) -> Tensor:
        kind = hidden_ND.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        hidden, weight, bias = _cast(ctx.dtype, hidden_ND, weight_VD, bias_V)
        logits_NV = hidden.new_empty(0)
        columns = []
        for hidden_nD, targets in zip(hidden.split(rows), targets_N.split(rows), strict=True):
            logits_NV = linear_logits(hidden_nD, weight, bias)
            columns.append(_columns(logits_NV, targets, entropy))
        logp_N, log_total_N, *entropy_N = (torch.cat(column) for column in zip(*columns, strict=True))
        kept = logits_NV if len(columns) == 1 else None
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, kept, targets_N, log_total_N, *entropy_N)
        ctx.rows = rows
        return torch.stack([logp_N, *entropy_N]) if entropy else logp_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, kept, *columns = ctx.saved_tensors
        hidden, weight, bias = _cast(ctx.dtype, hidden_ND, weight_VD, bias_V)
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = bias_grad = None
        grads = grad if grad.dim() == 2 else grad[None]
        for place in reversed(range(0, max(1, len(hidden)), ctx.rows)):
            here = slice(place, place + ctx.rows)
            logits = linear_logits(hidden[here], weight, bias) if kept is None else kept
            _turn_into_gradient(logits, [column[here] for column in columns], grads[:, here])
            slope = logits.to(ctx.dtype)
            if hidden_grad is not None:
                torch.mm(slope, weight, out=hidden_grad[here])
            if wants_weight:
                weight_grad = _summed(weight_grad, slope.t() @ hidden[here])
            if wants_bias:
                bias_grad = _summed(bias_grad, logits.sum(0))
        if hidden_grad is not None:
            hidden_grad = hidden_grad.to(hidden_ND.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None


def _cast(
    dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _summed(total: Tensor | None, part: Tensor) -> Tensor:
    """total + part, in fp32."""
    return part.float() if total is None else total.add_(part)


def _pieces(logits_NV: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows of the logits at a time, with those of the columns [N] as [n, 1]."""
    rows = max(1, PIECE_ELEMENTS // logits_NV.shape[-1])
    yield from zip(logits_NV.split(rows), *(column[:, None].split(rows) for column in columns), strict=True)


def _columns(logits_NV: Tensor, targets_N: Tensor, entropy: bool) -> list[Tensor]:
    """Of each position its target's log-probability, log sum exp of its logits and, on request, its entropy."""
    log_total_N = torch.cat([piece.float().logsumexp(-1) for (piece,) in _pieces(logits_NV)])
    columns = [logits_NV.gather(-1, targets_N[:, None])[:, 0].float() - log_total_N, log_total_N]
    if entropy:
        entropies = [
            torch.special.entr((piece.float() - log_total).exp_()).sum(-1)
            for piece, log_total in _pieces(logits_NV, log_total_N)
        ]
        columns.append(torch.cat(entropies))
    return columns


def _turn_into_gradient(logits_NV: Tensor, columns: list[Tensor], grads: Tensor) -> None:
    """Overwrites the logits with their gradient: d logp_n / d logits_nv = [v = target_n] - p_nv,
    d H_n / d logits_nv = - p_nv (log p_nv + H_n). columns: targets, log sum exp, and entropies where grads has two."""
    if len(grads) == 1:
        for piece, targets, log_total, grad in _pieces(logits_NV, *columns, *grads):
            gradient = (piece.float() - log_total).exp_().mul_(-grad).scatter_add_(-1, targets, grad)
            piece.copy_(gradient)
        return
    for piece, targets, log_total, entropy, of_logp, of_entropy in _pieces(logits_NV, *columns, *grads):
        p = (piece.float() - log_total).exp_()
        gradient = (torch.special.entr(p) - p * entropy).mul_(of_entropy).sub_(p.mul_(of_logp))
        piece.copy_(gradient.scatter_add_(-1, targets, of_logp))
