"""Checkpoints on disk: whole or passed over, pruned, pointed to."""

import json
import logging
import os
import resource
import shutil

import pytest
import torch
from helpers import tiny_model
from trainees import assert_same_weights, weights_of

from models import ValueModel, load_model, load_value_model
from models.lora import Adapters
from train.learner.checkpoint import (
    RL,
    SFT,
    STATE,
    VALUE,
    Contents,
    given_checkpoint,
    newest_checkpoint,
    point_to,
    point_to_best,
    prune_checkpoints,
    read_state,
    restore_random,
    save_checkpoint,
    starting_checkpoint,
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
    def fails(path, **named):
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


FILES = ("config.json", "model.safetensors", f"{STATE}/state.pt", f"{STATE}/files.json")


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_second_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


@pytest.mark.parametrize("how", [flip, zero_second_half])
@pytest.mark.parametrize("name", FILES)
def test_damage_that_keeps_a_files_size_is_named_and_the_older_checkpoint_taken(folder, name, how, caplog):
    how(folder / "step-000010" / name)
    assert newest_checkpoint(folder) == folder / "step-000004"
    assert f"{folder}/step-000010 is not whole ({name}" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "{}", '{"step": 10, "sizes": []}', '{"step": 10, "sizes": {"a": "b"}}', "[" * 100_000],
    ids=lambda content: content[:40],
)
def test_a_list_of_files_of_another_shape_is_named(folder, content, caplog):
    (folder / "step-000010" / STATE / "files.json").write_text(content)
    assert newest_checkpoint(folder) == folder / "step-000004"
    assert "files.json" in caplog.text


def test_a_checkpoint_under_the_name_of_another_step_is_named(folder, caplog):
    shutil.rmtree(folder / "step-000010")
    (folder / "step-000004").rename(folder / "step-000010")
    assert newest_checkpoint(folder) == folder / "step-000002" and "files.json is of step 4" in caplog.text


def without_digests(path):
    """As 6db0e99 wrote it."""
    file = path / STATE / "files.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({"step": found["step"], "sizes": found["sizes"]}))


def test_a_checkpoint_of_before_there_were_digests_resumes_and_says_so(folder, caplog):
    without_digests(folder / "step-000010")
    assert starting_checkpoint(folder, "auto", SFT) == folder / "step-000010"
    (message,) = caplog.messages
    assert message.startswith(f"checkpoint {folder}/step-000010 was written without digests: only the sizes of its")
    caplog.clear()
    assert starting_checkpoint(folder, f"{folder}/step-000004", SFT) == folder / "step-000010"
    (folder / "step-000010").rename(folder / "elsewhere")
    assert starting_checkpoint(folder, "auto", SFT) == folder / "step-000004" and len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["model.safetensors", f"{STATE}/state.pt", "config.json"])
def test_a_file_without_a_digest_that_cannot_be_opened_is_named(folder, name, caplog):
    without_digests(folder / "step-000010")
    path = folder / "step-000010" / name
    path.write_bytes(bytes(path.stat().st_size))
    assert starting_checkpoint(folder, "auto", SFT) == folder / "step-000004"
    assert f"step-000010 is not whole ({name} is damaged" in caplog.text


def test_where_no_checkpoint_is_whole_the_run_does_not_begin_anew(folder):
    for step in (2, 4, 10):
        flip(folder / f"step-{step:06d}" / "model.safetensors")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole .*step-000010: model.safetensors is damaged"):
        starting_checkpoint(folder, "auto", SFT)


def test_a_damaged_checkpoint_that_is_named_to_resume_from_is_refused(folder, tmp_path_factory):
    flip(folder / "step-000010" / "model.safetensors")
    with pytest.raises(ValueError, match="000010 is not a whole checkpoint of a run: model.safetensors is damaged"):
        starting_checkpoint(tmp_path_factory.mktemp("new"), f"{folder}/step-000010", SFT)


