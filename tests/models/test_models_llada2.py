"""LLaDA2: what its config may say, its layout, the router's bias, its tokens and its chat."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import GOLDEN, TINY_CONFIGS, random_prompts, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

from data.templates import chat_family
from models import load_model
from models.attention import Masked
from models.checkpoint import kept_buffers
from models.experts import routers
from models.spec import check_block_size
from models.tiny import tiny_folder
from sample import Sampler, SamplingConfig
from train.distributed.masters import Masters
from train.setup.blocks import adopt_block_size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_bias": True}, "use_bias: True"),
        ({"num_shared_experts": 0}, "num_shared_experts: 0"),
        ({"num_shared_experts": None}, "num_shared_experts: None"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling:"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"score_function": "softmax"}, "score_function: 'softmax'"),
        ({"use_sliding_window": True}, "use_sliding_window: true"),
        ({"model_type": "llada2_moe_veomni"}, "merged form.*moe_convertor"),
    ],
)
def test_what_the_network_cannot_express_is_refused_by_name(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_model(tiny_folder(tmp_path, "llada2", **changes), random_init_seed=0)


BLOCKS = {"expert_capacity": 3, "block_size": 4}


def test_llada2_2_chooses_experts_for_a_block_together():
    """Each block's tokens take theirs from its own pool, of the experts with the highest scores of its tokens."""
    gate = tiny_model("llada2", **BLOCKS).model.layers[1].mlp.gate
    hidden = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    logits, weights, experts = gate(hidden)
    assert torch.equal(logits, tiny_model("llada2").model.layers[1].mlp.gate(hidden)[0])
    choice = (logits.sigmoid() + gate.e_score_correction_bias).tolist()
    for block in range(6):
        tokens = range(4 * block, 4 * block + 4)
        best = {e: max(choice[t][e] for t in tokens) for e in range(8)}
        pool = sorted(best, key=best.get)[-3:]
        for t in tokens:
            chosen = sorted(pool, key=lambda e, t=t: choice[t][e])[-2:]
            assert set(experts[t].tolist()) == set(chosen)
            plain = logits[t].sigmoid()[experts[t]]
            torch.testing.assert_close(weights[t], 2.5 * plain / plain.sum())
    for ragged in (hidden[0, :5].repeat(2, 1), hidden[:2, :6]):  # rows of 6 make 3 blocks, but not of one row each
        with pytest.raises(ValueError, match="(10|6) tokens: LLaDA2.2 routes blocks of 4"):
            gate(ragged)


def test_llada2_2_is_saved_copied_and_asks_for_whole_blocks(tmp_path):
    model = load_model(tiny_checkpoint(tmp_path / "in", "llada2", **BLOCKS))
    ids = torch.arange(3, 19)[None]
    assert not torch.equal(model.logits(ids), tiny_model("llada2").logits(ids))
    model.save(tmp_path / "out")
    assert torch.equal(load_model(tmp_path / "out").logits(ids), model.logits(ids))
    assert torch.equal(model.copy_as(torch.float32).logits(ids), model.logits(ids))
    with pytest.raises(ValueError, match="block_size 6: .*blocks of 4 tokens together.*Take a multiple of 4"):
        Sampler(model, SamplingConfig(block_size=6, max_new_tokens=8))
    with pytest.raises(ValueError, match="expert_capacity: 9, which must be from 2 to 8"):
        load_model(tiny_folder(tmp_path / "bad", "llada2", **BLOCKS | {"expert_capacity": 9}), random_init_seed=0)


def windows(model):
    return [router.block_size for router in routers(model).values()]


