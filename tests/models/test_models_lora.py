"""Adapters: nothing changes until they are trained, folders of them load by themselves, merged they are the weights."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import tiny_checkpoint
from safetensors import safe_open
from torch import nn

from configs.load import REPOSITORY
from models import fingerprint as fingerprints
from models import load_model, load_value_model, lora
from models.fingerprint import BASE, fingerprint
from models.lora import Adapters, TokenDropout
from models.merge import merge

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.fixture(params=["sdar", "dream", "llada", "llada2", "sdar_moe"])
def adapted(request, tmp_path):
    """(folder of the base, model with adapters that change something)."""
    base = tmp_path / "base"
    tiny_checkpoint(base, request.param)
    model = load_model(base)
    model.add_adapters(Adapters(rank=4, alpha=8.0, targets=("q_proj", "o_proj")), base, seed=0)
    return base, model


def disturb(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(adapted):
    base, model = adapted
    assert torch.equal(model.logits(IDS), load_model(base).logits(IDS))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == Adapters(
        4, 8.0, targets=("q_proj", "o_proj")
    ).count(load_model(base).model)


def test_a_folder_of_adapters_loads_like_a_checkpoint(adapted, tmp_path):
    base, model = adapted
    disturb(model)
    model.save(tmp_path / "adapters")
    with safe_open(tmp_path / "adapters" / lora.WEIGHTS, "pt") as file:
        assert all(name.startswith("base_model.model.model.") for name in set(file.keys()))
    again = load_model(tmp_path / "adapters")
    assert torch.equal(again.logits(IDS), model.logits(IDS)) and again.mask_id == model.mask_id
    assert not torch.equal(again.logits(IDS), load_model(base).logits(IDS))
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


def test_merged_weights_give_the_adapters_logits(adapted, tmp_path):
    base, model = adapted
    disturb(model)
    model.save(tmp_path / "adapters")
    merge(tmp_path / "adapters", tmp_path / "merged", "float32")
    merged = load_model(tmp_path / "merged")
    torch.testing.assert_close(merged.logits(IDS), model.logits(IDS), atol=2e-5, rtol=0)
    assert merged.adapters is None and all(p.requires_grad for p in merged.parameters())
    with pytest.raises(ValueError, match="not empty"):
        merge(tmp_path / "adapters", tmp_path / "merged", "float32")
    with pytest.raises(ValueError, match="no adapters"):
        merge(base, tmp_path / "other", "float32")


def test_the_base_is_there_without_the_adapters(adapted):
    base, model = adapted
    disturb(model)
    changed = model.logits(IDS)
    with lora.without(model.model):
        assert torch.equal(model.logits(IDS), load_model(base).logits(IDS))
    assert torch.equal(model.logits(IDS), changed)
    assert any(p.requires_grad for p in model.parameters())


def test_dropout_drops_its_share_by_seed_layer_and_feature_in_training_alone():
    dropout, other = TokenDropout(0.25, 0), TokenDropout(0.25, 1)
    x = torch.ones(2, 300, 64)
    seeds = torch.randint(2**62, (2, 300), generator=torch.Generator().manual_seed(0))
    with lora.dropping(nn.ModuleList([dropout, other]), seeds):
        kept, others = dropout(x), other(x)
        assert not torch.equal(kept, others) and torch.equal(dropout(x), kept)
        assert torch.equal(dropout.eval()(x), x)
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    for share in ((kept == 0).float().mean(dim) for dim in (0, 1, 2)):
        assert abs(float(share.mean()) - 0.25) < 0.01
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[:, 0], kept[:, 1])
    with lora.dropping(dropout.train(), seeds[1:]):
        assert torch.equal(dropout(x[1:]), kept[1:])


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("shared_experts.up_proj", "q_proj"), {"mlp.shared_experts.up_proj": 1, "self_attn.q_proj": 2}),
        (("up_proj",), {"mlp.up_proj": 1, "mlp.shared_experts.up_proj": 1}),
        (("mlp.down_proj",), {"mlp.down_proj": 1}),
    ],
)
def test_parts_of_a_mixture_are_chosen_by_name(targets, layers, tmp_path):
    """Attention, the dense layer and the shared experts; the folder keeps the choice."""
    base = tiny_checkpoint(tmp_path / "base", "llada2")
    model, adapters = load_model(base), Adapters(2, 4.0, targets=tuple(sorted(targets)))
    count = adapters.count(model.model)
    model.add_adapters(adapters, base, seed=0)
    names = [name.split(".", 2)[2] for name in lora.layers(model.model)]
    assert {name: names.count(name) for name in names} == layers
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    model.save(tmp_path / "adapters")
    assert Adapters.of(tmp_path / "adapters") == adapters
    assert set(lora.layers(load_model(tmp_path / "adapters").model)) == set(lora.layers(model.model))


def test_full_names_of_layers_in_a_folder_become_their_last_part(tmp_path):
    """As peft writes them where two layers of one name differ in being chosen, with and without what holds them."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    names = ["layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "shared_experts.up_proj", "o_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": names}))
    assert Adapters.of(tmp_path).targets == ("k_proj", "o_proj", "q_proj", "shared_experts.up_proj")


