"""DiffusionGemma's checkpoints, in transformers' own layout."""

import json

import pytest
import torch
import transformers
from helpers import random_prompts, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

from models import load_model
from models.attention import Masked
from models.families import find_family
from models.model import NO_MASK
from models.tiny import tiny_folder

FAMILY = "diffusion_gemma"


def saved(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_names_and_numbers_are_those_that_transformers_writes(tmp_path):
    mine = saved(tiny_checkpoint(tmp_path / "mine", FAMILY))
    transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "mine").save_pretrained(tmp_path / "its")
    its = saved(tmp_path / "its")
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_saved_bit_by_bit(dtype, tmp_path):
    before = saved(tiny_checkpoint(tmp_path / "in", FAMILY))
    load_model(tmp_path / "in", dtype=dtype).save(tmp_path / "out")
    after = saved(tmp_path / "out")
    assert before.keys() == after.keys()
    kind = getattr(torch, dtype)
    for name, tensor in before.items():
        is_buffer = after[name].dtype == torch.float32
        assert torch.equal(after[name], tensor if is_buffer else tensor.to(kind)), name
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("in", "out")]
    assert configs[0] | {"torch_dtype": dtype} == configs[1]


def test_encoder_decoder_and_head_are_one_weight():
    model = tiny_model(FAMILY)
    shared = [model.encoder.language_model.embed_tokens.weight, model.decoder.embed_tokens.weight, model.lm_head.weight]
    assert len({weight.data_ptr() for weight in shared}) == 1
    assert model.encoder.language_model.layers[1].mlp.up_proj.weight is model.decoder.layers[1].mlp.up_proj.weight
    assert not any(p.requires_grad for p in model.encoder.vision_tower.parameters())


def test_what_a_checkpoint_says_about_itself():
    model = tiny_model(FAMILY)
    assert (model.family, model.attention, model.block_size, model.mask_id) == (FAMILY, "block", 8, NO_MASK)
    assert (model.eos_ids, model.pad_id, model.text_vocab_size, model.hf_config.vocab_size) == ((2,), 0, 64, 64)


@pytest.mark.slow
def test_logits_are_those_of_transformers(tmp_path):
    model = load_model(tiny_checkpoint(tmp_path, FAMILY))
    reference = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path).eval()
    ids = torch.tensor(random_prompts([17]))
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(64, (1, 8), generator=generator)
    conditioning = torch.randn(1, 8, 64, generator=generator)
    cache, real = model.new_cache(), torch.ones(1, 17, dtype=torch.bool)
    with torch.no_grad():
        want = reference(input_ids=ids, decoder_input_ids=canvas, self_conditioning_logits=conditioning).logits
        model.encode(ids, real, torch.arange(17)[None], cache)
        seen = torch.ones(1, 25, dtype=torch.bool)
        got = model.capped_logits(model.denoise(canvas, conditioning, seen, torch.arange(17, 25)[None], cache))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_random_weights_come_from_the_seed(tmp_path):
    tiny_folder(tmp_path, FAMILY)
    a, b, c = (load_model(tmp_path, random_init_seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_what_masks_are_for_is_refused_by_name():
    with pytest.raises(ValueError, match="diffusion_gemma has no masked tokens"):
        tiny_model(FAMILY).hidden(torch.zeros(1, 4).long(), torch.arange(4)[None], Masked(None))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_word_embeddings": False}, "encoder, decoder and head of one weight"),
        ({"text_config": None}, "text_config: None where a mapping must stand"),
        ({"text_config": {"vocab_size": 64}}, "text_config without num_experts"),
    ],
)
def test_configs_that_are_refused(changes, said, tmp_path):
    tiny_folder(tmp_path, FAMILY, **changes)
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path, random_init_seed=0)


def test_a_transformers_without_the_network_is_named(monkeypatch, tmp_path):
    tiny_folder(tmp_path, FAMILY)
    monkeypatch.setitem(find_family({"model_type": FAMILY}, None, ".").__dict__, "model_class", "GoneForDiffusion")
    with pytest.raises(ValueError, match=r"transformers .* does not have \(GoneForDiffusion\): install 5.23"):
        load_model(tmp_path, random_init_seed=0)


def test_a_missing_weight_is_named(tmp_path):
    weights = saved(tiny_checkpoint(tmp_path, FAMILY))
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"missing \\['{name}'\\]"):
        load_model(tmp_path)


def test_a_chat_is_written_as_its_template_writes_it():
    """transformers' template without thinking: an empty thought stands before the answer."""
    chat = find_family({"model_type": FAMILY}, None, ".").chat
    turns = [("system", "S"), ("user", " a "), ("assistant", "b"), ("user", "c")]
    assert chat.conversation(turns) == (
        "<bos><|turn>system\nS<turn|>\n<|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n<|turn>user\nc<turn|>\n"
        "<|turn>model\n<|channel>thought\n<channel|>"
    )
