"""Every family against the reference: logits, names and numbers in and out, what is read from real files."""

import json
import logging
import shutil

import pytest
import torch
from helpers import FAMILIES, GOLDEN, REAL, TINY_CONFIGS, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

from models import load_model
from models.attention import Masked
from models.checkpoint import empty_network, stored_parts, stored_shape
from models.families import families, find_family
from models.folder import weight_names
from models.tiny import tiny_folder

NEW = ("dream", "llada", "llada2", "mmada", "sdar_moe")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")


@pytest.fixture(scope="module", params=NEW)
def golden(request):
    folder = GOLDEN / request.param
    return folder, load_model(folder), load_file(folder / "logits.safetensors")


def close(got, want):
    torch.testing.assert_close(got, want, atol=4e-5, rtol=0)


def test_logits_are_the_references(golden):
    _, model, vectors = golden
    ids = vectors["input_ids"]
    if model.attention == "full":
        close(model.logits(ids), vectors["logits_full"])
        close(model.logits(ids[1:]), vectors["logits_full"][1:])
        with pytest.raises(ValueError, match="full attention"):
            model.logits(ids, block_size=4)
        return
    close(model.logits(ids, block_size=4), vectors["logits_block4"])
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        close(model.lm_head(model.hidden(ids, positions, Masked(None))), vectors["logits_full"])
        hidden = model.hidden(vectors["input_ids_dup"], vectors["position_ids_dup"], Masked(vectors["mask_dup8"]))
        close(model.lm_head(hidden), vectors["logits_dup8"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_names_shapes_and_numbers_come_out(golden, tmp_path, dtype):
    folder, _, vectors = golden
    model = load_model(folder, dtype=dtype)
    model.save(tmp_path)
    original, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in original.items()}
    wanted = {k: v if k.endswith("expert_bias") else v.to(getattr(torch, dtype)) for k, v in original.items()}
    assert all(torch.equal(saved[k], v) and saved[k].dtype == v.dtype for k, v in wanted.items())
    ids = vectors["input_ids"]
    assert torch.equal(load_model(tmp_path, dtype=dtype).logits(ids), model.logits(ids))
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path))
    assert {k: v for k, v in before.items() if k != "dtype"} | {"torch_dtype": dtype} == after


