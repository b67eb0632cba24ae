"""Logits of the golden checkpoints against those of the original modeling code."""

import json

import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file

from models import load_model
from models.attention import Masked, Packed, Span, block_causal_mask


@pytest.fixture(scope="module")
def vectors(golden):
    folder, model = golden
    return load_file(folder / "logits.safetensors"), model


def close(got, want):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def under_mask(model, ids, positions, mask):
    with torch.no_grad():
        return model.lm_head(model.hidden(ids, positions, Masked(mask)))


@pytest.mark.parametrize("name", ["full", "block4", "block8"])
def test_logits_under_an_explicit_mask(vectors, name):
    golden, model = vectors
    if f"mask_{name}" not in golden:
        pytest.skip(f"this checkpoint has no {name} vectors")
    ids = golden["input_ids"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    want = golden[f"logits_{name}"]
    close(under_mask(model, ids, positions, golden[f"mask_{name}"]), want)
    close(under_mask(model, ids, positions, golden[f"mask_{name}"].expand(len(ids), 1, -1, -1)), want)
    if name == "full":
        close(under_mask(model, ids, positions, None), want)


@pytest.mark.parametrize("block_size", [4, 8])
def test_logits_under_the_familys_own_attention(vectors, block_size):
    golden, model = vectors
    if f"logits_block{block_size}" not in golden:
        pytest.skip(f"this checkpoint has no block {block_size} vectors")
    want = golden[f"logits_block{block_size}"]
    close(model.logits(golden["input_ids"], block_size=block_size), want)
    if block_size == model.block_size:
        close(model.logits(golden["input_ids"]), want)
    mask = block_causal_mask(golden["input_ids"].shape[1], block_size)
    assert torch.equal(mask, golden[f"mask_block{block_size}"])


@pytest.mark.parametrize("block_size", [4, 8])
def test_prompt_clean_and_noisy_copies_in_one_row(vectors, block_size):
    golden, model = vectors
    if f"mask_dup{block_size}" not in golden:
        pytest.skip(f"this checkpoint has no dup {block_size} vectors")
    ids, positions = golden["input_ids_dup"], golden["position_ids_dup"]
    close(under_mask(model, ids, positions, golden[f"mask_dup{block_size}"]), golden[f"logits_dup{block_size}"])


def test_rows_packed_on_one_axis_see_each_other_as_little_as_apart(vectors):
    golden, model = vectors
    ids, mask = golden["input_ids"], golden["mask_block4"]
    lengths = [20, 12]
    packed = torch.cat([row[:n] for row, n in zip(ids, lengths, strict=True)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    want = torch.cat([golden["logits_block4"][i, :n] for i, n in enumerate(lengths)])
    whole = [[Span(0, n, mask[:n, :n])] for n in lengths]
    cut = [[Span(cut, 0, mask[:cut, :cut]), Span(0, n - cut, mask[cut:n, cut:n])] for cut, n in ((8, 20), (4, 12))]
    for rows in (whole, cut):
        with torch.no_grad():
            close(model.lm_head(model.hidden(packed, positions, Packed(rows)))[0], want)


def test_log_probabilities_at_chosen_positions(vectors, monkeypatch):
    golden, model = vectors
    ids = golden["input_ids"]
    B, L = ids.shape
    positions = torch.arange(L).expand(B, L)
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(B * L, generator=generator)[:17]
    targets = torch.randint(256, (17,), generator=generator)
    layout = Masked(golden["mask_block4"])
    want = golden["logits_block4"].flatten(0, 1)[index].double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    whole = model(ids, positions, layout, index, targets)
    close(whole.double(), want)
    whole.sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("models.head.LOGITS_CHUNK_ELEMENTS", 5 * 256)
    pieces = model(ids, positions, layout, index, targets)
    close(pieces.double(), want)
    pieces.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradient[name], atol=1e-5, rtol=1e-4)
    model.zero_grad()


def test_what_the_checkpoint_says_about_itself(golden):
    folder, model = golden
    assert (model.family, model.attention, model.logit_shift, model.block_size) == ("sdar", "block", False, 4)
    assert (model.mask_id, model.eos_ids, model.pad_id, model.tokenizer) == (255, (2,), 0, None)
    config = json.loads((folder / "config.json").read_text())
    assert ("lm_head.weight" in model.checkpoint_weights()) == (not config["tie_word_embeddings"])


def test_attention_that_would_ignore_the_layout_is_noticed():
    """The configuration is shared with whoever makes another model of it, and may come back changed."""
    model = load_model(GOLDEN / "sdar")
    model.hf_config._attn_implementation = "sdpa"
    with pytest.raises(AssertionError, match="ignore the layout"):
        model.logits(torch.zeros(1, 4, dtype=torch.long))
