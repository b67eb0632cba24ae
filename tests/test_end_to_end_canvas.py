"""DiffusionGemma through the commands: a tiny random model, which shows that they run, not that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from end_to_end import EVAL, RL, SFT, Workshop, read_jsonl, text_checkpoint, without_clock

from configs import load_config
from generate import block_diffusion_generate
from models import load_model
from sample.config import decoding_of
from serve.loading import Reader, check, load_sampler, sized
from serve.settings import ServeSettings, read_settings
from train import evaluation, rl, sft

DECODED = (
    *("rollout.strategy=entropy_bounded", "rollout.threshold=0.9", "rollout.entropy_bound=0.1"),
    *("rollout.temperature=0.8", "rollout.final_temperature=0.4", "rollout.steps_per_block=6"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canvas")
    return Workshop(folder, text_checkpoint(folder / "model", "diffusion_gemma"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    return Workshop(folder, text_checkpoint(folder / "model", "sdar"))


@pytest.mark.slow
def test_an_evaluation(shop):
    found = evaluation.run(load_config(shop.arguments(EVAL, *DECODED), command="eval"))
    assert found["entropy_bounded-b8-T0.8"]["tasks"] == 3.0
    rows = read_jsonl(shop.runs / "eval" / "samples.jsonl")
    assert all(len(row["canvas_ids"]) % 8 == 0 and row["block_size"] == 8 for row in rows)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "strategy='low_confidence_dynamic': diffusion_gemma has canvases, .* strategy=entropy_bounded"),
        ([*DECODED, "rollout.block_size=4"], "block_size 4: a canvas of .* has 8 tokens"),
        ([*DECODED, "rollout.steps_per_block=null", "rollout.steps=12"], "rollout.steps=12: all canvases"),
        ([*DECODED, "rollout.edit_threshold=0.5"], "edit_threshold=0.5: there is no such rule for canvases"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_the_model_is_loaded(shop, typed, said, monkeypatch):
    monkeypatch.setattr(evaluation, "_setup", None)
    with pytest.raises(ValueError, match=said):
        evaluation.run(load_config(shop.arguments(EVAL, *typed), command="eval"))


@pytest.mark.parametrize("section", ["rollout", "evaluation"])
@pytest.mark.parametrize("choice", ["stable_steps=2", "final_temperature=0.5", "settled_entropy=0.1"])
def test_choices_of_canvases_are_refused_by_a_dry_run_with_masks(masks, section, choice):
    typed = masks.arguments(RL, f"{section}.{choice}", "dry_run=true")
    with pytest.raises(ValueError, match=f"{section}: {choice} is of canvases"):
        rl.run(load_config(typed, command="rl"))


def test_rl_refuses_it_by_name(shop):
    with pytest.raises(ValueError, match="diffusion_gemma checkpoint, which rl.py does not train"):
        rl.run(load_config(shop.arguments(RL), command="rl"))


TUNED = ("training.method=uniform", "training.lower_p=0.001", "training.upper_p=1", "training.mask_times_per_sample=1")


def tuned(shop, *arguments):
    return sft.run(load_config(shop.arguments(SFT, *TUNED, *arguments), command="sft"))


def steps(shop, project):
    rows = without_clock(read_jsonl(shop.runs / project / "metrics.jsonl"))
    return [row for row in rows if "grad_norm" in row]


@pytest.mark.long
@pytest.mark.slow
def test_fine_tuning_learns_answers_and_its_model_is_evaluated(shop):
    """Six short answers."""
    tuned(shop, "training.num_train_epochs=40", "experiment.save_every=40", "dataset.validation_split=0.2")
    rows = steps(shop, "sft")
    for name in ("nll", "encoder_nll"):
        first, last = (np.mean([row[name] for row in part]) for part in (rows[:6], rows[-6:]))
        assert last < 0.5 * first, (name, first, last)
    learned = f"model={shop.runs / 'sft' / 'ckpt' / 'optimized'}"
    arguments = [each for each in shop.arguments(EVAL, *DECODED) if not each.startswith("model.pretrained_model")]
    found = evaluation.run(load_config([*arguments, learned, "experiment.project=tuned"], command="eval"))
    assert found["entropy_bounded-b8-T0.8"]["tasks"] == 3.0


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), pytest.param(("lora.rank=4",), marks=pytest.mark.long)])
def test_fine_tuning_resumed_equals_straight(shop, monkeypatch, lora):
    arguments = ("training.num_train_epochs=4", "experiment.save_every=2", *lora)
    straight, resumed = (f"{name}{len(lora)}" for name in ("straight", "resumed"))
    tuned(shop, *arguments, f"experiment.project={straight}")
    make_samples = sft.make_samples

    def dies_in_epoch_3(sample, model, training, method, epoch, window):
        if epoch == 3:
            raise InterruptedError
        return make_samples(sample, model, training, method, epoch, window)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(sft, "make_samples", dies_in_epoch_3)
        tuned(shop, *arguments, f"experiment.project={resumed}")
    tuned(shop, *arguments, f"experiment.project={resumed}")
    assert steps(shop, resumed) == steps(shop, straight) and len(steps(shop, resumed)) == 8
    got, want = (load_model(shop.runs / p / "ckpt" / "optimized").state_dict() for p in (resumed, straight))
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["training.method=semi-ar"], "method=semi-ar: diffusion_gemma has canvases .* set training.method=uniform"),
        (["training.block_size=4", "experiment.project=none"], "block_size 4: a canvas of .* has 8 tokens"),
        (["training.loss_weight=inverse_level"], "loss_weight=inverse_level is the bound of masks"),
        (["training.sft_objective=dpo"], "sft_objective=dpo: canvases are trained by nll alone"),
        (["lora.rank=4", "lora.dropout=0.1"], "lora.dropout=0.1: adapters of diffusion_gemma"),
        (["experiment.deepspeed_file=1_node_8_gpus_fsdp2", "experiment.processes=8"], "diffusion_gemma under FSDP2"),
        (
            ["training.train_vision=projector", "experiment.project=none"],
            "no vision in its checkpoint that could be trained",
        ),
    ],
)
def test_fine_tuning_that_cannot_be_is_refused_before_the_model_is_loaded(shop, typed, said, monkeypatch):
    monkeypatch.setattr(sft, "make_trained_model", None)
    with pytest.raises(ValueError, match=said):
        tuned(shop, *typed)


def test_fine_tuning_names_keys_without_effect(shop, caplog):
    tuned(shop, "training.replaced_p=0.1", "training.normalization=token_mean", "dry_run=true")
    assert "training.replaced_p=0.1 has no effect" in caplog.text
    assert "training.normalization=token_mean has no effect" in caplog.text


@pytest.mark.slow
def test_it_is_served(shop):
    """As the server and the chat make and feed their session."""
    given = {"strategy": "entropy_bounded", "temperature": 0.8, "final_temperature": 0.4, "steps_per_block": 6}
    settings = ServeSettings(model=str(shop.model), device="cpu", template="chat", **given)
    with pytest.raises(ValueError, match="has canvases"):
        check(ServeSettings(model=str(shop.model), device="cpu", strategy="sequential"))
    settings = sized(settings, spec := check(settings))
    sampler = load_sampler(settings, spec)
    session = sampler.session(settings.max_sequence_tokens)
    session.add(Reader(sampler.model, settings).text("1+2="), max_new_tokens=10)
    found = []
    while session.running or session.waiting:
        found += [update.rollout for update in session.poll() if update.rollout]
    assert 0 < len(found[0].token_ids) <= 10


def test_generate_gives_prompts_and_answers_with_pads(shop):
    model = load_model(shop.model)
    prompt = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    output = block_diffusion_generate(
        *(model, prompt, model.mask_id),
        **{"gen_length": 12, "block_length": 8, "denoising_steps": 3, "temperature": 0.8, "final_temperature": 0.4},
        **{"remasking_strategy": "entropy_bounded", "entropy_bound": 0.1, "seed": 1},
    )
    assert output.shape == (2, 3 + 16) and output[0, :3].tolist() == [5, 6, 7] and output[1, -1] == model.pad_id


def test_without_a_strategy_it_is_decoded_as_published(shop, masks):
    def decoding(folder, *typed):
        settings = read_settings(ServeSettings, [f"model={folder}", "device=cpu", *typed], "serve.py")
        found = sized(settings, check(settings))
        return found.strategy, found.entropy_bound, found.temperature, found.final_temperature

    assert decoding(shop.model) == ("entropy_bounded", 0.1, 0.8, 0.4)
    assert decoding(shop.model, "temperature=0.3", "entropy_bound=0.2") == ("entropy_bounded", 0.2, 0.3, 0.3)
    assert decoding(shop.model, "temperature=0") == ("entropy_bounded", 0.1, 0.0, None)
    assert decoding(shop.model, "strategy=entropy_bounded") == ("entropy_bounded", 0.35, 1.0, None)
    assert decoding(masks.model) == ("low_confidence_dynamic", 0.35, 1.0, None)


def test_its_generation_config_decides_what_is_published(shop):
    spec = load_model(shop.model).spec
    own = {"sampler_config": {"entropy_bound": 0.3}, "t_max": 0.7, "t_min": 0.0}
    given = {"strategy": None, "entropy_bound": None, "temperature": None, "final_temperature": None}
    found = decoding_of(given, replace(spec, generation=own))
    assert list(found.values()) == ["entropy_bounded", 0.3, 0.7, None]


def test_generate_decodes_as_published_and_says_nothing(shop, caplog):
    model = load_model(shop.model)
    prompt = {"input_ids": torch.tensor([[5, 6, 7]])}
    settings = {"gen_length": 12, "denoising_steps": 3, "seed": 1}
    output = block_diffusion_generate(model, prompt, model.mask_id, **settings)
    named = {
        "remasking_strategy": "entropy_bounded",
        "entropy_bound": 0.1,
        "temperature": 0.8,
        "final_temperature": 0.4,
    }
    same = block_diffusion_generate(model, prompt, model.mask_id, block_length=8, **settings, **named)
    assert output.shape == (1, 3 + 16) and output.equal(same) and not caplog.records


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"block_length": 4}, "block_length=4: a canvas of this checkpoint has 8 tokens: leave it out"),
        ({"remasking_strategy": "sequential"}, "remasking_strategy='sequential': .* set entropy_bounded"),
    ],
)
def test_generate_refuses_choices_of_masks_in_its_own_words(shop, given, said):
    model = load_model(shop.model)
    with pytest.raises(ValueError, match=said):
        block_diffusion_generate(model, {"input_ids": torch.tensor([[5]])}, model.mask_id, **given)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["rollout", "evaluation"])
def test_a_bound_of_entropies_without_its_strategy_is_named(masks, section, caplog):
    said = f"{section}.entropy_bound=0.1 has no effect: set {section}.strategy=entropy_bounded"
    for typed, warned in ([], True), ([f"{section}.strategy=entropy_bounded"], False):
        caplog.clear()
        rl.run(load_config(masks.arguments(RL, f"{section}.entropy_bound=0.1", "dry_run=true", *typed), command="rl"))
        assert (said in caplog.text) == warned
