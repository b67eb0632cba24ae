"""LLaDA and MMaDA: flags of config.json that are folded into a Llama network, and those that are refused."""

import json

import pytest
import torch
from helpers import GOLDEN, REAL, TINY_CONFIGS, tiny_model
from naive_llada import NaiveLLaDA, random_weights
from safetensors.torch import load_file, save_file

from models import load_model
from models.checkpoint import empty_network, stored_parts, stored_shape
from models.families import find_family
from models.folder import weight_names

IDS = torch.tensor([[5, 9, 1, 33, 7, 1, 1, 60, 12, 3], [40, 1, 2, 17, 17, 1, 21, 6, 1, 50]])
SEQUENTIAL = {"block_type": "sequential", "activation_type": "swiglu"}
FOLDED = {
    "nothing": {},
    "embedding_size": {"vocab_size": 61, "embedding_size": 64},
    "no_embedding_size": {"embedding_size": None},
    "weight_tying": {"weight_tying": True},
    "grouped_heads": {"n_kv_heads": 2},
    "multi_query": {"n_kv_heads": None, "multi_query_attention": True},
    "all_heads": {"n_kv_heads": None},
    "mlp_ratio": {"mlp_hidden_size": None, "mlp_ratio": 3},
    "gelu": {"activation_type": "gelu"},
    "relu": {"activation_type": "relu"},
    "qkv_bias": {"include_qkv_bias": True},
    "bias": {"include_bias": True},
    "bias_tied": {"include_bias": True, "weight_tying": True},
    "block_groups": {"block_group_size": 2, "n_layers": 4},
    "uneven_block_groups": {"block_group_size": 2, "n_layers": 3},
    "scale_logits": {"scale_logits": True},
    "scale_logits_tied": {"scale_logits": True, "weight_tying": True},
    "scale_logits_biased": {"scale_logits": True, "include_bias": True},
    "input_emb_norm": {"input_emb_norm": True},
    "input_emb_norm_tied": {"input_emb_norm": True, "weight_tying": True},
    "gemma_rms": {"layer_norm_type": "gemma_rms"},
    "gemma_rms_scaled_tied": {
        "layer_norm_type": "gemma_rms",
        "scale_logits": True,
        "input_emb_norm": True,
        "weight_tying": True,
    },
    "sequential": SEQUENTIAL,
    "sequential_grouped_heads": {**SEQUENTIAL, "n_kv_heads": 2, "include_qkv_bias": True},
    "everything": {
        **SEQUENTIAL,
        **{"n_kv_heads": 1, "include_bias": True, "bias_for_layer_norm": False, "layer_norm_type": "gemma_rms"},
        **{"scale_logits": True, "input_emb_norm": True, "block_group_size": 2, "embedding_size": 72},
    },
}


def write(folder, family="llada", **changes):
    flags = {**TINY_CONFIGS[family], **changes}
    weights = random_weights(flags)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(flags))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return flags, weights


def close(got, want):
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llada", "mmada"])
def test_the_naive_forward_is_the_references(family):
    golden = load_file(GOLDEN / family / "logits.safetensors")
    flags = json.loads((GOLDEN / family / "config.json").read_text())
    naive = NaiveLLaDA(flags, load_file(GOLDEN / family / "model.safetensors"))
    close(naive.logits(golden["input_ids"]), golden["logits_full"].double())


@pytest.mark.parametrize("changes", FOLDED.values(), ids=FOLDED.keys())
def test_a_flag_is_folded_and_unfolded(tmp_path, changes):
    flags, weights = write(tmp_path / "in", **changes)
    model = load_model(tmp_path / "in")
    close(model.logits(IDS), NaiveLLaDA(flags, weights).logits(IDS))
    model.save(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in weights.items()}
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, atol=2e-7, rtol=2e-7)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == flags
    torch.testing.assert_close(load_model(tmp_path / "out").logits(IDS), model.logits(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["everything", "scale_logits_tied", "gemma_rms_scaled_tied", "qkv_bias", "bias"])
def test_what_is_trained_is_what_the_original_code_would_see(tmp_path, name):
    """Every parameter moves; the saved checkpoint, run by its flags, gives the trained network's logits."""
    flags, _ = write(tmp_path / "in", **FOLDED[name])
    model = load_model(tmp_path / "in")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    close(model.logits(IDS), NaiveLLaDA(flags, saved).logits(IDS))


def test_a_bfloat16_checkpoint_with_exact_folds_comes_back_bit_for_bit(tmp_path):
    """sqrt(d_model) = 8: the folds are exact in any precision."""
    _, weights = write(tmp_path / "in", d_model=64, scale_logits=True, input_emb_norm=True, include_bias=True)
    weights = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(weights, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    load_model(tmp_path / "in", dtype="bfloat16").save(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_norm_type": "default"}, "layer_norm_type: 'default'"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type: 'low_precision'"),
        ({"bias_for_layer_norm": True}, "bias_for_layer_norm: True"),
        ({"bias_for_layer_norm": None, "include_bias": True}, "bias_for_layer_norm: None"),
        ({"attention_layer_norm": True}, "attention_layer_norm: True"),
        ({"layer_norm_with_affine": False}, "layer_norm_with_affine: False"),
        ({"alibi": True}, "alibi: True"),
        ({"rope": False}, "rope: False"),
        ({"clip_qkv": 8.0}, "clip_qkv: 8.0"),
        ({"block_type": "parallel"}, "block_type: 'parallel'"),
        ({"block_type": "sequential"}, "activation_type: 'silu'"),
        ({"activation_type": "swiglu"}, "activation_type: 'swiglu'"),
        ({"alibi": True, "layer_norm_type": "default"}, "alibi: True, layer_norm_type: 'default'"),
        ({"n_kv_heads": 2, "multi_query_attention": True}, "n_kv_heads: 2 and multi_query_attention: True"),
    ],
)
@pytest.mark.parametrize("family", ["llada", "mmada"])
def test_a_flag_that_needs_other_modules_is_refused_by_name(tmp_path, family, changes, said):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIGS[family], **changes}))
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path)


