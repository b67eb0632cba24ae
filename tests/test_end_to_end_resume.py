"""Runs that die, or are asked to stop, and are typed again: nothing twice, nothing lost."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from commands import finish
from end_to_end import RL, SFT, read_jsonl, without_clock
from safetensors.torch import load_file

from benchmarks.damage import names_file
from configs import load_config
from models import load_model
from runtime import stopping
from runtime.run_folder import RunFolder
from train import evaluate, rl, sft
from train.collect import Collector
from train.learner import updater
from train.learner.checkpoint import read_state
from train.learner.policy import Policy
from train.setup import models as setup_models
from train.setup import process
from train.setup.process import prepare_process

NO_EVALUATION = "evaluation.eval_dataset=''"


class Stop(Exception):
    pass


def run_rl(shop, *arguments):
    return rl.run(load_config(shop.arguments(RL, *arguments)))


@pytest.fixture
def listening():
    """This process takes its first SIGTERM as a request to stop; called, it takes the next one so."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    stopping.listen()
    yield stopping.listen
    stopping.listen()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def assert_same_run(folder, other):
    rows, wanted = (without_clock(read_jsonl(path / "metrics.jsonl")) for path in (folder, other))
    assert rows == wanted
    weights = ((path / "ckpt" / "optimized" / "model.safetensors").read_bytes() for path in (folder, other))
    assert next(weights) == next(weights)


@pytest.mark.slow
def test_rl_asked_to_stop_saves_what_is_done_and_resumes(shop, monkeypatch, listening):
    """In the rollout of step 2, which is dropped; no checkpoint was due after step 1."""
    arguments = ["experiment.save_every=2", "rollout.num_task_per_step=2", "evaluation.eval_dataset=''"]
    run_rl(shop, *arguments, "experiment.project=straight")
    rollout = Collector.sample

    def asked_in_step_2(self, prompts, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return rollout(self, prompts, step)

    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped, match="SIGTERM"):
        patch.setattr(Collector, "sample", asked_in_step_2)
        run_rl(shop, *arguments, "experiment.project=stopped")
    stopped = shop.runs / "stopped"
    assert [path.name for path in stopped.glob("ckpt/step-*")] == ["step-000001"]
    listening()
    run_rl(shop, *arguments, "experiment.project=stopped")
    assert_same_run(stopped, shop.runs / "straight")


