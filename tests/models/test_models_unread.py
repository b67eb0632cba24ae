"""Weights that stay in their files: right when they are read, no memory before."""

import pytest
import torch
from helpers import tiny_checkpoint
from memory_meter import held

from models import load_model, load_value_model
from models.unread import is_unread, read_in_place, weight_of


@pytest.mark.parametrize("family", ["sdar", "dream", "llada", "sdar_moe"])
def test_unread_weights_are_those_that_loading_reads(tmp_path, family):
    tiny_checkpoint(tmp_path, family)
    unread, want = load_model(tmp_path, unread=True), dict(load_model(tmp_path).named_parameters())
    assert [name for name, _ in unread.named_parameters()] == list(want)
    assert held(*unread.parameters()) == 4 * len(want)
    for name, parameter in unread.named_parameters():
        assert is_unread(parameter) and parameter.shape == want[name].shape
        assert torch.equal(weight_of(parameter), want[name]) and is_unread(parameter), name
    read_in_place(unread.lm_head.weight)
    assert not is_unread(unread.lm_head.weight) and torch.equal(unread.lm_head.weight, want["lm_head.weight"])


def test_a_tied_head_is_read_once_and_types_are_those_asked_for(tmp_path):
    tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    unread = load_model(tmp_path, dtype="bfloat16", unread=True)
    assert unread.lm_head.weight is unread.model.embed_tokens.weight
    want = load_model(tmp_path, dtype="bfloat16")
    assert torch.equal(weight_of(unread.lm_head.weight), want.lm_head.weight)


def test_an_unread_value_model_has_its_head_at_once(tmp_path):
    tiny_checkpoint(tmp_path / "base")
    value = load_value_model(tmp_path / "base")
    with torch.no_grad():
        value.value_head.weight.fill_(0.5)
    value.save(tmp_path / "value")
    unread = load_value_model(tmp_path / "value", unread=True)
    assert torch.equal(unread.value_head.weight, value.value_head.weight) and not is_unread(unread.value_head.weight)
    assert torch.equal(weight_of(unread.base.lm_head.weight), value.base.lm_head.weight)


def test_what_does_not_fit_is_an_error_before_anything_is_read(tmp_path):
    tiny_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"vocab_size": 64', '"vocab_size": 96')
    )
    with pytest.raises(ValueError, match="misshapen"):
        load_model(tmp_path, unread=True)
