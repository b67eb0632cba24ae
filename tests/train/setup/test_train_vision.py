"""training.train_vision: how it is spelled, what it trains, and where it is refused."""

import pytest

from configs import load_config, merge
from models.spec import CheckpointSpec
from models.tiny import tiny_checkpoint, tiny_folder
from train.setup.models import RunModels, make_trained_model, trained_vision


def spec_of(folder, family):
    return CheckpointSpec.read(tiny_folder(folder, family))


@pytest.mark.parametrize(
    ("given", "want"), [(False, None), ("false", None), ("projector", "projector"), ("all", "all")]
)
def test_parts_of_vision_by_name(tmp_path, given, want):
    config = merge({"training": {"train_vision": given}})
    assert trained_vision(config, spec_of(tmp_path, "lladav")) == want


def test_false_is_a_word_of_yaml_and_of_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {train_vision: false}\n")
    assert load_config([f"config={tmp_path / 'a.yaml'}"], command="rl").training.train_vision == "false"
    typed = [f"config={tmp_path / 'a.yaml'}", "training.train_vision=False"]
    assert load_config(typed, command="rl").training.train_vision == "false"
    with pytest.raises(ValueError, match="training.train_vision is 'tower'; choose from false, projector, all"):
        load_config([*typed[:1], "training.train_vision=tower"], command="rl")


@pytest.mark.parametrize(("family", "sections", "want"), [
    ("llada", {}, "llada has no vision"),
    ("lladav", {"lora": {"rank": 2}}, "beside adapters"),
    ("lladav", {"experiment": {"deepspeed_file": "1_node_2_cpus_fsdp2"}}, "under FSDP2"),
])  # fmt: skip
def test_where_vision_cannot_be_trained_it_is_said_before_a_model_is_loaded(tmp_path, family, sections, want):
    config = merge({"training": {"train_vision": "projector"}, **sections})
    with pytest.raises(ValueError, match=f"train_vision=projector.*{want}"):
        RunModels.of(config, spec_of(tmp_path, family))


def test_the_model_of_a_run_trains_what_it_is_asked_to(tmp_path):
    tiny_checkpoint(tmp_path, "lladav")
    sections = {"model": {"pretrained_model": str(tmp_path), "device": "cpu"}}
    for part in ("false", "projector"):
        config = merge({**sections, "training": {"train_vision": part}})
        weights = dict(make_trained_model(config, "no").named_parameters())
        assert weights["vision.image_newline"].requires_grad is (part == "projector")
        assert weights["model.norm.weight"].requires_grad
        assert not weights["vision.tower.post_layernorm.weight"].requires_grad