@pytest.mark.slow
def test_fine_tuning_asked_to_stop_saves_within_an_epoch_and_resumes(shop, monkeypatch, listening):
    """In the second of two updates of epoch 2, between its micro-batches: that update is given up."""
    arguments = ["training.num_train_epochs=3", "lr_scheduler.params.min_lr_scale=0.1"]
    arguments += ["training.max_tokens_per_microbatch=16"]
    sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=straight")))
    update, pack, packed = sft.FineTuning.update, updater.pack, []

    def counted(tuning, samples, step):
        packed[:] = [step]
        return update(tuning, samples, step)

    def asked_in_update_4(*given):
        packed.append(given)
        if packed[0] == 4 and len(packed) == 2:
            signal.raise_signal(signal.SIGTERM)
        return pack(*given)

    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped, match="SIGTERM"):
        patch.setattr(sft.FineTuning, "update", counted)
        patch.setattr(updater, "pack", asked_in_update_4)
        sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=stopped")))
    stopped = shop.runs / "stopped"
    assert [path.name for path in stopped.glob("ckpt/step-*")] == ["step-000003"]
    listening()
    sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=stopped")))
    assert_same_run(stopped, shop.runs / "straight")


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_through_a_kill(shop, monkeypatch):
    """Step 1 is the best, by mean reward, since the reward is no verdict; the run dies in the evaluation of step 3,
    whose checkpoint is written already."""
    arguments = ["experiment.total_step=4", "experiment.save_every=4", "experiment.eval_every=1", "evaluation.top_k=0"]
    arguments += ["experiment.keep_last=1", "experiment.keep_best=true", "experiment.eval_first=false"]
    given = {1: 0.75, 2: 0.5, 3: 0.25, 4: 0.5}
    run, at = evaluate.evaluate, []

    def with_given_reward(*args, **named):
        (result,) = run(*args, **named)
        at.append(len(at) + 1)
        if len(at) == 3 and dying:
            raise Stop
        metrics = result.metrics | {"reward": given[at[-1]]}
        return [SimpleNamespace(name=result.name, metrics=metrics, scores=result.scores)]

    def checkpoints():
        return sorted(p.name for p in ckpt.iterdir()), (ckpt / "best").resolve().name

    ckpt, dying = shop.runs / "rl" / "ckpt", True
    monkeypatch.setattr(evaluate, "evaluate", with_given_reward)
    with pytest.raises(Stop):
        run_rl(shop, *arguments)
    assert checkpoints() == (["best", "optimized", "step-000001", "step-000003"], "step-000001")
    (ckpt / "best").unlink()
    dying, at[:] = False, [1, 2]
    assert run_rl(shop, *arguments)["best_model"] == str(ckpt / "best")
    assert checkpoints() == (["best", "optimized", "step-000001", "step-000004"], "step-000001")
    assert [row["step"] for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl")] == [1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(ValueError, match="needs evaluations"):
        run_rl(shop, "experiment.keep_best=true", "evaluation.eval_dataset=''")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reward function .* raised")
def test_an_evaluation_without_rewards_is_never_the_best(shop):
    arguments = shop.arguments(
        RL, "experiment.total_step=1", "experiment.keep_best=true", "experiment.eval_first=false", reward="raises"
    )
    for _ in range(2):
        summary = rl.run(load_config([*arguments, "evaluation.top_k=0"]))
        assert summary["accuracy_after"] is None and "best_model" not in summary


@pytest.mark.slow
def test_an_evaluation_that_was_broken_off_is_logged_once(shop, monkeypatch):
    """It dies when all lines of the evaluation after step 2 are written, and evaluations.json is not."""
    write = evaluate.atomic_write_text

    def dies_after_step_2(path, text):
        if "2" in json.loads(text):
            raise Stop
        write(path, text)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(evaluate, "atomic_write_text", dies_after_step_2)
        run_rl(shop)
    assert len(read_jsonl(shop.runs / "rl" / "metrics.jsonl")) == 6
    assert run_rl(shop)["accuracy_after"] is not None
    assert [row["step"] for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl")] == [0, 0, 1, 2, 2, 2]


@pytest.mark.slow
def test_a_run_begins_with_a_checkpoint_of_another(shop):
    run_rl(shop, NO_EVALUATION, "experiment.project=first")
    first = shop.runs / "first" / "ckpt"
    arguments = [NO_EVALUATION, "experiment.project=b", f"experiment.resume={first}/step-000001"]
    run_rl(shop, *arguments)
    assert [row["step"] for row in read_jsonl(shop.runs / "b" / "metrics.jsonl")] == [2]
    got, want = (load_model(path / "optimized").state_dict() for path in (shop.runs / "b" / "ckpt", first))
    assert all(torch.equal(got[name], want[name]) for name in want)
    shutil.rmtree(first / "step-000001")
    assert run_rl(shop, *arguments, "dry_run=true") is None, "the run has a checkpoint of its own by now"
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        run_rl(shop, *arguments, "experiment.project=c", "dry_run=true")


@pytest.mark.slow
def test_a_link_to_begin_with_is_followed_once_also_when_the_run_is_killed_before_its_first_checkpoint(
    shop, monkeypatch, caplog
):
    """The other run goes on meanwhile, so that its link leads to another checkpoint."""
    few = [NO_EVALUATION, "rollout.num_task_per_step=2"]
    run_rl(shop, *few, "experiment.project=first")
    first = shop.runs / "first" / "ckpt"
    (first / "optimized").unlink()
    (first / "optimized").symlink_to("step-000001")
    found = []

    class Killed(Exception):
        pass

    def killed(learner, config, checkpoints):
        (first / "optimized").unlink(missing_ok=True)
        (first / "optimized").symlink_to("step-000002")
        found.append((checkpoints.start, checkpoints.progress.step))
        raise Killed

    monkeypatch.setattr(rl.Learner, "__init__", killed)
    for resume in (f"{first}/optimized", f"{first}/optimized", "auto"):
        with pytest.raises(Killed):
            run_rl(shop, *few, "experiment.project=b", f"experiment.resume={resume}")
    assert found == [(first / "step-000001", 1)] * 3
    assert caplog.text.count(f"began with {first}/step-000001 and begins with it again") >= 1
    shutil.rmtree(first / "step-000001")
    with pytest.raises(ValueError, match=f"began with {first}/step-000001, which is gone or another checkpoint now"):
        run_rl(shop, *few, "experiment.project=b", "dry_run=true")


@pytest.mark.slow
def test_a_checkpoint_of_another_kind_is_refused_before_a_model_is_loaded(shop, monkeypatch):
    def run_sft(*arguments):
        return sft.run(load_config(shop.arguments(SFT, "training.num_train_epochs=1", *arguments)))

    run_sft()
    run_rl(shop, NO_EVALUATION, "experiment.total_step=1")
    tuned, trained = (shop.runs / name / "ckpt" / "optimized" for name in ("sft", "rl"))
    for name in ("load_model", "load_value_model"):
        monkeypatch.setattr(setup_models, name, lambda *given: pytest.fail("a model was loaded"))
    with_value = f"model.value_base_model={shop.model}"
    for dry in ("dry_run=true", "dry_run=false"):
        arguments = [NO_EVALUATION, "experiment.project=other", dry]
        with pytest.raises(ValueError, match=f"experiment.resume={tuned} .*written by train/sft.py.*{tuned}"):
            run_rl(shop, *arguments, f"experiment.resume={tuned}")
        with pytest.raises(ValueError, match="has no value model.*model.value_base_model"):
            run_rl(shop, *arguments, f"experiment.resume={trained}", with_value)
        with pytest.raises(ValueError, match=f"experiment.resume={trained} .*written by rl.py.*{trained}"):
            run_sft("experiment.project=other", dry, f"experiment.resume={trained}")
    assert not (shop.runs / "other").exists()


@pytest.mark.slow
def test_a_run_has_its_own_settings_after_the_one_that_made_its_model(shop, monkeypatch):
    """First run and resume have the same: the SFT's are gone when the run begins."""
    named = f"model: {{pretrained_model: {shop.model}}}\ndataset: {{optimization_data: {shop.pairs}}}\n"
    (shop.folder / "first.yaml").write_text(SFT + named)
    made, seen, matmul = shop.runs / "sft" / "ckpt" / "optimized", [], torch.backends.cuda.matmul

    def tunes(config):
        prepare_process(config)
        matmul.allow_tf32 = True
        torch.use_deterministic_algorithms(True)
        torch.rand(3)
        shutil.copytree(shop.model, made)
        RunFolder(shop.runs / "sft").finish({})

    def begins(run, config, folder):
        settings = matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        seen.append((*settings, torch.rand(3).tolist()))
        raise Stop

    monkeypatch.setattr(sft, "run", tunes)
    monkeypatch.setattr(rl.Run, "__init__", begins)
    arguments = [f"model.prepare_with={shop.folder}/first.yaml", f"model.pretrained_model={made}"]
    for _ in range(2):
        with pytest.raises(Stop):
            run_rl(shop, *arguments, "training.enable_tf32=false")
    assert seen[0] == seen[1] and seen[0][:3] == (False, False, 1)


@pytest.mark.slow
def test_fine_tuning_killed_within_an_epoch_resumes_from_its_newest_update(shop, monkeypatch):
    """Two updates an epoch; the third one is saved, the fourth is killed. Five updates in all end within an epoch."""
    arguments = ["experiment.save_every_updates=3", "training.max_steps=5", "lr_scheduler.params.min_lr_scale=0.1"]
    update = sft.FineTuning.update
    seen = []

    def dies_in_update_4(self, rows, step):
        seen.append(step)
        if seen == [1, 2, 3, 4]:
            raise Stop
        return update(self, rows, step)

    sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=straight")))
    monkeypatch.setattr(sft.FineTuning, "update", dies_in_update_4)
    typed = load_config(shop.arguments(SFT, *arguments, "experiment.project=killed"))
    with pytest.raises(Stop):
        sft.run(typed)
    killed, straight = shop.runs / "killed", shop.runs / "straight"
    assert [path.name for path in killed.glob("ckpt/step-*")] == ["step-000003"]
    assert sft.run(typed)["steps"] == 5
    assert seen == [1, 2, 3, 4, 4, 5]
    assert sorted(path.name for path in killed.glob("ckpt/step-*")) == ["step-000003", "step-000005"]
    assert_same_run(killed, straight)
    rates = [row["learning_rate"] for row in read_jsonl(straight / "metrics.jsonl")]
    assert len(rates) == 5 and rates == sorted(rates, reverse=True)


@pytest.fixture
def prepared(shop):
    """Words of a run whose first model is made by three epochs of two updates, with a checkpoint after each epoch."""
    named = f"model: {{pretrained_model: {shop.model}}}\ndataset: {{optimization_data: {shop.pairs}}}\n"
    first = SFT.replace("save_every: 4", "save_every: 1").replace("num_train_epochs: 8", "num_train_epochs: 3")
    (shop.folder / "first.yaml").write_text(first + named)
    made = shop.runs / "sft" / "ckpt" / "optimized"
    arguments = [f"model.prepare_with={shop.folder}/first.yaml", f"model.pretrained_model={made}"]
    return [*arguments, NO_EVALUATION, "experiment.total_step=1"]


def interrupted_in_epoch_2(how):
    make_samples = sft.make_samples

    def interrupted(sample, model, training, method, epoch, window):
        if epoch == 1 and not stopping.is_asked():
            how()
        return make_samples(sample, model, training, method, epoch, window)

    return interrupted


def dies():
    raise Stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error"),
    [
        pytest.param(lambda: signal.raise_signal(signal.SIGINT), stopping.Stopped, id="ctrl-c"),
        pytest.param(dies, Stop, id="kill", marks=pytest.mark.slow),
    ],
)
def test_a_first_model_is_made_to_the_end_before_rl_begins(shop, prepared, monkeypatch, listening, how, error):
    """Stopped or killed in the second of three epochs: the same command resumes after the last whole update."""
    with monkeypatch.context() as patch, pytest.raises(error) as stop:
        patch.setattr(sft, "make_samples", interrupted_in_epoch_2(how))
        run_rl(shop, *prepared)
    saved = shop.runs / "sft" / "ckpt" / "step-000002"
    if error is stopping.Stopped:
        assert stop.value.resumes == f"The same command resumes from {saved}"
    assert (shop.runs / "sft" / "ckpt" / "optimized").resolve() == saved and not (shop.runs / "rl").exists()
    listening()
    run_rl(shop, *prepared)
    assert [row["step"] for row in read_jsonl(shop.runs / "sft" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (shop.runs / "sft" / "ckpt" / "optimized").resolve().name == "step-000006"
    assert [row["step"] for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl")] == [1]


@pytest.mark.slow
def test_a_finished_first_model_is_taken_as_it_is(shop, prepared, monkeypatch):
    run_rl(shop, *prepared)
    monkeypatch.setattr(sft, "run", lambda config: pytest.fail("the SFT ran again"))
    run_rl(shop, *prepared, "experiment.project=again")


@pytest.mark.slow
def test_a_half_made_first_model_of_other_settings_is_refused_with_the_way_out(shop, prepared, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sft, "make_samples", interrupted_in_epoch_2(dies))
        run_rl(shop, *prepared)
    with pytest.raises(ValueError, match="(?s)not known to have done its last step.*training.seed.*prepare_with=null"):
        run_rl(shop, *prepared, "training.seed=5")
    run_rl(shop, *prepared[1:], "training.seed=5")


@pytest.mark.slow
def test_dropout_draws_the_same_in_a_step_that_is_done_again(shop, monkeypatch):
    arguments = ["lora.rank=4", "lora.dropout=0.5", "training.num_train_epochs=2", "evaluation.eval_dataset=''"]
    run_rl(shop, *arguments, "experiment.project=straight")
    train = Policy.train

    def dies_after_step_2(self, batch, step, progress):
        train(self, batch, step, progress)
        raise Stop

    run_rl(shop, *arguments, "experiment.project=again")
    shutil.rmtree(shop.runs / "again" / "ckpt" / "step-000002")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Policy, "train", dies_after_step_2)
        run_rl(shop, *arguments, "experiment.project=again")
    run_rl(shop, *arguments, "experiment.project=again")
    straight, again = (
        (shop.runs / name / "ckpt" / "optimized" / "adapter_model.safetensors").read_bytes()
        for name in ("straight", "again")
    )
    assert straight == again


def benchmark(name, *arguments):
    """The figures of a benchmark's last line."""
    process = forked.start([f"benchmarks/{name}.py", *arguments], OMP_NUM_THREADS="1")
    status, out, err = finish(process, 600)
    assert status == 0, out + err
    return json.loads(out.splitlines()[-1])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_killed_at_random_moments_end_as_one_that_never_was():
    figures = benchmark("kill", "--kills", "3")
    assert figures["kills"] == figures["equal"] == 3


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_runs_of_every_kind_end_as_those_that_never_were():
    figures = benchmark("kill", "--all", "--kills", "1")
    assert figures["kills"] == figures["equal"] == len(figures["kinds"]) == 6


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damage_of_a_run_is_named_or_changes_nothing():
    figures = benchmark("damage", "--kinds", "sft", "--flips", "1", "--only", "metrics.jsonl")
    assert figures["cases"] == 4 == figures["equal"] + figures["named"]


def test_the_damage_benchmark_counts_a_message_only_with_the_whole_path_of_the_file():
    run, file = Path("/r/run"), "ckpt/step-000004/model.safetensors"
    for line in (
        "checkpoint /r/run/ckpt/step-000004 is not whole (model.safetensors is damaged)",
        f"error: /r/run/{file}",
    ):
        assert names_file(f"banner\nwarning: {line}: passed over", run, file)
        assert not names_file(line, run, "ckpt/step-000002/model.safetensors")
        assert not names_file(line.replace("model.saf", "value/model.saf"), run, file)
    assert not names_file("step-000004: model.safetensors is damaged", run, file)
    assert names_file("/r/run/config.yaml was damaged", run, "config.yaml")
    assert not names_file("config.yaml was damaged", run, "config.yaml")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["rl", "lora", "value", "sft"])
def test_damage_of_any_file_is_named_or_changes_nothing(kind):
    figures = benchmark("damage", "--kinds", kind, "--flips", "1")
    assert figures["cases"] > 50 and figures["cases"] == figures["equal"] + figures["named"]


def dying_in_step(step, monkeypatch, call):
    """`call`, whose run dies in the rollouts of a step."""
    sample = Collector.sample

    def dies(self, prompts, at):
        if at == step:
            raise Stop
        return sample(self, prompts, at)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Collector, "sample", dies)
        call()


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["fp32", "bf16"])
def test_a_run_in_bf16_resumes_to_the_bit(shop, monkeypatch, caplog, saved):
    """Also from rounded weights, whose fp32 ones are in trainer/; with a value model."""
    monkeypatch.setattr(process, "_cpu_has_bf16", lambda: True)
    arguments = ["training.mixed_precision=bf16", f"experiment.save_dtype={saved}", NO_EVALUATION]
    arguments += ["rollout.num_task_per_step=2", f"model.value_base_model={shop.model}"]
    run_rl(shop, *arguments, "experiment.project=straight")
    dying_in_step(2, monkeypatch, lambda: run_rl(shop, *arguments, "experiment.project=resumed"))
    run_rl(shop, *arguments, "experiment.project=resumed")
    assert "masters" not in caplog.text
    assert_same_run(shop.runs / "resumed", shop.runs / "straight")
    model = shop.runs / "straight" / "ckpt" / "step-000002"
    kinds = {weight.dtype for folder in (model, model / "value") for weight in stored(folder).values()}
    assert kinds == {torch.float32 if saved == "fp32" else torch.bfloat16}
    if saved == "bf16":
        exact = read_state(model)["weights"]
        rounded, of_value = stored(model), stored(model / "value")
        assert rounded and all(torch.equal(exact["updater"][name].bfloat16(), rounded[name]) for name in rounded)
        assert torch.equal(
            exact["value_updater"]["value_head.weight"].bfloat16(), of_value["value_head.weight"]
        ) and any(not torch.equal(exact["updater"][name], rounded[name].float()) for name in rounded)