def test_an_absent_flag_means_the_originals_default(tmp_path):
    flags = dict(TINY_CONFIGS["llada"])
    del flags["layer_norm_type"]
    (tmp_path / "config.json").write_text(json.dumps(flags))
    with pytest.raises(ValueError, match="layer_norm_type: 'default'"):
        load_model(tmp_path)


def test_dropout_is_reported_to_be_left_out(tmp_path, caplog):
    write(tmp_path, residual_dropout=0.1)
    load_model(tmp_path)
    assert "residual_dropout: 0.1; no dropout" in caplog.text


def test_biases_are_those_of_the_flags(tmp_path):
    write(tmp_path / "qkv", include_qkv_bias=True)
    write(tmp_path / "all", include_bias=True)
    qkv, every = (
        {n for n, _ in load_model(tmp_path / f).named_parameters() if n.endswith("bias")} for f in ("qkv", "all")
    )
    assert {name.split(".")[-2] for name in qkv} == {"q_proj", "k_proj", "v_proj"}
    assert {name.split(".")[-2] for name in every - qkv} == {"o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}


def test_tied_weights_stay_tied_and_a_head_in_the_file_is_left_out(tmp_path):
    _, weights = write(tmp_path / "in", weight_tying=True, input_emb_norm=True, scale_logits=True)
    head = {"model.transformer.ff_out.weight": weights["model.transformer.wte.weight"].clone()}
    save_file(weights | head, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path / "in")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(weights)


@pytest.mark.parametrize(
    ("family", "changes", "size"),
    [
        ("llada", {}, 64),
        ("llada", {"embedding_size": 128}, 64),
        ("mmada", {}, 64),
        ("mmada", {"num_new_special_tokens": 6}, 70),
        ("mmada", {"llm_vocab_size": None}, 64),
        ("sdar", {}, 64),
        ("dream", {}, 64),
    ],
)
def test_ids_that_are_no_text(family, changes, size):
    assert tiny_model(family, **changes).text_vocab_size == size


def llama_layout(folder, **changes):
    """LLaDA under Llama's names, as it is prepared for LLaDA-V: from the same network in LLaDA's own layout."""
    flags, weights = write(folder / "own")
    body = load_model(folder / "own")
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "hidden_size": flags["d_model"],
        "intermediate_size": flags["mlp_hidden_size"],
        "num_hidden_layers": flags["n_layers"],
        "num_attention_heads": flags["n_heads"],
        "num_key_value_heads": flags["n_kv_heads"],
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 512,
        "rms_norm_eps": flags["rms_norm_eps"],
        "rope_theta": flags["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "mask_token_id": 1,
        "torch_dtype": "float32",
        "vocab_size": 64,
        **changes,
    }
    target = folder / "llama"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file(body.state_dict(), target / "model.safetensors", metadata={"format": "pt"})
    return target, body


def test_the_layout_with_llamas_names_is_the_same_family(tmp_path):
    folder, body = llama_layout(tmp_path)
    model = load_model(folder)
    assert (model.family, model.attention, model.mask_id, model.eos_ids) == ("llada", "full", 1, (2,))
    assert torch.equal(model.logits(IDS), body.logits(IDS))
    model.save(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(body.state_dict())


def test_vision_weights_under_a_text_models_type_are_refused(tmp_path):
    folder, body = llama_layout(tmp_path)
    weights = {**body.state_dict(), "model.mm_projector.0.weight": torch.zeros(2, 2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"llada checkpoint, .*model\.mm_projector\.0\.weight.*reads images"):
        load_model(folder)


def test_a_checkpoint_that_reads_images_is_no_text_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llada", "vocab_size": 64}))
    with pytest.raises(ValueError, match="model_base 'llada' and .* disagree: its model_type is 'llava_llada'"):
        load_model(tmp_path, model_base="llada")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")
@pytest.mark.parametrize("name", ["LLaDA-8B-Instruct", "LLaDA-V"])
def test_real_names_and_shapes(name):
    folder = REAL / "layouts" / name
    config = json.loads((folder / "config.json").read_text())
    family = find_family(config, None, name, weight_names(folder))
    weights = dict(empty_network(family, config).named_parameters())
    parts = stored_parts(weights, family, config)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(parts) == set(index["weight_map"])
    shapes = [torch.Size(stored_shape(weights, pieces)) for pieces in parts.values()]
    assert index["metadata"]["total_size"] == 2 * sum(shape.numel() for shape in shapes)