@pytest.mark.parametrize(("written", "asked"), [(RL, SFT), (SFT, RL)])
def test_what_wrote_a_checkpoint_is_written_in_it_or_guessed_from_its_state(tmp_path, model, written, asked):
    state = {"curriculum": {}} if written == RL else {}
    path = save_checkpoint(tmp_path, 1, Contents(written, model, state))
    for _ in range(2):
        assert given_checkpoint(str(path), written) == path
        with pytest.raises(ValueError, match=f"was written by {written}; {asked} can only"):
            given_checkpoint(str(path), asked)
        without_digests(path)


def test_steps_beyond_a_million_keep_their_order(tmp_path, model):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, step, model)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-1000001"
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-1000001"]


def test_what_the_user_put_beside_the_checkpoints_stays(folder, model, tmp_path_factory):
    """A copy under another name, and a checkpoint that was moved to another disk and linked."""
    shutil.copytree(folder / "step-000002", folder / "step-000002-good")
    moved = tmp_path_factory.mktemp("disk") / "moved"
    shutil.move(folder / "step-000004", moved)
    (folder / "step-000004").symlink_to(moved)
    (folder / "step-000003").symlink_to("nowhere")
    prune_checkpoints(folder, 1)
    names = ["optimized", "step-000002-good", "step-000003", "step-000004", "step-000010"]
    assert sorted(path.name for path in folder.iterdir()) == names
    shutil.rmtree(folder / "step-000010")
    assert newest_checkpoint(folder) == folder / "step-000004"
    for step in (3, 4):
        save(folder, step, model)
        assert not (folder / f"step-{step:06d}").is_symlink()
    assert (moved / "model.safetensors").is_file()


def test_checkpoints_after_the_last_step_do_not_count(folder):
    """Those that a resumed run passed over, damaged as they are, are whole by their sizes."""
    flip(folder / "step-000010" / "model.safetensors")
    prune_checkpoints(folder, 1, last_step=4)
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-000004", "step-000010"]


@pytest.mark.parametrize("link", ["optimized", "optimized_value"])
def test_a_copy_of_a_checkpoint_where_a_link_was_is_a_link_again(tmp_path, model, link, caplog):
    """As `cp -rL` leaves them. With one byte changed it is the user's, and stays."""
    for step in (1, 2):
        save(tmp_path, step, model, value=ValueModel(model), value_link="optimized_value")
    for changed in (False, True):
        path = tmp_path / link
        target = path.resolve()
        path.unlink()
        shutil.copytree(target, path)
        if changed:
            flip(path / "model.safetensors")
        caplog.clear()
        point_to(tmp_path / "step-000002", "optimized", "optimized_value")
        assert path.is_symlink() is not changed
        (message,) = caplog.messages
        assert message.startswith(f"{path} is no link" if changed else f"{path} was a copy")


@pytest.mark.parametrize("limit", [4_000, 60_000, 120_000])
def test_a_full_disk_names_the_checkpoint_and_leaves_the_older_ones(folder, model, limit):
    """A limit of the size of files stands for it: reached in the weights, in the state's first and last bytes."""
    state = {"moments": torch.zeros(30_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=f"checkpoint {folder}/step-000012 could not be written .*File too large"):
            save(folder, 12, model, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_checkpoint(folder) == folder / "step-000010"
    assert sorted(path.name for path in folder.iterdir())[0] == "optimized", "what was written aside is gone"


def test_all_files_of_a_checkpoint_have_the_mode_that_the_umask_gives(tmp_path, model):
    adapted = tiny_model("sdar")
    adapted.add_adapters(Adapters(2, 4.0), tmp_path, seed=0)
    before = os.umask(0o027)
    try:
        for step, saved in enumerate((model, adapted)):
            save(tmp_path, step, saved, value=ValueModel(model))
    finally:
        os.umask(before)
    modes = {oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {"0o640"}