def stored(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_rounded_weights_of_an_fp32_run_and_of_adapters_change_nothing_that_is_learned(shop):
    arguments = [NO_EVALUATION, "rollout.num_task_per_step=2", "lora.rank=2", "optimizer.params.learning_rate=1e-2"]
    run_rl(shop, *arguments, "experiment.project=exact")
    run_rl(shop, *arguments, "experiment.project=rounded", "experiment.total_step=1", "experiment.save_dtype=bf16")
    run_rl(shop, *arguments, "experiment.project=rounded", "experiment.save_dtype=fp32")
    exact, rounded = (
        load_file(shop.runs / name / "ckpt" / "optimized" / "adapter_model.safetensors")
        for name in ("exact", "rounded")
    )
    assert all(torch.equal(rounded[name], exact[name]) for name in exact)
    first = load_file(shop.runs / "rounded" / "ckpt" / "step-000001" / "adapter_model.safetensors")
    assert {weight.dtype for weight in first.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_checkpoint_of_other_numerics_is_named_when_a_bf16_run_begins_with_it(shop, monkeypatch, caplog):
    """As those are that were written under autocast, by versions before."""
    monkeypatch.setattr(process, "_cpu_has_bf16", lambda: True)
    arguments = [NO_EVALUATION, "rollout.num_task_per_step=2"]
    run_rl(shop, *arguments, "experiment.total_step=1", "experiment.project=first")
    assert "masters" not in caplog.text
    first = shop.runs / "first" / "ckpt" / "step-000001"
    run_rl(shop, *arguments, "training.mixed_precision=bf16", f"experiment.resume={first}", "experiment.project=second")
    (line,) = [record.getMessage() for record in caplog.records if "masters" in record.getMessage()]
    assert str(first) in line and "bf16" in line
    rows = read_jsonl(shop.runs / "second" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2] and 0.0 < rows[0]["mismatch_kl"] < 1e-3
