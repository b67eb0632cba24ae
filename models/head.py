"""The output head: logits, or the log-probabilities of given tokens in bounded memory.

Shapes: N positions, V vocabulary, D hidden size.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.log_probs import linear_log_probs, linear_logits

LOGITS_CHUNK_ELEMENTS = 2**25


class OutputHead(nn.Module):
    """A linear layer's weight [V, D] and bias [V] (or None) under their own names.

    One call serves all of a micro-batch's positions: under ZeRO-3 every rank must call the same modules, and ranks have
    different numbers of chunks.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(
        self, hidden: Tensor, targets_N: Tensor | None = None, entropy: bool = False, fp32: bool = False
    ) -> Tensor:
        """Logits [..., V] of `hidden` [..., D], fp32: in fp32, of hidden [N, D], without gradient, as the
        log-probabilities are read from; given targets, of hidden [N, D], their log-probabilities [N] (fp32, temperature
        1), in chunks that are recomputed in the backward pass when there are several. entropy: [2, N], the entropies
        (nats) second."""
        if fp32:
            return linear_logits(hidden, self.weight, self.bias).float()
        if targets_N is None:
            return F.linear(hidden, self.weight, self.bias)
        rows = max(1, LOGITS_CHUNK_ELEMENTS // self.weight.shape[0])
        return linear_log_probs(hidden, self.weight, self.bias, targets_N, rows, entropy)
