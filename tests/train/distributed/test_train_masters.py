"""bf16: weights that work in bf16 over fp32 masters, shared by trainer and sampler."""

import numpy as np
import pytest
import torch
from helpers import random_prompts, tiny_checkpoint, tiny_model
from trainees import make_config, policy_of, sampled, updater_of

from configs.schema import TrainingConfig
from models.lora import Adapters
from sample import Sampler, SamplingConfig
from train.algorithm.replay import Replayer, replay
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.updater import outputs
from train.setup.decodings import inference_model
from train.setup.models import frozen_reference, make_trained_model

CPU = torch.device("cpu")
SAMPLING = SamplingConfig(max_new_tokens=16)


def half_policy(model, **sections):
    return policy_of(make_config(**sections), model, make_accelerator("bf16", CPU), SAMPLING)


def trained(policy, rollouts, steps=1):
    advantages = [(-1.0) ** i for i in range(len(rollouts))]
    return [policy.train(policy.batch(rollouts, advantages), step).metrics for step in range(1, steps + 1)]


def masters(updater):
    with updater.engine.whole_on_main():
        return {name: p.detach().clone() for name, p in updater.engine.module.named_parameters()}


def test_weights_work_in_bf16_and_learn_in_fp32():
    model = tiny_model("sdar")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    policy = half_policy(model)
    exact = masters(policy.updater)
    assert all(torch.equal(exact[name], before[name]) for name in before)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    (metrics,) = trained(policy, sampled(model, (5, 8, 3)))
    assert metrics["updates"] >= 1 and metrics["grad_norm"] > 0
    exact = masters(policy.updater)
    for name, p in model.named_parameters():
        assert p.dtype == torch.bfloat16 and p.data_ptr() == places[name] and p.grad is None
        assert torch.equal(p, exact[name].bfloat16()) and not torch.equal(exact[name], exact[name].bfloat16().float())
    assert any(not torch.equal(exact[name], before[name]) for name in before)


def test_steps_too_small_for_bf16_add_up():
    """A weight of 1 in bf16 does not move by 1e-4; forty such steps move it."""
    weight = torch.nn.Module()
    weight.register_parameter("w", torch.nn.Parameter(torch.ones(3, 2)))
    config = make_config(optimizer={"params": {"learning_rate": 1e-4}})
    engine = updater_of(config, weight, make_accelerator("bf16", CPU)).engine
    for step in range(40):
        engine.backward(weight.w.sum(), last=True)
        assert engine.step(0.0).taken
        assert step > 5 or torch.equal(weight.w, torch.ones(3, 2).bfloat16())
    assert float(weight.w.detach().max()) == pytest.approx(1 - 4e-3, abs=2e-3)


def test_gradients_of_many_micro_batches_are_summed_in_fp32():
    """In bf16 a sum of ones stays at 256."""
    model = torch.nn.Module()
    model.register_parameter("w", torch.nn.Parameter(torch.ones(2, 2)))
    engine = updater_of(make_config(), model, make_accelerator("bf16", CPU)).engine
    for _ in range(300):
        engine.backward(model.w.sum(), last=False)
    assert model.w.grad.dtype == torch.float32 and model.w.grad.tolist() == [[300.0] * 2] * 2
    assert engine.step(0.0).norm == pytest.approx(600.0)


def test_an_update_that_is_not_finite_leaves_masters_and_weights():
    model = tiny_model("sdar")
    policy = half_policy(model)
    exact, working = masters(policy.updater), {name: p.detach().clone() for name, p in model.named_parameters()}
    rollouts = sampled(model, (5, 8))
    metrics = policy.train(policy.batch(rollouts, [float("nan")] * 2), 1).metrics
    assert metrics["updates_skipped"] == 1
    after = masters(policy.updater)
    assert all(torch.equal(after[name], exact[name]) for name in exact)
    assert all(torch.equal(p, working[name]) and p.grad is None for name, p in model.named_parameters())


