"""Real checkpoints' configurations and weight names, without their weights."""

import json

import pytest
import torch
from helpers import REAL

from models.checkpoint import empty_network, stored_parts, stored_shape, weights_of
from models.families import find_family

LAYOUTS = REAL / "layouts"
pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason=f"{LAYOUTS} is absent")


@pytest.mark.parametrize(
    ("name", "parameters"), [("SDAR-1dot7B-Chat", 2.03e9), ("SDAR-4B-Chat", 4.41e9), ("SDAR-8B-Chat", 8.19e9)]
)
def test_names_and_shapes_on_the_meta_device(name, parameters):
    config = json.loads((LAYOUTS / name / "config.json").read_text())
    family = find_family(config, None, name)
    weights = empty_network(family, config).state_dict()
    total = sum(weight.numel() for weight in weights.values())
    assert total == pytest.approx(parameters, rel=0.01)
    layers, hidden, heads = (config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    assert weights[f"model.layers.{layers - 1}.self_attn.q_proj.weight"].shape == (heads * config["head_dim"], hidden)
    assert weights["lm_head.weight"].shape == (config["vocab_size"], hidden)
    index = LAYOUTS / name / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text())
        assert set(listed["weight_map"]) == set(weights)
        assert listed["metadata"]["total_size"] == 2 * total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LLaDA2.0-mini", "LLaDA2.1-mini"])
def test_names_and_shapes_of_llada2(name):
    """2.0 keeps the router's bias in bf16, 2.1 in fp32."""
    config = json.loads((LAYOUTS / name / "config.json").read_text())
    family = find_family(config, None, name)
    weights = weights_of(empty_network(family, config))
    parts = stored_parts(weights, family, config)
    listed = json.loads((LAYOUTS / name / "model.safetensors.index.json").read_text())
    assert set(parts) == set(listed["weight_map"]) and len(parts) == 14_813
    sizes = {stored: torch.Size(stored_shape(weights, pieces)).numel() for stored, pieces in parts.items()}
    biases = sum(size for stored, size in sizes.items() if stored.endswith("expert_bias"))
    assert biases == 19 * 256 and sum(sizes.values()) == sum(weight.numel() for weight in weights.values())
    assert listed["metadata"]["total_size"] == 2 * sum(sizes.values()) + (2 * biases if "2.1" in name else 0)
