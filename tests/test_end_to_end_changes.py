"""A run is typed again after something has changed: a key, a data file, the model that it was trained from."""

import shutil
from functools import partial

import pytest
from end_to_end import EVAL, RL, SFT, read_jsonl, without_clock, write_tasks
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from configs import load_config
from models import load_model
from models.spec import CheckpointSpec
from runtime.run_folder import RunFolder, run_path
from train import checks, evaluation, rl, sft
from train.checks import check_start
from train.learner.checkpoint import RL as RL_COMMAND
from train.setup.sources import require_as_written, settings_of

NO_EVALUATION = "evaluation.eval_dataset=''"
FALLING = "lr_scheduler.params.min_lr_scale=0.1"
CHECK = "dry_run=true"


def run_rl(shop, *words):
    return rl.run(load_config(shop.arguments(RL, *words)))


def run_sft(shop, *words):
    return sft.run(load_config(shop.arguments(SFT, *words)))


def rows(run):
    return without_clock(read_jsonl(run / "metrics.jsonl"))


def weights(run):
    return (run / "ckpt" / "optimized" / "model.safetensors").read_bytes()


def one_line(caplog, text):
    """The one warning with this text, of a start."""
    found = {message for message in caplog.messages if text in message}
    caplog.clear()
    assert len(found) == 1, found
    return found.pop()


def change_weights(folder):
    path = folder / "model.safetensors"
    stored = load_file(path)
    first = next(iter(stored))
    save_file(stored | {first: stored[first] + 1.0}, path, {"format": "pt"})


@pytest.fixture
def linked(shop):
    """The workshop with its model behind a link, which `lead_elsewhere` leads to another one."""
    for name in ("a", "b"):
        shutil.copytree(shop.model, shop.folder / name)
    change_weights(shop.folder / "b")
    shop.model = shop.folder / "link"
    shop.model.symlink_to("a")
    return shop


def lead_elsewhere(shop):
    shop.model.unlink()
    shop.model.symlink_to("b")


@pytest.mark.slow
def test_a_longer_run_and_keys_that_change_no_result_resume_and_one_line_says_so(shop, caplog):
    """Under a constant learning rate it ends as the run of that length, bit for bit."""
    few = ["rollout.num_task_per_step=2", NO_EVALUATION]
    run_rl(shop, *few, "experiment.total_step=3", "experiment.project=straight")
    run_rl(shop, *few, "experiment.total_step=2")
    caplog.clear()
    others = ["experiment.save_every=3", "experiment.keep_last=9", "reward.workers=2", "training.max_skipped_updates=3"]
    assert run_rl(shop, *few, *others, "experiment.total_step=3")["steps"] == 3
    line = one_line(caplog, "resumed with other settings")
    for change in ("total_step 2 -> 3 (length: the learning rate is constant", "save_every 1 -> 3", "keep_last 0 -> 9"):
        assert f"experiment.{change}" in line
    run, straight = shop.runs / "rl", shop.runs / "straight"
    assert rows(run) == rows(straight) and weights(run) == weights(straight)
    assert OmegaConf.load(run / "config.yaml").experiment.total_step == 3
    run_rl(shop, *few, *others, "experiment.total_step=3", CHECK)
    assert not caplog.messages


@pytest.mark.slow
def test_a_longer_run_has_the_learning_rate_of_its_length_from_there_on_and_a_shorter_one_is_finished(shop, caplog):
    few = ["rollout.num_task_per_step=2", NO_EVALUATION, FALLING]
    run_rl(shop, *few, "experiment.total_step=3", "experiment.project=straight")
    run_rl(shop, *few, "experiment.total_step=2")
    run_rl(shop, *few, "experiment.total_step=3")
    assert "that of a run of this length, cosine to 0.1 of its peak" in one_line(caplog, "resumed with other settings")
    rates = [row["learning_rate"] for row in rows(shop.runs / "rl")]
    of_3 = [row["learning_rate"] for row in rows(shop.runs / "straight")]
    assert rates[2] == of_3[2] and rates[0] == of_3[0] and rates[1] < of_3[1]
    before = weights(shop.runs / "rl")
    assert run_rl(shop, *few, "experiment.total_step=1")["steps"] == 3
    assert "experiment.total_step=1, and 3 are done: the run is finished" in one_line(caplog, "are done")
    assert len(rows(shop.runs / "rl")) == 3 and weights(shop.runs / "rl") == before


