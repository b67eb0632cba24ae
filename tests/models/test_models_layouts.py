"""Real checkpoints' configurations and weight names, without their weights."""

import json

import pytest
from helpers import REAL

from models.checkpoint import empty_network
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


@pytest.mark.parametrize("name", ["LLaDA2.0-mini", "LLaDA2.1-mini"])
def test_layouts_without_a_family_are_refused_by_name(name):
    config = json.loads((LAYOUTS / name / "config.json").read_text())
    with pytest.raises(ValueError, match=f"{name}.*{config['model_type']}"):
        find_family(config, None, name)
