"""The output head: logits, or the log-probabilities of given tokens in bounded memory.

Shapes: N positions, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.log_probs import log_probs_and_entropies, token_log_probs

LOGITS_CHUNK_ELEMENTS = 2**25


class OutputHead(nn.Module):
    """A linear layer's weight [V, D] and bias [V] (or None) under their own names.

    One call serves all of a micro-batch's positions: under ZeRO-3 every rank must call the same modules, and ranks have
    different numbers of chunks.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None, entropy: bool = False) -> Tensor:
        """Logits [..., V] of `hidden` [..., D]; given targets, of hidden [N, D], their log-probabilities [N] (fp32,
        temperature 1), in chunks that are recomputed in the backward pass when there are several. entropy: [2, N], the
        entropies (nats) second."""
        if targets_N is None:
            return self._logits(hidden)
        numbers = self._logps_and_entropies if entropy else self._token_logps
        chunk = max(1, LOGITS_CHUNK_ELEMENTS // self.weight.shape[0])
        if len(targets_N) <= chunk:
            return numbers(hidden, targets_N)
        pieces = [
            checkpoint(numbers, hidden_ND, targets, use_reentrant=False)
            for hidden_ND, targets in zip(hidden.split(chunk), targets_N.split(chunk), strict=True)
        ]
        return torch.cat(pieces, dim=-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def _token_logps(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return token_log_probs(self._logits(hidden_ND), targets_N)

    def _logps_and_entropies(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return log_probs_and_entropies(self._logits(hidden_ND), targets_N)
