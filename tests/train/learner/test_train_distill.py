"""On-policy distillation: a teacher's log-probabilities at the recorded states, and the checkpoint that it is."""

import json

import numpy as np
import pytest
from end_to_end import RL, SFT, read_jsonl, text_checkpoint
from helpers import tiny_model
from trainees import make_config, make_policy, sampled

from configs import load_config
from models import load_model
from models.spec import CheckpointSpec
from runtime.run_folder import RunFolder
from train import checks, rl
from train.memory.inputs import Inputs
from train.memory.plan import always, phases
from train.setup.models import RunModels, frozen_reference, reference_spec_of, value_spec_of

DISTILL = {"objective": "distill", "beta": 0.0}


def config_of(policy, teacher, **training):
    model = {"pretrained_model": str(policy), "reference_model": str(teacher)}
    return make_config(model=model, training=DISTILL | training)


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_teacher_that_is_the_policy_itself_moves_nothing(family):
    """It scores every token where the sampler chose it: the replay is exact."""
    model = tiny_model(family)
    policy = make_policy(model, **DISTILL)
    policy.reference = tiny_model(family)
    rollouts = sampled(model, [5, 8, 3], block_size=4)
    _, old, teacher = policy._with_log_probs(policy.batch(rollouts, [0.0] * 3))
    assert np.concatenate(teacher) == pytest.approx(np.concatenate(old), abs=1e-5)
    assert policy.train(policy.batch(rollouts, [0.0] * 3), 1).metrics["grad_norm"] < 1e-4


def test_a_teacher_or_value_model_of_another_vocabulary_or_family_is_refused_by_name(tmp_path):
    mine = text_checkpoint(tmp_path / "mine")
    policy = CheckpointSpec.read(mine)
    assert reference_spec_of(config_of(mine, text_checkpoint(tmp_path / "same")), policy) is not None
    assert reference_spec_of(make_config(model={"reference_model": "nowhere"}), policy) is None  # nothing reads it
    wide = text_checkpoint(tmp_path / "wide", vocab_size=48)
    renamed = text_checkpoint(tmp_path / "renamed")
    words = json.loads((renamed / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    (renamed / "tokenizer.json").write_text(json.dumps(words))
    other = text_checkpoint(tmp_path / "other", "dream")
    for folder, reason in (
        (wide, "has another vocabulary than model.pretrained_model: 48 ids against 40"),
        (renamed, "has another vocabulary than model.pretrained_model: token '7' is"),
        (other, "is a dream checkpoint, model.pretrained_model a sdar one"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises(ValueError, match=f"model.reference_model.*{reason}"):
            reference_spec_of(config_of(mine, folder), policy)
        with pytest.raises(ValueError, match=f"model.value_base_model.*{reason}"):
            value_spec_of(make_config(model={"value_base_model": str(folder)}), policy)
    assert value_spec_of(make_config(model={"value_base_model": str(tmp_path / "same")}), policy) is not None


def test_mask_ids_are_compared_as_they_are_resolved(tmp_path):
    """A checkpoint may leave its mask id to the tokenizer or the family."""
    mine, same, other = (text_checkpoint(tmp_path / name) for name in ("mine", "same", "other"))
    settings = json.loads((mine / "config.json").read_text())
    given = load_model(mine).mask_id
    for folder, mask in ((mine, given), (same, None), (other, given + 1)):
        (folder / "config.json").write_text(json.dumps(settings | {"mask_token_id": mask}))
    policy = CheckpointSpec.read(mine)
    assert reference_spec_of(config_of(mine, same), policy) is not None
    with pytest.raises(ValueError, match=rf"its mask id is {given + 1}, not {given}"):
        reference_spec_of(config_of(mine, other), policy)


@pytest.mark.parametrize("key", ["reference_model", "value_base_model"])
def test_the_other_models_are_checked_before_the_sft_that_makes_the_first(shop, tmp_path, key):
    """But one that is the model which the SFT makes."""
    arguments, made = shop.arguments(SFT), tmp_path / "made"
    first = load_config([*arguments, f"model.pretrained_model={shop.model}"], command="sft")
    reads = ["training.kl_to=reference", "training.beta=0.1"] if key == "reference_model" else []
    typed = [*reads, f"model.pretrained_model={made}"]

    def check(other):
        checks.check(load_config(shop.arguments(RL, *typed, f"model.{key}={other}"), command="rl"), first)

    with pytest.raises(ValueError, match=f"model.{key}"):
        check(text_checkpoint(tmp_path / "other", "dream"))
    check(made)


def test_the_memory_plan_counts_the_teacher(tmp_path):
    mine, teacher = text_checkpoint(tmp_path / "mine"), text_checkpoint(tmp_path / "teacher", num_hidden_layers=6)
    config, policy = config_of(mine, teacher), CheckpointSpec.read(mine)
    inputs = Inputs.of(config, RunModels.of(config, policy))
    weights = sum(w.numel() for w in frozen_reference(config, load_model(mine), "no").parameters())
    assert always(inputs)["frozen reference"] == 4 * weights > 4 * inputs.net.parameters
    assert phases(inputs)["reference, before the update"]["a pass"] > 0
    alone = make_config(model={"pretrained_model": str(mine)}, training={"kl_to": "reference", "beta": 0.1})
    assert always(Inputs.of(alone, RunModels.of(alone, policy)))["frozen reference"] == 4 * inputs.net.parameters


def test_what_does_not_go_together_is_said(shop, tmp_path, caplog):
    def check(*arguments):
        rl.check(load_config(shop.arguments(RL, *arguments), command="rl"))

    with pytest.raises(ValueError, match=r"objective=distill learns from a teacher: set model.reference_model"):
        check("training.objective=distill")
    teacher = f"model.reference_model={shop.model}"
    with pytest.raises(ValueError, match=r"objective=distill reads no advantage, and model.value_base_model="):
        check("training.objective=distill", teacher, f"model.value_base_model={shop.model}")
    check(teacher)
    assert "model.reference_model=" in caplog.text and "has no effect: set training.kl_to=reference" in caplog.text


@pytest.mark.slow
def test_distillation_as_a_run_trains_every_response_and_resumes(shop, tmp_path):
    """Where all rewards are equal too. A resumed run gives the same bits; another teacher is refused."""
    teacher = text_checkpoint(tmp_path / "teacher", num_hidden_layers=3)
    typed = ["training.objective=distill", f"model.reference_model={teacher}", "experiment.deterministic=true"]
    typed += ["rollout.max_slots=4", "evaluation.eval_dataset=null"]

    def run(*arguments):
        return rl.run(load_config(shop.arguments(RL, *typed, *arguments, reward="always_one"), command="rl"))

    run("experiment.project=straight")
    run("experiment.project=resumed", "experiment.total_step=1")
    run("experiment.project=resumed")
    rows = {name: read_jsonl(shop.runs / name / "metrics.jsonl") for name in ("straight", "resumed")}
    assert [row["loss"] for row in rows["straight"]] == [row["loss"] for row in rows["resumed"]]
    first = rows["straight"][0]
    assert first["kl"] > 0.001 and first["trained_tokens"] > 0 and "groups_dropped/equal" not in first
    saved = [
        (RunFolder(shop.runs / name).checkpoints / "optimized" / "model.safetensors").read_bytes() for name in rows
    ]
    assert saved[0] == saved[1]
    (teacher / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.reference_model"):
        run("experiment.project=resumed", "experiment.total_step=3", f"model.reference_model={shop.model}")