@pytest.mark.slow
def test_limits_of_memory_change_no_step_and_are_named_as_typed(shop, caplog):
    few = ["rollout.num_task_per_step=2", NO_EVALUATION]
    run_rl(shop, *few, "experiment.total_step=2", "experiment.project=straight")
    run_rl(shop, *few, "experiment.total_step=1")
    caplog.clear()
    smaller = ["rollout.max_active=3", "training.max_tokens_per_microbatch=64", "experiment.threads=2"]
    run_rl(shop, *few, *smaller, "experiment.total_step=2")
    assert "rollout.max_active null -> 3 (speed: the same results up to rounding)" in one_line(caplog, "other settings")
    for mine, theirs in zip(rows(shop.runs / "rl"), rows(shop.runs / "straight"), strict=True):
        assert {k: mine[k] for k in theirs if k not in ("packed_tokens", "micro_batches")} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in ("packed_tokens", "micro_batches")}, rel=1e-4, abs=1e-5
        )


@pytest.mark.slow
def test_a_longer_fine_tuning_resumes(shop, caplog):
    run_sft(shop, "training.num_train_epochs=2", "experiment.project=straight")
    run_sft(shop, "training.num_train_epochs=1")
    caplog.clear()
    run_sft(shop, "training.num_train_epochs=2", "experiment.save_every_updates=1")
    assert "num_train_epochs 1 -> 2 (length: " in one_line(caplog, "resumed with other settings")
    assert rows(shop.runs / "sft") == rows(shop.runs / "straight")
    assert weights(shop.runs / "sft") == weights(shop.runs / "straight")
    run_sft(shop, "training.max_steps=1", "experiment.save_every_updates=1")
    assert "training.max_steps=1, and 4 are done" in one_line(caplog, "are done")


def begun(config):
    """The config of now, after a run with it has begun."""
    RunFolder.open(run_path(config), settings_of(config, "rl"), overwrite=False).close()
    return config


def rl_config(shop, *words):
    return load_config(shop.arguments(RL, *words))


@pytest.mark.parametrize("which", ["tasks", "test"])
def test_a_data_file_that_has_changed_is_refused_by_key_and_path(shop, which):
    """Of training and of evaluation; written anew with the same content it is the same."""
    config, path = begun(rl_config(shop)), getattr(shop, which)
    path.write_bytes(path.read_bytes())
    check_start(config, RL_COMMAND)
    write_tasks(path, 5)
    key = {"tasks": "dataset.train_dataset", "test": "evaluation.eval_dataset"}[which]
    with pytest.raises(ValueError, match=f"(?s){key} +{path} held .* holds .*Put back.*experiment.project"):
        check_start(config, RL_COMMAND)


@pytest.mark.slow
def test_what_a_run_was_trained_from_is_a_real_path_and_another_model_is_refused(linked, caplog):
    """The link leads elsewhere, the folder is moved, then it holds other weights, then it is gone."""
    config = begun(rl_config(linked))
    kept, a, b, moved = run_path(config) / "config.yaml", *(linked.folder / name for name in ("a", "b", "moved"))
    assert OmegaConf.load(kept).model.pretrained_model == str(a)
    lead_elsewhere(linked)
    with pytest.raises(ValueError, match=f'(?s)pretrained_model +"{a}" -> "{b}".*{kept}'):
        check_start(config, RL_COMMAND)
    check_start(load_config([f"config={kept}"]), RL_COMMAND)
    a.rename(moved)
    linked.model = moved
    config = rl_config(linked)
    check_start(config, RL_COMMAND)
    assert f'model.pretrained_model "{a}" -> "{moved}" (it holds the same)' in one_line(caplog, "other settings")
    change_weights(moved)
    with pytest.raises(ValueError, match=f'pretrained_model +"{a}" -> "{moved}"'):
        check_start(config, RL_COMMAND)
    moved.rename(a)
    with pytest.raises(ValueError, match=f"pretrained_model +{a} held .* -> {a} holds"):
        check_start(load_config([f"config={kept}"]), RL_COMMAND)
    with pytest.raises(ValueError, match=f"model.pretrained_model: .*{moved}.* does not exist"):
        checks.check(config)


@pytest.mark.parametrize(
    "key", ["experiment.resume", "model.pretrained_model", "model.value_base_model", "dataset.train_dataset"]
)
def test_overwrite_never_deletes_what_the_new_run_begins_with(shop, key):
    """Through a link too; beside what it deletes, such a thing may lie in the run's folder."""
    run = run_path(begun(rl_config(shop)))
    name = "rollouts.jsonl" if key == "dataset.train_dataset" else "ckpt/step-000001"
    place = run / name
    if place.suffix:
        shutil.copy(shop.tasks, place)
    else:
        shutil.copytree(shop.model, place)
    link = shop.folder / f"link{place.suffix}"
    link.symlink_to(place)
    changed = ["training.seed=5", "experiment.overwrite=true"]
    with pytest.raises(ValueError, match=f"overwrite=true would delete {link}, which {key}={link} needs: leave"):
        check_start(rl_config(shop, *changed, f"{key}={link}"), RL_COMMAND)
    assert place.exists()
    beside = place.rename(run / f"mine{place.suffix}")
    if key != "experiment.resume":
        check_start(rl_config(shop, *changed, f"{key}={beside}"), RL_COMMAND)