@pytest.mark.parametrize("target", ["experts.down_proj", "gate_up_proj"])
def test_routed_experts_have_no_adapters(target, tmp_path):
    base = tiny_checkpoint(tmp_path, "llada2")
    with pytest.raises(ValueError, match=f"no linear layer is named '{target}'; there are .'down_proj', 'gate_proj'"):
        load_model(base).add_adapters(Adapters(2, 4.0, targets=(target,)), base, seed=0)


def test_layers_that_do_not_exist_are_named(tmp_path):
    tiny_checkpoint(tmp_path, "sdar")
    with pytest.raises(ValueError, match="q_prj"):
        load_model(tmp_path).add_adapters(Adapters(2, 4.0, targets=("q_prj",)), tmp_path, seed=0)


def test_adapters_of_another_base_are_refused(tmp_path):
    for name, size in (("small", 32), ("large", 64)):
        tiny_checkpoint(tmp_path / name, "sdar", hidden_size=size)
    model = load_model(tmp_path / "small")
    model.add_adapters(Adapters(2, 4.0), tmp_path / "large", seed=0)
    model.save(tmp_path / "adapters")
    with pytest.raises(ValueError, match="does not fit the base"):
        load_model(tmp_path / "adapters")


@pytest.mark.long
@pytest.mark.slow
def test_the_merge_command(tmp_path):
    tiny_checkpoint(tmp_path / "base", "sdar")
    model = load_model(tmp_path / "base")
    model.add_adapters(Adapters(2, 4.0), tmp_path / "base", seed=0)
    model.save(tmp_path / "adapters")
    arguments = [sys.executable, str(REPOSITORY / "models" / "merge.py"), str(tmp_path / "adapters"), "-o"]
    for out, code in ((tmp_path / "merged", 0), (tmp_path / "merged", 1)):
        done = subprocess.run([*arguments, str(out)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == code and ("error: " in done.stderr) == bool(code)


@pytest.fixture
def trained(tmp_path):
    """A folder of adapters whose base, named by a link, is `base`."""
    tiny_checkpoint(tmp_path / "base", "sdar")
    (tmp_path / "link").symlink_to("base")
    model = load_model(tmp_path / "link")
    model.add_adapters(Adapters(2, 4.0), tmp_path / "link", seed=0)
    model.base_fingerprint = fingerprint(tmp_path / "base")
    model.save(tmp_path / "adapters")
    return tmp_path / "adapters"


def test_adapters_keep_the_fingerprint_of_their_base_from_load_to_save(trained, tmp_path, caplog):
    again = load_model(trained)
    again.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / BASE).read_text()) == {
        "base": str(tmp_path / "base"),
        "fingerprint": fingerprint(tmp_path / "base"),
    }
    merge(tmp_path / "again", tmp_path / "merged", "float32")
    assert not (tmp_path / "merged" / BASE).exists() and caplog.text == ""


@pytest.mark.parametrize("read", [load_model, load_value_model, lambda path: merge(path, path.parent / "m", "float32")])
def test_a_base_that_has_changed_is_an_error_that_names_both(trained, tmp_path, read):
    """Under the same path, by one bit that keeps size and time."""
    weights = tmp_path / "base" / "model.safetensors"
    content, stat = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fingerprints._digest.cache_clear()  # another process
    with pytest.raises(ValueError, match=f"{trained} were trained on other weights than {tmp_path}/(link|base) holds"):
        read(trained)


def test_a_base_that_is_gone_is_an_error_that_names_key_and_path(trained, tmp_path):
    shutil.rmtree(tmp_path / "base")
    says = f"{trained}/adapter_config.json: base_model_name_or_path={tmp_path}/link.*put it back"
    with pytest.raises(ValueError, match=f"(?i){says}"):
        load_model(trained)


def test_adapters_of_other_tools_load_as_they_are_and_one_line_says_so(trained, tmp_path, caplog):
    (trained / BASE).unlink()
    assert load_model(trained).base_fingerprint is None
    assert caplog.messages == [
        f"the adapters in {trained} keep no fingerprint of their base: {tmp_path}/link is taken as it is"
    ]


@pytest.mark.parametrize("content", ["{}", '{"fingerprint": 1}', "[", "\0\0"])
def test_a_damaged_fingerprint_is_named(trained, content):
    (trained / BASE).write_text(content)
    with pytest.raises(ValueError, match=str(trained / BASE)):
        load_model(trained)
