import json
from types import SimpleNamespace

import forked
import pytest
import torch
from commands import finish
from helpers import tiny_checkpoint
from safetensors.torch import load_file

from models import load_model
from models.export import CARD, export, push
from models.lora import Adapters


def test_an_export_is_the_model_in_bf16_without_the_trainer_s_state(model_folder, tmp_path):
    out = tmp_path / "out"
    export(model_folder, out, "bfloat16")
    weights = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not (out / "trainer").exists()
    assert load_model(out).family == "sdar"


def test_an_export_brings_the_card_along(model_folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / CARD).write_text("# mine\n")
    export(copy, tmp_path / "out", "float32")
    assert (tmp_path / "out" / CARD).read_text() == "# mine\n"


def test_an_export_writes_over_nothing(model_folder, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not an empty folder"):
            export(model_folder, place, "bfloat16")


def test_adapters_are_merged_into_what_is_exported(tmp_path):
    tiny_checkpoint(tmp_path / "base", "sdar")
    model = load_model(tmp_path / "base")
    model.add_adapters(Adapters(2, 4.0), tmp_path / "base", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.1)
    model.save(tmp_path / "adapters")
    export(tmp_path / "adapters", tmp_path / "out", "float32")
    ids, merged = torch.tensor([[5, 6, 7, 8]]), load_model(tmp_path / "out")
    assert merged.adapters is None
    assert torch.allclose(merged.logits(ids), model.logits(ids), atol=1e-4)


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(tmp_path, monkeypatch):
    class Refuses:
        def create_repo(self, *given, **named):
            raise ConnectionError("no such host\nlong trace")

    monkeypatch.setattr("huggingface_hub.HfApi", Refuses)
    with pytest.raises(ValueError, match=r"^--push a/b: ConnectionError: no such host The model is in .*hf upload a/b"):
        push(tmp_path, "a/b", private=True)


def test_a_private_export_is_not_uploaded_where_all_can_see_it(tmp_path, monkeypatch):
    class Public:
        def create_repo(self, *given, **named):
            pass

        def model_info(self, name):
            return SimpleNamespace(private=False)

    monkeypatch.setattr("huggingface_hub.HfApi", Public)
    with pytest.raises(ValueError, match="--push a/b is public already: add --public"):
        push(tmp_path, "a/b", private=True)


@pytest.mark.long
@pytest.mark.slow
def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    status, _, err = finish(forked.start(["models/export.py", tmp_path / "nothing", "-o", tmp_path / "out"]))
    assert status == 1 and err.startswith("error: ") and "Traceback" not in err
