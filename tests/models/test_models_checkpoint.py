"""Checkpoint folders in and out: names, numbers and carried files; and what is refused."""

import json
import shutil
import sys

import pytest
import torch
from helpers import GOLDEN, REAL, tiny_checkpoint, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models import load_model
from models.checkpoint import empty_network, first_ids
from models.families import find_family
from models.folder import resolve_folder
from sample import Sampler, SamplingConfig

BOMB = """import pathlib
pathlib.Path(__file__).with_name("RAN").write_text("code of the checkpoint ran")
raise RuntimeError("code of the checkpoint ran")
"""


@pytest.fixture
def folder(tmp_path):
    """A writable copy of the golden SDAR checkpoint, with files that must be carried and code that must not run."""
    target = tmp_path / "checkpoint"
    target.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "sdar" / name, target / name)
    for name in ("modeling_sdar.py", "configuration_sdar.py", "tokenization_sdar.py"):
        (target / name).write_text(BOMB)
    (target / "chat_template.jinja").write_bytes("{{ x }}\r\nünïcode\n".encode())
    (target / "notes.bin2").write_bytes(bytes(range(256)))
    (target / "LICENSE").write_text("some licence\n")
    return target


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVE"}))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def names_of(folder):
    names = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return names


@pytest.mark.parametrize("name", ["sdar", "sdar_tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_again(tmp_path, name, dtype):
    model = load_model(GOLDEN / name, dtype=dtype)
    model.save(tmp_path / "out")
    assert names_of(tmp_path / "out") == names_of(GOLDEN / name)
    again = load_model(tmp_path / "out", dtype=dtype)
    ids = torch.arange(24).view(2, 12) * 7 % 250
    assert torch.equal(again.logits(ids), model.logits(ids))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in saved.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    if dtype == "float32":
        original = load_file(GOLDEN / name / "model.safetensors")
        assert all(torch.equal(saved[key], original[key]) for key in original)


def test_changed_weights_are_what_is_saved(tmp_path):
    model = tiny_model("sdar", tie_word_embeddings=True)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").add_(1.0)
    model.save(tmp_path)
    assert "lm_head.weight" not in names_of(tmp_path)
    ids = torch.arange(8)[None]
    assert torch.equal(load_model(tmp_path).logits(ids), model.logits(ids))


def test_tied_weights_stay_one_tensor():
    model = load_model(GOLDEN / "sdar_tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    twin = model.copy_as(torch.bfloat16)
    assert twin.lm_head.weight.data_ptr() == twin.model.embed_tokens.weight.data_ptr()


def test_everything_else_in_the_folder_is_carried_byte_for_byte(folder, tmp_path):
    load_model(folder).save(tmp_path / "out")
    carried = {p.name for p in folder.iterdir()} - {"config.json", "model.safetensors"}
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out"))
    assert before == after and after["auto_map"]["AutoModel"] == "modeling_sdar.SDARModel"


def test_code_of_a_checkpoint_never_runs(folder, tmp_path):
    modules = set(sys.modules)
    model = load_model(folder)
    model.save(tmp_path / "out")
    Sampler(load_model(tmp_path / "out"), SamplingConfig(max_new_tokens=4)).generate([[3, 4]])
    assert not (folder / "RAN").exists() and not (tmp_path / "out" / "RAN").exists()
    assert not [name for name in set(sys.modules) - modules if "sdar" in name and "models.sdar" not in name]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")
def test_a_real_tokenizer_loads_without_remote_code(folder, tmp_path):
    tokenizer_files = [p for p in (REAL / "tokenizers" / "sdar").iterdir() if p.name != "config.json"]
    for path in (*tokenizer_files, REAL / "layouts" / "SDAR-8B-Chat" / "generation_config.json"):
        shutil.copy(path, folder / path.name)
    layout = json.loads((REAL / "layouts" / "SDAR-8B-Chat" / "config.json").read_text())
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(layout | small | {"num_key_value_heads": 1, "head_dim": 16}))
    model = load_model(folder, random_init_seed=0)
    assert not (folder / "RAN").exists()
    assert (model.mask_id, set(model.eos_ids), model.pad_id) == (151669, {151643, 151645}, 151643)
    assert model.tokenizer.convert_ids_to_tokens(model.mask_id).strip("<|>") == "MASK"
    model.save(tmp_path / "out")
    for path in tokenizer_files:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_never_rounds_the_rotary_frequencies(dtype):
    exact = load_model(GOLDEN / "sdar").model.rotary_emb.inv_freq
    low = load_model(GOLDEN / "sdar", dtype=dtype)
    assert {p.dtype for p in low.parameters()} == {getattr(torch, dtype)}
    copied = load_model(GOLDEN / "sdar").copy_as(getattr(torch, dtype))
    drawn = load_model(GOLDEN / "sdar", dtype=dtype, random_init_seed=0)
    for model in (low, copied, drawn):
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    assert not exact.equal(exact.to(getattr(torch, dtype)).float()), "the frequencies would not survive rounding"


def test_a_copy_is_apart_and_needs_no_gradient():
    model = load_model(GOLDEN / "sdar")
    twin = model.copy_as(torch.bfloat16)
    assert not any(p.requires_grad for p in twin.parameters()) and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.get_parameter("model.norm.weight").zero_()
    assert twin.get_parameter("model.norm.weight").abs().sum() > 0


def test_random_weights_depend_on_the_seed_alone(tmp_path):
    tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second, other = (load_model(tmp_path, random_init_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = torch.arange(8)[None]
    assert torch.equal(first.logits(ids), second.logits(ids)) and not torch.equal(first.logits(ids), other.logits(ids))


def test_shards_are_read(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    for i, part in enumerate((names[:9], names[9:])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / name, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = torch.arange(8)[None]
    model = load_model(folder)
    assert torch.equal(model.logits(ids), load_model(GOLDEN / "sdar").logits(ids))
    model.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors*")) == ["model.safetensors"]
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors"):
        load_model(folder)


def missing(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def extra(weights):
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(96, 64)


def misshapen(weights):
    weights["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(31, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"missing \['model.layers.1.mlp.up_proj.weight'\]"),
        (extra, r"unexpected \['model.layers.2.mlp.up_proj.weight'\]"),
        (misshapen, r"misshapen .*layers.0.self_attn.k_proj.weight"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_missing_head_is_missed_only_where_it_is_not_tied(folder):
    rewrite(folder, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\]"):
        load_model(folder)
    edit(folder, tie_word_embeddings=True)
    assert load_model(folder).logits(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"model_type": "llama"}, {}, "model_type 'llama', which no family here reads"),
        ({"model_type": "REMOVE"}, {}, "model_type None"),
        (
            {"model_type": "qwen3"},
            {"model_base": "sdar"},
            "model_base 'sdar' and .* disagree: its model_type is 'qwen3'",
        ),
        ({}, {"model_base": "sdr"}, "Did you mean 'sdar'"),
        ({}, {"dtype": "float31"}, "dtype 'float31'"),
        ({"mask_token_id": 300}, {}, "no mask id below vocab_size 256"),
        ({"mask_token_id": "REMOVE"}, {}, "no mask id below vocab_size 256.*151669"),
        ({"use_sliding_window": True}, {}, "use_sliding_window"),
    ],
)
def test_configurations_that_are_refused(folder, changes, arguments, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder, **arguments)


def test_an_alias_names_the_same_family(folder):
    assert load_model(folder, model_base="trado").family == "sdar"
    assert find_family({"model_type": "sdar"}, None, "x") is find_family({"model_type": "sdar"}, "trado", "x")


def test_paths_that_hold_no_checkpoint(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nothing/here/at/all.*does not exist"):
        load_model("nothing/here/at/all")
    with pytest.raises(ValueError, match="could not be fetched from the hub"):
        load_model("no-such-organisation/no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        load_model(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        load_model(folder)
    (folder / "config.json").write_text("{oops")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        load_model(folder)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("checkpoint").name == "checkpoint"


def test_damaged_weights_are_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="checkpoint"):
        load_model(folder)


def test_ids_are_united_in_order():
    assert first_ids(None, 5, [7, 5], (), [None, 3]) == (5, 7, 3)


def test_a_network_on_the_meta_device_writes_no_memory_under_deterministic_algorithms(monkeypatch):
    """torch fills what it allocates with NaN then: minutes, and all of a large model's size."""
    filled, empty = [], torch.empty

    def noted(*size, **options):
        filled.append(torch.utils.deterministic.fill_uninitialized_memory)
        return empty(*size, **options)

    spec = tiny_model("sdar").spec
    monkeypatch.setattr(torch, "empty", noted)
    empty_network(spec.family, spec.raw)
    assert filled and not any(filled)
    assert torch.utils.deterministic.fill_uninitialized_memory