def test_training_in_larger_blocks_leaves_the_window_of_llada2_2s_routers(tmp_path):
    """`block_size` in config.json says both: a checkpoint of larger blocks keeps the window under a name of its own."""
    model = load_model(tiny_checkpoint(tmp_path / "in", "llada2", **BLOCKS))
    ids = torch.arange(3, 19)[None]
    adopt_block_size(model, 8)
    model.save(tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert (again.block_size, windows(again)) == (8, [4])
    assert torch.equal(again.logits(ids), model.logits(ids))
    adopt_block_size(again, 12)
    again.save(tmp_path / "more")
    assert windows(load_model(tmp_path / "more")) == [4]
    with pytest.raises(ValueError, match="block_size 6: .*Take a multiple of 4"):
        check_block_size(again.spec, 6)
    plain = load_model(tiny_checkpoint(tmp_path / "plain", "llada2", block_size=4))
    adopt_block_size(plain, 8)
    plain.save(tmp_path / "plain_out")
    assert not {"routing_block_size"} & json.loads((tmp_path / "plain_out" / "config.json").read_text()).keys()


def test_the_rest_of_llada2_2s_last_block_counts_as_masks():
    model = tiny_model("llada2", **BLOCKS)
    ids = torch.arange(3, 17).reshape(2, 7)
    whole = torch.cat([ids, torch.full((2, 1), model.mask_id)], 1)
    assert torch.equal(model.logits(ids), model.logits(whole)[:, :7])
    assert torch.equal(model.logits(ids, block_size=8), model.logits(whole, block_size=8)[:, :7])


def test_llada2_2_without_a_cache_gives_the_same_log_probabilities_in_deterministic_mode():
    """Deterministic steps run all of the slots' capacity, of which 17 tokens are asked for here."""
    model = tiny_model("llada2", **BLOCKS)
    config = SamplingConfig(max_new_tokens=6, block_size=4, steps_per_block=2, cache="none", stop_ids=[], max_slots=4)
    prompts = random_prompts([5, 8, 3])
    want = Sampler(model, config).generate(prompts)
    got = Sampler(model, replace(config, deterministic=True)).generate(prompts)
    for a, b in zip(got, want, strict=True):
        assert (a.canvas_ids, a.canvas_step_map) == (b.canvas_ids, b.canvas_step_map)
        assert a.canvas_logprobs == pytest.approx(b.canvas_logprobs, abs=1e-5)


@pytest.mark.parametrize("changes", [{"use_qkv_bias": True}, {"head_dim": None, "num_key_value_heads": 1}])
def test_queries_keys_and_values_lie_in_one_tensor(changes, tmp_path):
    config = {name: value for name, value in (TINY_CONFIGS["llada2"] | changes).items() if value is not None}
    tiny_checkpoint(tmp_path / "in", "llada2")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    (tmp_path / "in" / "model.safetensors").unlink()
    model = load_model(tmp_path / "in", random_init_seed=1)
    model.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    layer = model.model.layers[1].self_attn
    for kind in ("weight", "bias") if "use_qkv_bias" in changes else ("weight",):
        want = torch.cat([getattr(projection, kind) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)])
        assert torch.equal(stored[f"model.layers.1.attention.query_key_value.{kind}"], want)
    ids = torch.arange(3, 15)[None]
    assert torch.equal(load_model(tmp_path / "out").logits(ids), model.logits(ids))


