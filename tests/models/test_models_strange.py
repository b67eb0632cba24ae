"""Strange checkpoints end in one line that names the file: no traceback, no hang, no silent other weights."""

import json
import logging
import os
import shutil

import pytest
import torch
from helpers import thinned, tiny_checkpoint
from safetensors.torch import load_file, save_file

from models import load_model
from models.lora import Adapters
from models.spec import CheckpointSpec
from models.tiny import tiny_folder

pytestmark = pytest.mark.timeout(60)
IDS = torch.arange(3, 11)[None]
HUGE = 2**70


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints of two seeds."""
    folder = tmp_path_factory.mktemp("made")
    return tiny_checkpoint(folder / "a", seed=1), tiny_checkpoint(folder / "b", seed=2)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "model")


def edit(folder, name="config.json", **changes):
    path = folder / name
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(old | changes))


def shard(folder, weights):
    """An index with two shards, as an earlier save leaves them."""
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    listed = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def test_a_single_file_goes_before_a_stale_index(made, folder, caplog):
    want = load_model(folder).logits(IDS)
    shard(folder, load_file(made[1] / "model.safetensors"))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_model(folder).logits(IDS), want)
    assert "model.safetensors beside model.safetensors.index.json, which is not read" in caplog.text
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder).logits(IDS), load_model(made[1]).logits(IDS))


def test_an_index_of_the_single_file_is_not_warned_of(folder, caplog):
    names = load_file(folder / "model.safetensors")
    listed = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    load_model(folder)
    assert not caplog.records


def test_a_head_of_its_own_beside_a_tied_one_is_refused(folder):
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="ties the output head to the embedding.*lm_head.weight of its own"):
        load_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.complex64, "C64"), (torch.bool, "BOOL")],
)
def test_weights_that_are_no_floats_are_refused(folder, dtype, name):
    weights = load_file(folder / "model.safetensors")
    save_file({key: w.to(dtype) for key, w in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"do not fit sdar.*quantised \['lm_head.weight \({name}\)"):
        load_model(folder)


def test_weights_in_other_floats_are_converted(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({key: w.to(torch.float64) for key, w in weights.items()}, folder / "model.safetensors")
    assert load_model(folder).dtype == torch.float32


def test_a_quantisation_config_is_refused(folder):
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match="config.json has a quantization_config.*bf16"):
        CheckpointSpec.read(folder)


@pytest.mark.parametrize(
    "file", ["../b/model.safetensors", "/etc/passwd", "missing.safetensors", "fifo", "sub/x", "", "."]
)
def test_an_index_names_files_of_its_folder_only(folder, file):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "fifo")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(ValueError, match="index.json names .*, which is no file of the folder"):
        load_model(folder)


@pytest.mark.parametrize("listed", [7, [], {}, {"lm_head.weight": 3}, {"lm_head.weight": ["a"]}, None, "x"])
def test_an_index_without_a_map_is_named(folder, listed):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(ValueError, match="index.json has no weight_map of names to files"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pipe_in_the_place_of_weights_is_not_waited_for(folder, name):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="has no weights"):
        load_model(folder)


@pytest.mark.parametrize("content", [[1, 2], {"lm_head.weight": 3}, torch.zeros(2)])
def test_pytorch_files_of_something_else_are_named(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read \(TypeError: it holds no tensors by name"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    thinned(
        [
            {"num_hidden_layers": 10**12},
            {"num_hidden_layers": -1},
            {"num_hidden_layers": "two"},
            {"num_hidden_layers": None},
            {"hidden_size": 0},
            {"hidden_size": -8},
            {"hidden_size": 10**15},
            {"hidden_size": [32]},
            {"num_attention_heads": 0},
            {"num_key_value_heads": 3},
            {"head_dim": "16"},
            {"vocab_size": None},
            {"vocab_size": "many"},
            {"vocab_size": 0},
            {"vocab_size": HUGE},
            {"intermediate_size": 1.5},
            {"intermediate_size": 2**50},
            {"max_position_embeddings": 0},
            {"max_position_embeddings": "long"},
            {"rms_norm_eps": "small"},
            {"rope_theta": {}},
            {"rope_scaling": {"rope_type": "yarn"}},
            {"rope_scaling": 4},
            {"hidden_act": "nonsense"},
            {"block_size": 0.5},
            {"block_size": -4},
            {"block_size": "eight"},
            {"block_size": [4]},
            {"mask_token_id": 64},
            {"mask_token_id": "mask"},
            {"eos_token_id": 999},
            {"eos_token_id": [[2]]},
            {"eos_token_id": "end"},
            {"pad_token_id": -5},
            {"pad_token_id": 64},
            {"tie_word_embeddings": "yes"},
            {"attention_bias": [1]},
            {"use_sliding_window": True},
            {"model_type": ["sdar"]},
            {"model_type": {"a": 1}},
        ],
        2,
    ),
    ids=str,
)
def test_odd_values_of_a_config_are_one_line(folder, changes):
    edit(folder, **changes)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    text = str(error.value)
    assert str(folder) in text or "config.json" in text
    assert "\n" not in text and len(text) < 700


@pytest.mark.parametrize("family", thinned(["llada", "dream", "sdar_moe"], 2))
@pytest.mark.parametrize("size", [0, -1, "x", None, 3])
def test_odd_sizes_of_other_families_are_one_line(tmp_path, family, size):
    tiny_checkpoint(tmp_path, family)
    edit(tmp_path, **{"d_model" if family == "llada" else "hidden_size": size})
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"a": NaN', "\x00"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_json_names_its_file(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        load_model(folder)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"sampler_config": [1]}, r"sampler_config: \[1\] where a mapping"),
        (
            {"sampler_config": {"entropy_bound": "low"}},
            "sampler_config.entropy_bound: 'low' where a number of at least 0",
        ),
        ({"t_max": -0.5}, "t_max: -0.5 where a number of at least 0"),
        ({"t_min": [0.4]}, r"t_min: \[0.4\] where a number of at least 0"),
        ({"max_denoising_steps": "many"}, "max_denoising_steps: 'many' where a whole number of at least 1"),
        ({"max_denoising_steps": -3}, "max_denoising_steps: -3 where a whole number of at least 1"),
        ({"max_denoising_steps": 7.5}, "max_denoising_steps: 7.5 where a whole number of at least 1"),
        ({"max_denoising_steps": True}, "max_denoising_steps: True where a whole number of at least 1"),
    ],
)
def test_damaged_choices_of_canvases_name_their_file(tmp_path, found, said):
    folder = tiny_folder(tmp_path, "diffusion_gemma")
    edit(folder, "generation_config.json", **found)
    with pytest.raises(ValueError, match=f"{folder}/generation_config.json has {said}"):
        CheckpointSpec.read(folder)


def test_choices_of_canvases_may_be_absent_and_are_no_matter_with_masks(folder, tmp_path):
    canvases = tiny_folder(tmp_path, "diffusion_gemma")
    edit(canvases, "generation_config.json", max_denoising_steps=None, sampler_config=None)
    assert CheckpointSpec.read(canvases).generation["sampler_config"] is None
    edit(folder, "generation_config.json", max_denoising_steps="many")
    CheckpointSpec.read(folder)


def test_damaged_weights_name_their_file(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", b"\0" * 100, whole[: len(whole) // 2], b"\xff" * 8 + whole[8:]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="model.safetensors cannot be read"):
            load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', ""])
def test_a_damaged_tokenizer_names_its_folder(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=f"the tokenizer in {folder} cannot be read"):
        load_model(folder)


def test_links_to_files_elsewhere_stay_out_of_checkpoints(folder, tmp_path, caplog):
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    (folder / "LICENSE").write_text("free")
    (folder / "COPYING").symlink_to("LICENSE")
    load_model(folder).save(tmp_path / "saved")
    assert "notes.txt is a link to a file elsewhere" in caplog.text
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "model.safetensors", "LICENSE", "COPYING"}


def test_the_hubs_cache_is_links_and_carried(folder, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "LICENSE").write_text("free")
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    load_model(snapshot).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "LICENSE").read_text() == "free"


@pytest.fixture
def adapters(made, tmp_path):
    model = load_model(made[0])
    model.add_adapters(Adapters(2, 4.0), made[0], seed=0)
    model.save(tmp_path / "adapters")
    return tmp_path / "adapters"


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": "two"},
        {"lora_alpha": "x"},
        {"target_modules": ["nothing"]},
        {"target_modules": 3},
        {"base_model_name_or_path": "/nowhere"},
        {"base_model_name_or_path": None},
        {"peft_type": "nonsense"},
    ],
    ids=str,
)
def test_odd_adapters_are_one_line(adapters, changes):
    edit(adapters, "adapter_config.json", **changes)
    with pytest.raises(ValueError) as error:
        load_model(adapters)
    assert "\n" not in str(error.value) and ("adapter" in str(error.value) or "/nowhere" in str(error.value))


def test_damaged_adapters_name_their_file(adapters):
    (adapters / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        load_model(adapters)
