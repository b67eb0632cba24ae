"""Mixtures of experts: their sizes, their routers, and how evenly these share out tokens.

Shapes: T tokens, E experts, k experts of a token.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def experts_of(hf_config: Any) -> int:
    """Experts that the router of a layer chooses from; 0 for a dense network."""
    return int(getattr(hf_config, "num_experts", None) or getattr(hf_config, "n_routed_experts", None) or 0)


def experts_per_token(hf_config: Any) -> int:
    """Experts that a token takes in a layer."""
    return int(getattr(hf_config, "num_experts_per_tok", None) or hf_config.top_k_experts)


def dense_layers(hf_config: Any) -> int:
    """Layers of a mixture that have a plain MLP."""
    first, named = getattr(hf_config, "first_k_dense_replace", 0), getattr(hf_config, "mlp_only_layers", None) or ()
    step, layers = getattr(hf_config, "decoder_sparse_step", 1) or 1, range(int(hf_config.num_hidden_layers))
    return sum(i < first or i in named or (i + 1) % step != 0 for i in layers)


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """The routers of a mixture's layers by name; none of a dense network. Each maps hidden states to (logits [T, E],
    weights [T, k], numbers of the experts [T, k])."""
    return {name: module for name, module in model.named_modules() if name.endswith(".mlp.gate")}


class ExpertLoad:
    """Tokens that each expert got while `counting`, a row a layer. Nothing is read on the host before `take`."""

    def __init__(self, model: nn.Module):
        self.routers = routers(model)
        self.counts: dict[str, Tensor] = {}

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Forward passes of the block count, the first so many tokens of each: what follows is padding. One that
        checkpointing runs again counts again."""
        hooks = [router.register_forward_hook(self._counter(name, tokens)) for name, router in self.routers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _counter(self, name: str, tokens: int) -> Any:
        def count(router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            logits_TE, _, experts_Tk = output
            if name not in self.counts:
                self.counts[name] = torch.zeros(logits_TE.shape[-1], dtype=torch.int64, device=logits_TE.device)
            chosen = experts_Tk[:tokens].detach().flatten()
            self.counts[name].scatter_add_(0, chosen, torch.ones_like(chosen))

        return count

    def take(self) -> dict[str, Tensor]:
        """Counts [E] by router, on the host."""
        return {name: count.cpu() for name, count in self.counts.items()}


@contextmanager
def replaying(model: nn.Module, experts_TMk: Tensor | None) -> Iterator[None]:
    """Forward and backward passes of T tokens, each of which takes these experts in the M layers with routers, weighted
    by the scores that the routers give them now. None: as the routers choose."""
    hooks = []
    if experts_TMk is not None:
        every = routers(model).values()
        assert len(every) == experts_TMk.shape[1]
        hooks = [r.register_forward_hook(_chooser(experts_TMk[:, layer].long())) for layer, r in enumerate(every)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _chooser(experts_Tk: Tensor) -> Any:
    def choose(router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return output[0], weights_of(router, output[0], experts_Tk).to(output[1].dtype), experts_Tk

    return choose


def weights_of(router: nn.Module, logits_TE: Tensor, experts_Tk: Tensor) -> Tensor:
    """What a router of transformers gives these experts: softmax scores, or, with a bias to choose by, sigmoids."""
    by_sigmoid = hasattr(router, "e_score_correction_bias")
    score_TE = logits_TE.float().sigmoid() if by_sigmoid else logits_TE.float().softmax(-1)
    weight_Tk = score_TE.gather(1, experts_Tk)
    if router.norm_topk_prob:
        weight_Tk = weight_Tk / (weight_Tk.sum(-1, keepdim=True) + 1e-20)
    return weight_Tk * getattr(router, "routed_scaling_factor", 1.0)


def balance(counts: Mapping[str, Tensor]) -> dict[str, float]:
    """How evenly layers share out their tokens, from counts [E] by router: experts/max_load, the busiest expert's
    tokens over the mean, of the worst layer and of the mean one; experts/unused: share of experts without a token.
    Empty without counts."""
    if not counts:
        return {}
    loads = torch.stack([count.double() / count.double().mean().clamp_min(1e-9) for count in counts.values()])
    most = loads.amax(1)
    return {
        "experts/max_load": float(most.max()),
        "experts/mean_max_load": float(most.mean()),
        "experts/unused": float((loads == 0).double().mean()),
    }