def test_a_top_1_router_gives_the_score_itself_and_a_head_may_be_tied(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llada2", num_experts_per_tok=1, tie_word_embeddings=True)
    model = load_model(folder)
    gate = model.model.layers[1].mlp.gate
    logits, weights, indices = gate(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(weights, 2.5 * logits.sigmoid().gather(1, indices))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def biases(model):
    found = kept_buffers(model)
    assert found and all(name.endswith("mlp.gate.e_score_correction_bias") for name in found)
    return found


def test_a_buffer_of_the_root_module_has_no_dot_before_its_name():
    root = torch.nn.Linear(2, 2)
    root.register_buffer("count", torch.zeros(1))
    root.register_buffer("scratch", torch.zeros(1), persistent=False)
    assert list(kept_buffers(root)) == ["count"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_routers_bias_is_read_saved_and_never_rounded(stored, tmp_path):
    """Rounding it sends tokens to other experts. Files of 2.0 hold it in bf16, those of 2.1 in fp32."""
    folder = shutil.copytree(GOLDEN / "llada2", tmp_path / "in")
    if stored != torch.float32:
        save_file({k: v.to(stored) for k, v in load_file(folder / "model.safetensors").items()}, tmp_path / "x")
        (tmp_path / "x").replace(folder / "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    want = {k: v.float() for k, v in weights.items() if k.endswith("expert_bias")}
    model = load_model(folder, dtype="bfloat16")
    assert all(buffer.dtype == torch.float32 and buffer.abs().sum() > 0 for buffer in biases(model).values())
    for copy in (model, model.copy_as(torch.float16), load_model(folder, dtype="bfloat16", unread=True)):
        assert all(torch.equal(biases(copy)[name], bias) for name, bias in biases(model).items())
    model.save(tmp_path / "out", dtype=torch.float16)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(saved[name], bias) and saved[name].dtype == torch.float32 for name, bias in want.items())
    assert saved["lm_head.weight"].dtype == torch.float16


def test_the_routers_bias_is_not_trained_and_bf16_masters_leave_it():
    model = tiny_model("llada2")
    before = {name: bias.clone() for name, bias in biases(model).items()}
    assert not set(before) & set(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masters = Masters(model, optimizer)
    ids, positions = torch.arange(3, 19)[None], torch.arange(16)[None]
    model(ids, positions, Masked(None), torch.arange(16), ids[0]).sum().backward()
    masters.step(optimizer)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(bias, before[name]) and bias.dtype == torch.float32 for name, bias in biases(model).items())


def test_a_checkpoint_without_the_bias_is_refused(tmp_path):
    tiny_checkpoint(tmp_path, "llada2")
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "expert_bias" not in k}, tmp_path / "x")
    (tmp_path / "x").replace(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing .'model.layers.1.mlp.gate.expert_bias'"):
        load_model(tmp_path)


def real_like_tokenizer(folder):
    """A tokenizer.json of a few words with LLaDA2's special tokens at small ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 3, "b": 4}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<role>", "</role>", "<|endoftext|>", "<|role_end|>", "<|mask|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_both_stop_ids_the_mask_and_the_pad_come_from_the_tokenizer(tmp_path):
    """config.json of the published files names none of them but the pad."""
    config = {
        k: v for k, v in TINY_CONFIGS["llada2"].items() if k not in ("mask_token_id", "eos_token_id", "block_size")
    }
    tiny_folder(tmp_path, "llada2")
    real_like_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    model = load_model(tmp_path, random_init_seed=0)
    ids = {name: model.tokenizer.convert_tokens_to_ids(name) for name in ("<|mask|>", "<|endoftext|>", "<|role_end|>")}
    assert model.mask_id == ids["<|mask|>"] and model.eos_ids == (ids["<|endoftext|>"], ids["<|role_end|>"])
    assert (model.end_of_response_id, model.pad_id, model.block_size) == (ids["<|role_end|>"], 7, 32)


def test_conversations_are_written_as_the_checkpoints_template_has_them():
    chat = chat_family("llada2")
    asked = "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    off = "detailed thinking off<|role_end|>"
    assert chat.conversation([("user", "Hi")]) == f"<role>SYSTEM</role>{off}{asked}"
    assert chat.conversation([("system", "Be brief."), ("user", "Hi")]) == f"<role>SYSTEM</role>Be brief.\n{off}{asked}"
    turns = [("user", "Hi"), ("assistant", "Yes"), ("user", "Hi")]
    assert chat.conversation(turns) == f"<role>SYSTEM</role>{off}{asked}Yes<|role_end|>{asked}"


@pytest.mark.parametrize("block_size", [4, 8])
def test_the_training_layout_gives_the_originals_loss(block_size):
    """dFactory's noisy and clean copy in one sequence: -log p at the masked positions, and their mean."""
    model, golden = load_model(GOLDEN / "llada2"), load_file(GOLDEN / "llada2" / "logits.safetensors")
    ids, labels = golden["input_ids_dup"], golden["labels_dup"]
    masked = labels != -100
    row, place = masked.nonzero(as_tuple=True)
    index = row * ids.shape[1] + place
    layout = Masked(golden[f"mask_dup{block_size}"])
    with torch.no_grad():
        logp = model(ids, golden["position_ids_dup"], layout, index, labels[masked])
    torch.testing.assert_close(-logp, golden[f"token_loss_dup{block_size}"][masked], atol=5e-5, rtol=0)
    means = torch.stack([-logp[row == i].mean() for i in range(len(ids))])
    torch.testing.assert_close(means, golden[f"loss_dup{block_size}"], atol=2e-5, rtol=0)
