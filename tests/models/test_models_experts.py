"""How evenly a mixture's routers share out tokens."""

import pytest
import torch
from helpers import tiny_model

from models.attention import Masked
from models.experts import ExpertLoad, balance, dense_layers, experts_of, routers


@pytest.mark.parametrize(("family", "layers"), [("sdar_moe", 2), ("llada2", 1), ("sdar", 0)])
def test_each_token_counts_for_its_experts_in_every_layer(family, layers):
    model = tiny_model(family)
    ids, positions = torch.arange(3, 19)[None], torch.arange(16)[None]
    load = ExpertLoad(model)
    with load.counting(16):
        model.hidden(ids, positions, Masked(None))
    model.hidden(ids, positions, Masked(None))  # not counted
    counts = load.take()
    assert len(counts) == layers == len(routers(model)) == (2 - dense_layers(model.hf_config) if layers else 0)
    for name, count in counts.items():
        seen = []
        hook = model.get_submodule(name).register_forward_hook(lambda m, i, output, seen=seen: seen.append(output[2]))
        model.hidden(ids, positions, Masked(None))
        hook.remove()
        assert torch.equal(count, torch.bincount(seen[0].flatten(), minlength=experts_of(model.hf_config)))
        assert count.sum() == 16 * 2


def test_the_balance_is_that_of_the_worst_layer_and_of_the_mean_one():
    counts = {"a": torch.tensor([4, 4, 4, 4]), "b": torch.tensor([12, 4, 0, 0])}
    assert balance(counts) == {"experts/max_load": 3.0, "experts/mean_max_load": 2.0, "experts/unused": 0.25}
    assert balance({}) == {}


@pytest.mark.parametrize("family", ["sdar_moe", "llada2"])
def test_experts_run_as_one_grouped_product_without_a_read_of_the_host(family):
    """transformers' eager experts loop over those that a host read finds; a CUDA graph cannot hold that."""
    assert tiny_model(family).hf_config._experts_implementation == "grouped_mm"
