"""Mixtures of experts."""

from typing import Any


def experts_of(hf_config: Any) -> int:
    """Experts that the router of a layer chooses from; 0 for a dense network."""
    return int(getattr(hf_config, "num_experts", None) or getattr(hf_config, "n_routed_experts", None) or 0)


def dense_layers(hf_config: Any) -> int:
    """Layers of a mixture that have a plain MLP."""
    first, named = getattr(hf_config, "first_k_dense_replace", 0), getattr(hf_config, "mlp_only_layers", None) or ()
    step, layers = getattr(hf_config, "decoder_sparse_step", 1) or 1, range(int(hf_config.num_hidden_layers))
    return sum(i < first or i in named or (i + 1) % step != 0 for i in layers)