@pytest.mark.parametrize("family", ["sdar", "sdar_moe", "dream", "llada", "mmada"])
def test_the_sampler_sees_what_the_trainer_computes_in_bf16(family):
    """Autocast over fp32 weights was off by ten times as much, and by more than 20% at some tokens."""
    model = tiny_model(family, dtype="bfloat16")
    sampling = SamplingConfig(max_new_tokens=24, block_size=4, threshold=0.4, temperature=1.0, stop_ids=[])
    rollouts = Sampler(model, sampling).generate(random_prompts([5, 8, 3, 10]), n=2)
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, 4)
    pairs = [(rollout, row) for rollout in rollouts for row in replay(rollout, replayer, TrainingConfig())]
    rows = [row for _, row in pairs]
    found = np.concatenate(outputs(model, rows, range(len(rows)), 4096, CPU))
    gap = found - np.concatenate([np.asarray(r.canvas_logprobs, np.float32)[row.canvas_index] for r, row in pairs])
    assert np.abs(gap).mean() < 6e-3 and np.abs(np.expm1(gap)).max() < 0.2


def test_the_sampler_shares_the_trained_weights_and_follows_every_update():
    model = tiny_model("sdar")
    policy = half_policy(model)
    assert inference_model(model, torch.bfloat16) is model
    sampler = Sampler(model, SAMPLING)
    rollouts = sampled(model, (5, 8, 3))
    (first,) = trained(policy, rollouts)
    sampler.update_weights(policy.updater.engine.weights())
    assert sampler.weights_version == 1 and first["mismatch_kl"] < 1e-3
    apart = inference_model(model, torch.float32)
    assert apart is not model and apart.dtype == torch.float32


def test_logp_old_auto_trusts_a_sampler_of_the_trainers_numerics_alone():
    model = tiny_model("sdar")
    same, other = (Replay.of(model, SAMPLING, one_numerics=one) for one in (True, False))
    assert not same.recomputes and other.recomputes


def test_a_frozen_base_is_bf16_at_once_and_its_adapters_start_as_in_fp32(tmp_path):
    folder = tiny_checkpoint(tmp_path / "base")
    config = make_config(model={"pretrained_model": str(folder)}, lora={"rank": 4})
    exact, half = (make_trained_model(config, precision) for precision in ("no", "bf16"))
    for (name, mine), (_, theirs) in zip(half.named_parameters(), exact.named_parameters(), strict=True):
        if ".lora_" in name:
            assert mine.dtype == torch.float32 and torch.equal(mine, theirs), name
        else:
            assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs.bfloat16()) and not mine.requires_grad
    with torch.no_grad():
        for name, p in exact.named_parameters():
            if ".lora_" in name:
                p.add_(1.0 / 3.0)
    exact.save(tmp_path / "adapters")
    further = make_config(model={"pretrained_model": str(tmp_path / "adapters")})
    loaded = make_trained_model(further, "bf16")
    for (name, mine), (_, theirs) in zip(loaded.named_parameters(), exact.named_parameters(), strict=True):
        assert torch.equal(mine, theirs if ".lora_" in name else theirs.bfloat16()), name


@pytest.mark.slow
def test_adapters_learn_over_a_shared_base(tmp_path):
    folder = tiny_checkpoint(tmp_path / "base")
    settings = {"lora": {"rank": 4}, "training": {"kl_to": "reference", "beta": 0.1}}
    config = make_config(model={"pretrained_model": str(folder)}, **settings)
    model = make_trained_model(config, "bf16")
    places = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    reference = frozen_reference(config, model, "bf16")
    policy = policy_of(config, model, make_accelerator("bf16", CPU), SAMPLING, reference)
    assert inference_model(model, torch.bfloat16) is model
    rollouts = sampled(model, (5, 8, 3))
    first, second = trained(policy, rollouts, steps=2)
    assert first["mismatch_kl"] < 1e-3 and first["kl"] == pytest.approx(0.0, abs=1e-4) and second["kl"] > 0
    assert {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad} == places
    exact = masters(policy.updater)
    adapters = [name for name in exact if ".lora_" in name]
    assert adapters and all(exact[name].dtype == torch.float32 for name in adapters)
    state = policy.updater.engine.state_dict()["state"]
    assert len(state) == len(adapters) and all(s["exp_avg"].dtype == torch.float32 for s in state.values())


def test_adapters_of_another_type_than_the_body_leave_it_as_it_was():
    model = tiny_model("sdar", dtype="bfloat16")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.add_adapters(Adapters(2, 4.0), "base", seed=0, dtype=torch.float32)
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if ".lora_" not in name}
    assert all(torch.equal(after[name], before[name]) for name in before)
