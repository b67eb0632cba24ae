"""Pictures in the trainer: what it computes is what the sampler saw, encoded once; parts of vision that learn."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import random_prompts
from PIL import Image
from trainees import make_config, make_policy, policy_of, updater_of, weights_of

from models import Prompt, ValueModel, load_model
from models.spec import CheckpointSpec
from models.tiny import tiny_checkpoint, tiny_model
from sample import Sampler, SamplingConfig
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, replay
from train.distributed.accelerator import make_accelerator
from train.learner.critic import Critic
from train.setup.models import frozen_reference, reference_spec_of

SAMPLING = SamplingConfig(
    max_new_tokens=8, block_size=4, steps_per_block=2, temperature=1.0, stop_ids=[5, 14, 23], cache="none", seed=1
)


def noise(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def model():
    return tiny_model("lladav")


def prompts_of(model):
    """Two with pictures, one of them with two, and a text."""
    texts = random_prompts([4, 3, 5], seed=3)
    (wide,) = model.encode_images([noise((30, 12))])
    pair = model.encode_images([noise((9, 9), 1), noise((12, 20), 2)], fit="pad")
    return [
        Prompt([*texts[0], *wide.ids, 7], pictures=[wide]),
        texts[1],
        Prompt([*pair[0].ids, 8, *pair[1].ids, *texts[2]], pictures=pair),
    ]


def rolled_out(model, prompts, n=3):
    rollouts = Sampler(model, SAMPLING).generate(prompts, n=n)
    owners = [prompt for prompt in prompts for _ in range(n)]
    shown = {r.key: p for r, p in zip(rollouts, owners, strict=True) if isinstance(p, Prompt)}
    return rollouts, shown


def counting(own, counts, name):
    def run(*given):
        counts[name] += 1
        return own(*given)

    return run


def counted(model, monkeypatch):
    """How often the tower is run and features are laid out."""
    counts = Counter()
    for name in ("look", "lay_out"):
        monkeypatch.setattr(model.vision, name, counting(getattr(model.vision, name), counts, name))
    return counts


def credit(rollouts):
    return [(-1.0) ** i for i in range(len(rollouts))]


@pytest.mark.parametrize("max_tokens", [1, 100, 100_000])
def test_trainer_log_probs_are_the_samplers_with_pictures_in_the_prompt(model, max_tokens):
    rollouts, shown = rolled_out(model, prompts_of(model))
    policy = make_policy(model, SAMPLING, max_tokens_per_microbatch=max_tokens)
    batch = policy.batch(rollouts, credit(rollouts), shown=shown)
    assert len(batch.samples) > len(rollouts)
    trained = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    assert np.concatenate(trained) == pytest.approx(np.concatenate(batch.logp_rollout), abs=1e-5)
    assert {len(r.images) for r in rollouts} == {0, 1, 2}


@pytest.mark.slow
def test_a_step_of_rollouts_and_epochs_encodes_a_picture_once(model, monkeypatch):
    counts = counted(model, monkeypatch)
    prompts = prompts_of(model)
    rollouts, shown = rolled_out(model, prompts, n=8)
    policy = make_policy(model, SAMPLING, num_train_epochs=2, max_tokens_per_microbatch=100)
    result = policy.train(policy.batch(rollouts, credit(rollouts), shown=shown), 1)
    assert counts == {"look": 3, "lay_out": 3}
    assert result.metrics["micro_batches"] > 6 and result.metrics["mismatch_kl"] < 1e-9


def test_samples_of_one_prompt_share_its_rows_in_a_micro_batch(model):
    prompts = prompts_of(model)
    rollouts, shown = rolled_out(model, prompts)
    settings, replayer = make_config().training, Replayer("full", False, model.mask_id, 4)
    samples = [s for r in rollouts for s in replay(r, replayer, settings, prompt=shown.get(r.key))]
    batch = pack(samples, range(len(samples)), torch.device("cpu"))
    assert batch.pictures == (prompts[0], prompts[2])
    assert batch.ids.min() == -(prompts[0].rows + prompts[2].rows)
    with pytest.raises(ValueError, match="has pictures in its prompt: replay it with"):
        replay(rollouts[0], replayer, settings)


PARTS = {
    None: (),
    "projector": ("vision.projector.", "vision.image_newline"),
    "all": ("vision.projector.", "vision.image_newline", "vision.tower."),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_trained_part_of_vision_moves_and_no_other(model, monkeypatch, part):
    model.train_vision(part)
    counts = counted(model, monkeypatch)
    rollouts, shown = rolled_out(model, prompts_of(model))
    policy, before = make_policy(model, SAMPLING), weights_of(model)
    policy.train(policy.batch(rollouts, credit(rollouts), shown=shown), 1)
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    sees = {name for name in before if name.startswith("vision.")}
    # Unused: the norm after the tower. Without effect, up to rounding: biases of keys.
    free = {name for name in sees if "post_layernorm" in name or "k_proj.bias" in name}
    trained = {name for name in sees if PARTS[part] and name.startswith(PARTS[part])}
    assert moved & (sees - free) == trained - free and not moved & (sees - trained)
    assert moved - sees == {name for name in before if name not in sees}
    if part == "projector":
        assert counts["look"] == 3 < counts["lay_out"]  # the tower is frozen, and run once


def test_a_value_model_reads_pictures_as_the_policy_encoded_them(model, monkeypatch):
    rollouts, shown = rolled_out(model, prompts_of(model))
    policy, value = make_policy(model, SAMPLING), ValueModel(tiny_model("lladav", seed=3))
    counts = counted(value.base, monkeypatch)
    accelerator = make_accelerator("no", torch.device("cpu"))
    critic = Critic(value, updater_of(make_config(), value, accelerator), policy.replay)
    before = weights_of(value)
    batch, metrics = critic.step(policy.batch(rollouts, credit(rollouts), "reward", shown=shown), rollouts, 1)
    assert np.isfinite(metrics["value/loss"]) and not counts
    assert not torch.equal(weights_of(value)["value_head.weight"], before["value_head.weight"])
    assert np.isfinite(policy.train(batch, 1).metrics["loss"])


def test_a_frozen_reference_reads_the_same_pictures(model):
    config = make_config(training={"kl_to": "reference", "beta": 0.1})
    accelerator = make_accelerator("no", torch.device("cpu"))
    reference = tiny_model("lladav").requires_grad_(False)
    policy = policy_of(config, model, accelerator, SAMPLING, reference)
    rollouts, shown = rolled_out(model, prompts_of(model))
    result = policy.train(policy.batch(rollouts, credit(rollouts), shown=shown), 1)
    assert result.metrics["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("part", [None, "projector"])
def test_a_teacher_sees_pictures_with_its_own_eyes(tmp_path, part):
    """Its log-probabilities are those of itself alone, though its hidden size is another; each picture is encoded once
    for it, and again when it was forgotten."""
    mine = tiny_checkpoint(tmp_path / "mine", "lladav")
    other = tiny_checkpoint(
        tmp_path / "other", "lladav", seed=5, hidden_size=48, num_attention_heads=3, num_key_value_heads=3
    )
    config = make_config(
        model={"pretrained_model": str(mine), "reference_model": str(other)},
        training={"kl_to": "reference", "beta": 0.1, "train_vision": part or "false"},
    )
    model = load_model(mine)
    model.train_vision(part)
    teacher = frozen_reference(config, model, "no")
    prompts = prompts_of(model)
    rollouts, shown = rolled_out(model, prompts)
    policy = policy_of(config, model, make_accelerator("no", torch.device("cpu")), SAMPLING, teacher)
    batch = policy.batch(rollouts, credit(rollouts), shown=shown)
    looked, look = [], teacher.vision.look
    teacher.vision.look = lambda pixels: looked.append(1) or look(pixels)
    *_, seen = policy._with_log_probs(batch)
    assert len(looked) == 3

    alone = load_model(other)
    own = prompts_of(alone)
    own_shown = {r.key: own[prompts.index(shown[r.key])] for r in rollouts if r.key in shown}
    alone_policy = make_policy(alone, SAMPLING)
    own_batch = alone_policy.batch(rollouts, credit(rollouts), shown=own_shown)
    expected = alone_policy.updater.outputs(own_batch.samples, range(len(own_batch.samples)))
    assert np.concatenate(seen) == pytest.approx(np.concatenate(expected), abs=1e-5)
    assert not any(name.startswith("vision") and weight.requires_grad for name, weight in teacher.named_parameters())
    for prompt in shown.values():
        prompt.forget()
    policy._with_log_probs(batch)
    assert len(looked) == 6


def test_a_teacher_whose_pictures_have_other_positions_is_refused(tmp_path):
    mine = tiny_checkpoint(tmp_path / "mine", "lladav")
    other = tiny_checkpoint(tmp_path / "other", "lladav", image_grid_pinpoints=[[16, 16], [16, 32]])
    config = make_config(model={"reference_model": str(other)}, training={"kl_to": "reference", "beta": 0.1})
    with pytest.raises(ValueError, match="model.reference_model=.*cuts pictures otherwise than model.pretrained_model"):
        reference_spec_of(config, CheckpointSpec.read(mine))