@pytest.mark.slow
def test_a_strategy_of_the_users_own_is_named_once_after_it_was_edited_and_may_move(shop, caplog):
    """In a list too; a reward that moves with its content resumes."""
    file, elsewhere = shop.folder / "mine.py", shop.folder / "moved"
    file.write_text("def first(proposal, masked, k, choices):\n    return masked\n")
    elsewhere.mkdir()

    def config(folder):
        named = f"[{folder}/mine.py:first,sequential]"
        return rl_config(shop, f"evaluation.strategy={named}", f"reward.function={folder}/my_reward.py:always_one")

    begun(config(shop.folder))
    file.write_text(file.read_text() + "# edited\n")
    begun(config(shop.folder))
    assert f"evaluation.strategy: {file}:first, sequential has been edited" in one_line(caplog, "other settings")
    begun(config(shop.folder))
    assert not caplog.messages
    for path in (file, shop.reward):
        path.rename(elsewhere / path.name)
    begun(config(elsewhere))
    assert one_line(caplog, "other settings").count("(it holds the same)") == 2


def test_the_first_model_of_a_value_model_and_a_judge_are_compared_too(linked):
    named = [f"model.value_base_model={linked.model}", f"judge.local={linked.model}", "judge.mode=process"]
    config = begun(rl_config(linked, *named))
    kept = OmegaConf.load(run_path(config) / "config.yaml")
    assert {kept.model.value_base_model, kept.judge.local} == {str(linked.folder / "a")}
    change_weights(linked.folder / "a")
    with pytest.raises(ValueError, match="(?s)model.value_base_model.* held .*judge.local.* held "):
        check_start(config, RL_COMMAND)


def test_a_run_of_an_earlier_version_resumes_without_digests_and_keeps_them_from_then_on(shop, caplog):
    config = begun(rl_config(shop))
    kept = run_path(config) / "config.yaml"
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if not line.startswith("# Digest")))
    begun(config)
    one_line(caplog, "is of an earlier version and has no digests")
    begun(config)
    assert not caplog.messages


@pytest.mark.slow
def test_adapters_name_the_folder_that_a_link_led_to_and_miss_it_when_it_changes(linked):
    run_sft(linked, "training.max_steps=1", "lora.rank=2")
    adapters = linked.runs / "sft" / "ckpt" / "optimized"
    lead_elsewhere(linked)
    assert load_model(adapters).adapters.base_model_name_or_path == str(linked.folder / "a")
    change_weights(linked.folder / "a")
    words = [f"model.pretrained_model={adapters}", CHECK]
    with pytest.raises(ValueError, match=f"{adapters} were trained on other weights than {linked.folder}/a"):
        evaluation.run(load_config(linked.arguments(EVAL, *words)))


def test_a_checkpoint_of_adapters_whose_base_has_changed_begins_no_other_run(linked):
    words = ["training.max_steps=2", "lora.rank=2"]
    run_sft(linked, *words, "training.max_steps=1")
    lead_elsewhere(linked)
    change_weights(linked.folder / "a")
    start = (linked.runs / "sft" / "ckpt" / "optimized").resolve()
    with pytest.raises(ValueError, match=f"{start} were trained on other weights than {linked.folder}/a"):
        run_sft(linked, *words, "experiment.project=other", f"experiment.resume={start}")


def test_eval_names_a_checkpoint_that_is_not_as_it_was_written(shop):
    """By one bit of any file of the model; what only a trainer reads does not matter to it."""
    run_sft(shop, "training.max_steps=1")
    link = shop.runs / "sft" / "ckpt" / "optimized"
    checked = partial(require_as_written, CheckpointSpec.read(link))
    flip(link / "trainer" / "state.pt")
    checked()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        flip(link / name)
        with pytest.raises(ValueError, match=f"{link} is not as it was written .{name} is damaged"):
            checked()
        flip(link / name)
        checked()
    flip(link / "model.safetensors")
    with pytest.raises(ValueError, match="not as it was written"):
        evaluation.run(load_config(shop.arguments(EVAL, f"model.pretrained_model={link}", CHECK)))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
