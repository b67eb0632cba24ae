"""The value head on the body of every family: what it reads, what is trained, and its folder on disk."""

import json

import pytest
import torch
from helpers import FAMILIES, random_prompts, tiny_checkpoint, tiny_model
from safetensors import safe_open

from models import ValueModel, load_model, load_value_model
from models.attention import Masked
from models.lora import Adapters


def values_of(model, ids, index):
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model(ids, positions, Masked(None), index, torch.zeros_like(index))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), request.param)


def test_a_value_is_the_head_times_the_hidden_state_read_there(folder):
    model = load_value_model(folder)
    ids, index = torch.tensor(random_prompts([9, 9])), torch.tensor([3, 0, 17])
    assert values_of(model, ids, index).tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        model.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    hidden = model.base.hidden(ids, torch.arange(9).expand(2, 9), Masked(None)).reshape(18, -1)
    values = values_of(model, ids, index)
    assert values.dtype == torch.float32
    assert torch.allclose(values, hidden[index] @ model.value_head.weight[0], atol=1e-5)
    values.sum().backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.startswith("base.vision.")} == {"base.lm_head.weight"}


def test_a_saved_value_model_is_a_checkpoint_with_its_head(folder, tmp_path):
    model = load_value_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save(tmp_path / "value")
    again = load_value_model(tmp_path / "value")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    with safe_open(tmp_path / "value" / "model.safetensors", "pt") as saved:
        with safe_open(folder / "model.safetensors", "pt") as base:
            assert set(saved.keys()) == {*base.keys(), "value_head.weight"}
        assert list(saved.get_slice("value_head.weight").get_shape()) == [1, 32]
    assert json.loads((tmp_path / "value" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


def test_a_value_model_is_not_taken_for_a_language_model(tmp_path):
    ValueModel(tiny_model("sdar")).save(tmp_path)
    with pytest.raises(ValueError, match="value_head"):
        load_model(tmp_path)


def test_a_tied_head_goes_on_learning_with_the_embedding():
    model = ValueModel(tiny_model("sdar", tie_word_embeddings=True))
    assert all(p.requires_grad for p in model.parameters())


def test_the_values_of_a_bf16_model_are_computed_in_fp32():
    exact, half = (ValueModel(tiny_model("sdar", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    torch.nn.init.normal_(exact.value_head.weight)
    half.value_head.weight.data.copy_(exact.value_head.weight)
    ids, index = torch.tensor(random_prompts([9])), torch.arange(9)
    values = values_of(half, ids, index)
    assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())
    assert torch.allclose(values, values_of(exact, ids, index), atol=0.5)


def test_adapters_become_part_of_a_value_model(folder, tmp_path):
    policy = load_model(folder)
    policy.add_adapters(Adapters(rank=2, alpha=4.0), folder, seed=0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    policy.save(tmp_path / "adapters")
    value = load_value_model(tmp_path / "adapters")
    value.save(tmp_path / "value")
    again = load_value_model(tmp_path / "value")
    ids, layout = torch.tensor([random_prompts([7])[0]]), Masked(None)
    positions = torch.arange(7)[None]
    hidden = policy.eval().hidden(ids, positions, layout)
    assert not torch.allclose(load_model(folder).hidden(ids, positions, layout), hidden, atol=1e-3)
    for model in (value, again):
        assert all(p.requires_grad for p in model.base.model.parameters())
        torch.testing.assert_close(model.base.hidden(ids, positions, layout), hidden, rtol=0, atol=1e-5)


def test_making_a_value_model_draws_nothing(tmp_path):
    tiny_checkpoint(tmp_path)
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    load_value_model(tmp_path)
    assert torch.equal(torch.rand(1), want)


def test_random_weights_of_a_folder_without_any(tmp_path):
    tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    first, second = (load_value_model(tmp_path, random_init_seed=seed) for seed in (5, 5))
    assert not first.value_head.weight.any()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
