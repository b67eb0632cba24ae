"""Checkpoints on disk: whole or passed over, pruned, pointed to."""

import logging
import shutil

import pytest
import torch
from helpers import tiny_model
from trainees import assert_same_weights, weights_of

from models import ValueModel, load_model, load_value_model
from train.learner.checkpoint import (
    SFT,
    STATE,
    VALUE,
    Contents,
    newest_checkpoint,
    point_to,
    point_to_best,
    prune_checkpoints,
    read_state,
    restore_random,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("sdar")


def save(folder, step, model, state=(), link="optimized", value=None, value_link=None):
    path = save_checkpoint(folder, step, Contents(SFT, model, dict(state), value))
    point_to(path, link, value_link)


@pytest.fixture
def folder(tmp_path, model):
    for step in (2, 4, 10):
        save(tmp_path, step, model, {"note": step})
    return tmp_path


def test_a_checkpoint_is_a_model_folder_with_a_state(folder, model):
    newest = newest_checkpoint(folder)
    assert newest == folder / "step-000010"
    assert read_state(newest)["note"] == 10 and read_state(newest)["step"] == 10
    for path in (newest, folder / "optimized"):
        assert_same_weights(weights_of(load_model(path)), weights_of(model))


def test_the_random_generator_goes_on_where_it_was(folder, model):
    torch.manual_seed(5)
    save(folder, 11, model)
    want = torch.rand(3)
    torch.manual_seed(99)
    restore_random(read_state(newest_checkpoint(folder)))
    assert torch.equal(torch.rand(3), want)


def damage(path, how):
    if how == "cut weights":
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "no weights":
        (path / "model.safetensors").unlink()
    elif how == "empty state":
        (path / STATE / "state.pt").write_bytes(b"")
    elif how == "no list":
        (path / STATE / "files.json").unlink()
    elif how == "cut list":
        (path / STATE / "files.json").write_text('{"step": 10, "si')
    else:
        shutil.rmtree(path / STATE)


@pytest.mark.parametrize("how", ["cut weights", "no weights", "empty state", "no list", "cut list", "no state"])
def test_an_incomplete_checkpoint_is_named_and_passed_over(folder, how, caplog):
    damage(folder / "step-000010", how)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(folder) == folder / "step-000004"
    assert str(folder / "step-000010") in caplog.text


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "absent") is None


def test_a_write_that_fails_leaves_the_old_ones(folder, model, monkeypatch):
    def fails(path):
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save", fails)
        with pytest.raises(OSError, match="No space left"):
            save(folder, 12, model)
    assert newest_checkpoint(folder) == folder / "step-000010"
    assert (folder / "optimized").resolve().name == "step-000010"


def test_the_link_follows_and_spares_a_folder_of_that_name(folder, model):
    assert (folder / "optimized").resolve().name == "step-000010"
    (folder / "mine").mkdir()
    (folder / "mine" / "keep").write_text("me")
    save(folder, 12, model, link="mine")
    assert (folder / "mine" / "keep").read_text() == "me"


def test_a_value_model_is_saved_beside_and_pointed_to(tmp_path, model):
    value = ValueModel(model)
    for step in (1, 2):
        torch.nn.init.constant_(value.value_head.weight, step)
        save(tmp_path, step, model, value=value, value_link="optimized_value")
    assert_same_weights(weights_of(load_value_model(tmp_path / "optimized_value")), weights_of(value))
    assert_same_weights(weights_of(load_model(tmp_path / "optimized")), weights_of(model))
    (tmp_path / "step-000002" / VALUE / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000001"


@pytest.mark.parametrize(("keep_last", "left"), [(1, [10]), (2, [4, 10]), (9, [2, 4, 10]), (0, [2, 4, 10])])
def test_pruning_keeps_the_newest(folder, keep_last, left):
    prune_checkpoints(folder, keep_last)
    assert sorted(folder.glob("step-*")) == [folder / f"step-{step:06d}" for step in left]


@pytest.mark.parametrize(
    ("incomplete", "keep_last", "left"),
    [
        ([10], 1, [4, 10]),
        ([10], 2, [2, 4, 10]),
        ([4], 1, [10]),
        ([4], 2, [2, 10]),
        ([2], 9, [4, 10]),
        ([2, 4, 10], 1, [2, 4, 10]),
        ([4], 0, [2, 4, 10]),
    ],
)
def test_pruning_counts_whole_checkpoints_alone(folder, incomplete, keep_last, left):
    """An incomplete one goes when a newer one is whole, and until then stays for people to look at."""
    for step in incomplete:
        damage(folder / f"step-{step:06d}", "cut weights")
    newest = newest_checkpoint(folder)
    prune_checkpoints(folder, keep_last)
    assert sorted(folder.glob("step-*")) == [folder / f"step-{step:06d}" for step in left]
    assert newest_checkpoint(folder) == newest


def test_the_best_is_pointed_to_and_outlives_pruning(folder):
    assert point_to_best(folder, {0: 0.9, 2: 0.5, 4: 0.5, 10: 0.3, 12: 0.8}) == folder / "step-000002"
    assert (folder / "best").resolve() == folder / "step-000002"
    prune_checkpoints(folder, 1, folder / "step-000002")
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-000002", "step-000010"]
    assert point_to_best(folder, {2: 0.5, 10: 0.6}) == folder / "step-000010" == (folder / "best").resolve()


def test_an_incomplete_checkpoint_is_never_the_best(folder):
    damage(folder / "step-000004", "cut weights")
    assert point_to_best(folder, {2: 0.1, 4: 0.9}) == folder / "step-000002"
    damage(folder / "step-000002", "no list")
    assert point_to_best(folder, {2: 0.1, 4: 0.9}) is None and not (folder / "best").is_symlink()
