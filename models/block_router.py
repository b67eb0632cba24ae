"""LLaDA2.2's router: all tokens of a diffusion block choose their experts from one pool.

After the rules as two independent readers and the report of LLaDA2.X have them; not checked against the original.
Shapes: T tokens, whole blocks of b one after another; N blocks, E experts, k experts of a token, D hidden size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

from models.experts import routers


class BlockRouter(Glm4MoeTopkRouter):
    """The pool of a block: the `capacity` experts whose largest score, bias included, over the block's tokens is
    highest. A token takes the k best of the pool; its weights are their scores without bias over their sum."""

    block_size: int
    capacity: int

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [T, E], weights [T, k], experts [T, k]) of rows of hidden states [..., L, D]. ValueError where a row
        is no whole number of blocks: its last one would reach into the next row."""
        hidden_TD, length = hidden_states.reshape(-1, self.hidden_dim), hidden_states.shape[-2]
        if length % self.block_size:
            raise ValueError(
                f"{length} tokens: LLaDA2.2 routes blocks of {self.block_size} tokens as one, so that only "
                "whole blocks can be run."
            )
        logits_TE = F.linear(hidden_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid()
        choice_NbE = (scores_TE + self.e_score_correction_bias).view(-1, self.block_size, self.num_experts)
        pool_NC = choice_NbE.amax(1).topk(self.capacity, dim=-1).indices
        outside_NE = torch.ones_like(choice_NbE[:, 0], dtype=torch.bool).scatter_(1, pool_NC, False)
        choice_TE = choice_NbE.masked_fill(outside_NE[:, None], float("-inf")).flatten(0, 1)
        experts_Tk = choice_TE.topk(self.top_k, dim=-1).indices
        weights_Tk = scores_TE.gather(1, experts_Tk)
        if self.norm_topk_prob:
            weights_Tk = weights_Tk / (weights_Tk.sum(-1, keepdim=True) + 1e-20)
        return logits_TE, weights_Tk * self.routed_scaling_factor, experts_Tk


def route_blocks(network: nn.Module, block_size: int, capacity: int) -> None:
    """Makes the network's routers block routers, in place."""
    for router in routers(network).values():
        router.__class__ = BlockRouter
        router.block_size, router.capacity = block_size, capacity  # type: ignore[assignment]