def test_what_a_checkpoint_says_about_itself(golden):
    folder, model, _ = golden
    wanted = {
        "dream": ("full", True, 1, 256),
        "llada": ("full", False, 1, 256),
        "llada2": ("block", False, 32, 256),
        "mmada": ("full", False, 1, 256),
        "sdar_moe": ("block", False, 4, 256),
    }
    assert model.family == folder.name
    assert (model.attention, model.logit_shift, model.block_size, model.text_vocab_size) == wanted[folder.name]
    assert (model.mask_id, model.eos_ids, model.pad_id, model.end_of_response_id) == (255, (2,), 0, 2)
    assert model.hf_config.vocab_size == (320 if folder.name == "mmada" else 256)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_learns_is_saved_and_comes_back(family, tmp_path):
    """One gradient step moves every tensor; the file holds the moved ones."""
    model = load_model(tiny_checkpoint(tmp_path / "in", family))
    ids = torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(8, 16)
    model(ids, positions, Masked(None), torch.arange(128), ids.flatten()).sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(parameter.grad, alpha=1e-3)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if not name.startswith("vision.")]  # frozen by default
    model.save(tmp_path / "out")
    names = [set(load_file(tmp_path / f / "model.safetensors")) for f in ("in", "out")]
    assert names[0] == names[1]
    assert torch.equal(load_model(tmp_path / "out").logits(ids), model.logits(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_does_not_depend_on_the_batch(family):
    model = tiny_model(family)
    ids = torch.randint(3, 64, (7, 24), generator=torch.Generator().manual_seed(3))
    together = model.logits(ids)
    for i in range(len(ids)):
        torch.testing.assert_close(model.logits(ids[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_come_from_the_seed(family, tmp_path):
    tiny_folder(tmp_path, family)
    ids = torch.arange(8)[None]
    a, b, c = (load_model(tmp_path, random_init_seed=seed).logits(ids) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_has_the_same_names_and_rounded_weights(family):
    model = tiny_model(family)
    twin = model.copy_as(torch.bfloat16)
    originals = dict(model.named_parameters())
    assert all(torch.equal(p, originals[name].bfloat16()) for name, p in twin.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_is_missed_by_the_checkpoints_own_name(family, tmp_path):
    tiny_checkpoint(tmp_path, family)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[len(weights) // 2]
    shape = list(weights[name].shape)
    save_file({k: v for k, v in weights.items() if k != name} | {"model.extra": torch.zeros(1)}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert f"missing ['{name}']; unexpected ['model.extra']" in str(error.value)
    weights[name] = torch.zeros([n + 1 for n in shape])
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="misshapen") as error:
        load_model(tmp_path)
    assert f"{name} {[n + 1 for n in shape]}" in str(error.value)


@pytest.mark.parametrize("family", ["dream", "sdar_moe"])
@pytest.mark.parametrize(
    ("flag", "said"), [("use_sliding_window", "over a window"), ("use_mrope", "several dimensions")]
)
def test_flags_that_are_refused(family, flag, said, tmp_path):
    if flag == "use_mrope" and family != "dream":
        pytest.skip("a flag of Dream's only")
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIGS[family], flag: True}))
    with pytest.raises(ValueError, match=f"{flag}: true.*{said}"):
        load_model(tmp_path)


def test_names_of_families():
    assert families()["diffucoder"] is families()["dream"]
    names = {
        "sdar",
        "trado",
        "sdar_moe",
        "dream",
        "diffucoder",
        "llada",
        "llada2",
        "mmada",
        "lladav",
        "diffusion_gemma",
    }
    assert names == set(families())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_disagrees_with_the_checkpoint(family, tmp_path):
    tiny_checkpoint(tmp_path, family)
    other = "dream" if family != "dream" else "llada"
    with pytest.raises(ValueError, match=f"model_base '{other}' and .* disagree"):
        load_model(tmp_path, model_base=other)


@pytest.mark.parametrize("sparse", [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}])
def test_dense_layers_among_experts(sparse, tmp_path):
    model = load_model(tiny_checkpoint(tmp_path, "sdar_moe", **sparse))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(model.checkpoint_weights())
    assert sum(name.endswith("mlp.gate.weight") for name in names) == 1
    assert sum(".experts." in name for name in names) == 3 * 4
    assert model.logits(torch.arange(8)[None]).isfinite().all()


def test_saved_experts_share_no_memory_with_each_other(tmp_path):
    """Views of one fused tensor must reach the file once each, under every name."""
    model = tiny_model("sdar_moe")
    model.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    fused = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    for e in range(4):
        for i, part in enumerate(("gate_proj", "up_proj")):
            got = saved[f"model.layers.0.mlp.experts.{e}.{part}.weight"]
            assert torch.equal(got, fused[e, i * 24 : (i + 1) * 24])


def test_pytorch_files_are_read_as_data(tmp_path):
    tiny_checkpoint(tmp_path, "llada")
    ids = torch.arange(8)[None]
    want = load_model(tmp_path).logits(ids)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(load_model(tmp_path).logits(ids), want)
    torch.save({"model.bad": shutil.rmtree}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read"):
        load_model(tmp_path)


def small(config):
    """A real configuration at a size that fits a test; special ids and flags as they are."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return config | sizes | {"num_key_value_heads": 1} | ({"head_dim": 16} if "head_dim" in config else {})


def real_model(folder, tokenizer, layout):
    for path in (REAL / "tokenizers" / tokenizer).iterdir():
        shutil.copyfile(path, folder / path.name)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(REAL / "layouts" / layout / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    extra = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2} if "num_experts" in config else {}
    (folder / "config.json").write_text(json.dumps(small(config) | extra))
    return load_model(folder, random_init_seed=0)


@pytest.mark.slow
@needs_real
def test_dreams_real_tokenizer(tmp_path):
    model = real_model(tmp_path, "dream", "Dream-v0-Instruct-7B")
    assert (model.mask_id, model.eos_ids, model.pad_id) == (151666, (151643, 151645), 151643)
    assert model.end_of_response_id == 151645
    assert model.text_vocab_size == 151667 < model.hf_config.vocab_size == 152064  # what has no name is never drawn
    tokenizer = model.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<|mask|>", "<|im_end|>", "<|beginoftext|>"]) == [151666, 151645, 151665]
    text = "<|im_start|>user\nWhat is 12 + 34?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == 151644 and tokenizer.decode(ids) == text
    chat = [{"role": "user", "content": "What is 12 + 34?"}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False).endswith(text)


@pytest.mark.slow
@needs_real
@pytest.mark.parametrize("layout", ["SDAR-8B-Chat", "SDAR-30B-A3B-Chat"])
def test_sdars_real_tokenizer(tmp_path, layout):
    model = real_model(tmp_path, "sdar", layout)
    assert (model.mask_id, set(model.eos_ids), model.pad_id) == (151669, {151643, 151645}, 151643)
    assert (model.end_of_response_id, model.block_size) == (151645, 4)
    assert model.text_vocab_size == len(model.tokenizer) <= model.hf_config.vocab_size


@pytest.mark.slow
@needs_real
def test_both_tokenizers_read_text_alike():
    """Two files of one vocabulary: what is no special token has the same ids."""
    from transformers import Qwen2Tokenizer

    dream, sdar = (Qwen2Tokenizer.from_pretrained(REAL / "tokenizers" / name) for name in ("dream", "sdar"))
    text = "Let $x^2 + 3x - 4 = 0$; naïve 数学 \t\n  def f(a, b):\n    return a ** b  # 1234567\n\\boxed{42}"
    assert dream.encode(text) == sdar.encode(text)
    assert dream.decode(dream.encode(text)) == text


@needs_real
@pytest.mark.parametrize("name", ["Dream-v0-Instruct-7B", "SDAR-30B-A3B-Chat", "SDAR-8B-Chat", "SDAR-4B-Chat"])
def test_real_names_and_shapes(name):
    folder = REAL / "layouts" / name
    config = json.loads((folder / "config.json").read_text())
    family = find_family(config, None, name, weight_names(folder))
    weights = dict(empty_network(family, config).named_parameters())
    parts = stored_parts(weights, family, config)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(parts) == set(index["weight_map"])
    sizes = [torch.Size(stored_shape(weights, pieces)).numel() for pieces in parts.values()]
    assert index["metadata"]["total_size"] == 2 * sum(sizes) == 2 * sum(w.numel() for w in weights.values())


@pytest.fixture
def transformers_says():
    """Records that transformers logs during the test."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def fast_tokenizer(folder, **config):
    """A tokenizer.json of seven words with LLaDA's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"<|eot_id|>": 60, "<|mdm_mask|>": 61, "<|endoftext|>": 62}
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "eos": 2, "b": 3} | special, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["llada", "mmada"])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "SomethingOfTheirOwn", None])
def test_lladas_special_tokens_by_name(family, named, tmp_path, transformers_says):
    code = {"auto_map": {"AutoTokenizer": ["tokenization_x.SomethingOfTheirOwn", None]}}
    fast_tokenizer(tmp_path, **code, **({"tokenizer_class": named} if named else {}))
    config = {k: v for k, v in TINY_CONFIGS[family].items() if k not in ("mask_token_id", "pad_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path, random_init_seed=0)
    assert (model.mask_id, model.eos_ids, model.pad_id, model.end_of_response_id) == (61, (2, 62, 60), 62, 60)
    assert model.text_vocab_size == 63
    assert model.tokenizer.encode("b a <|mdm_mask|>") == [3, 1, 61]
    assert not transformers_says


@pytest.mark.parametrize("family", ["llada", "mmada"])
def test_the_embedding_of_the_pad_id_learns_like_any_other(family):
    """LLaDA's pad id is its end of text, and the original's embedding knows no padding."""
    model = tiny_model(family)
    ids, positions = torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None]
    model(ids, positions, Masked(None), torch.arange(4), torch.arange(4)).sum().backward()
    assert model.get_parameter("model.embed_tokens.weight").grad[0].abs().sum() > 0
