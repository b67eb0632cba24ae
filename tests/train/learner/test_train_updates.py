"""Learning rate, what an update moves, and the guard: what is not finite never touches weights or optimizer."""

import copy
import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from helpers import tiny_checkpoint, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from trainees import assert_same_weights, make_config, make_policy, sampled, shifted, weights_of

import train.learner.policy
from models import load_model
from models.lora import Adapters
from sample import Sampler, SamplingConfig
from train.algorithm.objectives import Correction, TokenBatch, k1, k2, k3
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.optimizer import OptimizerSettings, Schedule, learning_rate_scale, make_optimizer
from train.learner.policy import Numbers, Policy
from train.learner.updater import NotFinite, Updater, outputs
from train.setup.doors import reads_reference
from train.setup.models import frozen_reference

LENGTHS = [5, 8, 3, 10]


def scale(step, total=100, shape="cosine", warmup=10, min_scale=0.1):
    return learning_rate_scale(step, total, shape=shape, warmup=warmup, min_scale=min_scale)


@pytest.mark.parametrize("engine", ["FSDP", "MEGATRON_LM"])
def test_an_engine_that_is_not_here_is_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ValueError, match=engine):
        make_accelerator("no", torch.device("cpu"))


def test_warm_up_is_linear_and_never_zero():
    assert [scale(s, warmup=4) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert scale(4, warmup=4) == 1.0
    assert scale(0, warmup=0) == 1.0


@pytest.mark.parametrize(("shape", "half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_decay(shape, half):
    assert scale(10, shape=shape) == 1.0
    assert scale(55, shape=shape) == pytest.approx(half)
    for late in (100, 101, 10**6):
        assert scale(late, shape=shape) == pytest.approx(1.0 if shape == "constant" else 0.1)


def test_the_decays_differ_between_their_ends():
    assert scale(32.5) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert scale(32.5, shape="linear") == pytest.approx(0.1 + 0.9 * 0.75)


@given(
    st.integers(0, 300), st.integers(1, 200), st.sampled_from(["cosine", "linear"]), st.integers(0, 50), st.floats(0, 1)
)
def test_the_rate_falls_and_stays_in_range(step, total, shape, warmup, min_scale):
    now, next_ = (scale(s, total, shape, warmup, min_scale) for s in (step, step + 1))
    assert min(min_scale, 1 / (warmup + 1)) - 1e-12 <= now <= 1.0 + 1e-12
    assert now >= next_ - 1e-12 if step >= warmup else next_ >= now - 1e-12
    assert scale(step, total, shape, warmup, 1.0) == pytest.approx(min(1.0, (step + 1) / (warmup + 1)))


def test_min_lr_scale_of_1_is_a_constant_rate():
    assert {scale(s, warmup=0, min_scale=1.0) for s in range(200)} == {1.0}


def test_decay_applies_to_matrices_alone():
    model = tiny_model("sdar")
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in model.parameters() if p.ndim >= 2} == {0.1}
    assert {decay[id(p)] for p in model.parameters() if p.ndim < 2} == {0.0}
    assert len(decay) == len(list(model.parameters()))


def test_frozen_parameters_stay_out_of_the_optimizer():
    model = tiny_model("sdar")
    model.lm_head.weight.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerSettings())
    assert id(model.lm_head.weight) not in {id(p) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("tied", [False, True])
def test_an_update_moves_every_parameter(tied):
    model = tiny_model("sdar", tie_word_embeddings=tied, attention_bias=True)
    rollouts = sampled(model, LENGTHS, n=4)
    before = weights_of(model)
    policy = make_policy(model)
    metrics = policy.train(policy.batch(rollouts, np.linspace(-1, 1, len(rollouts)).tolist()), 1).metrics
    assert metrics["updates"] >= 1 and metrics["grad_norm"] > 0
    after = weights_of(model)
    assert {name for name in before if torch.equal(before[name], after[name])} == set()


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = tiny_model("sdar")
        rollouts = sampled(model, LENGTHS, n=2)
        if checkpointing:
            model.enable_gradient_checkpointing()
        policy = make_policy(model)
        policy.train(policy.batch(rollouts, np.linspace(-1, 1, len(rollouts)).tolist()), 1)
        results.append(weights_of(model))
    assert_same_weights(results[1], results[0], 1e-6)


def test_gradients_are_clipped_to_their_limit():
    norms = {}
    for limit in (0.0, 1e-3):
        model = tiny_model("sdar")
        policy = make_policy(model, max_grad_norm=limit)
        seen = []
        step = policy.updater.engine.optimizer.step
        policy.updater.engine.optimizer.step = lambda m=model, seen=seen, step=step: (
            seen.append(torch.cat([p.grad.flatten() for p in m.parameters()]).norm().item()),
            step(),
        )
        metrics = policy.train(policy.batch(rollouts := sampled(model, LENGTHS), [1.0] * len(rollouts)), 1).metrics
        norms[limit] = (seen, metrics["grad_norm"])
    assert norms[0.0][0] == pytest.approx([norms[0.0][1]], rel=1e-4) and norms[0.0][1] > 1e-2
    assert norms[1e-3][0] == pytest.approx([1e-3], rel=1e-3)
    assert norms[1e-3][1] == pytest.approx(norms[0.0][1], rel=1e-5)


def test_the_rate_of_a_step_is_the_schedules():
    model = tiny_model("sdar")
    policy = make_policy(model, total_step=10, learning_rate=2e-3)
    section = make_config(lr_scheduler={"scheduler": "linear", "params": {"warmup_steps": 1, "min_lr_scale": 0.5}})
    policy.schedule = Schedule.of(section.lr_scheduler, 10)
    batch = policy.batch(sampled(model, [5]), [1.0])
    rates = [policy.train(batch, step).metrics["learning_rate"] for step in (1, 2, 6, 10, 99)]
    assert rates == pytest.approx([1e-3, 2e-3, 2e-3 * (1 - 0.5 * 4 / 9), 2e-3 * (1 - 0.5 * 8 / 9), 1e-3])


class Guarded:
    """A policy after one good update, so that the optimizer has a state to lose."""

    def __init__(self, **training):
        self.model = tiny_model("sdar")
        self.policy = make_policy(self.model, **{"gradient_accumulation_steps": 1, "batch_size_lm": 10**6} | training)
        self.rollouts = sampled(self.model, LENGTHS)
        self.batch = self.policy.batch(self.rollouts, [1.0, -1.0, 0.5, -0.5])
        self.policy.train(self.batch, 1)
        self.weights, self.optimizer = weights_of(self.model), self.optimizer_state()

    def optimizer_state(self):
        return copy.deepcopy(self.policy.updater.engine.optimizer.state_dict()["state"])

    def assert_untouched(self):
        assert_same_weights(weights_of(self.model), self.weights)
        now = self.optimizer_state()
        assert now.keys() == self.optimizer.keys()
        for i, state in self.optimizer.items():
            for name, value in state.items():
                assert torch.equal(now[i][name], value), name

    def poison(self, kind):
        """A step whose loss, or only whose gradient, is not finite."""
        if kind == "nan loss":
            return dataclasses.replace(self.batch, credit=[1.0, math.nan, 0.5, -0.5])
        if kind == "inf loss":
            return dataclasses.replace(self.batch, credit=[1.0, math.inf, 0.5, -0.5])
        self.handle = self.model.lm_head.weight.register_hook(
            lambda g: g * (math.nan if kind == "nan gradient" else math.inf)
        )
        return self.batch

    def heal(self):
        if hasattr(self, "handle"):
            self.handle.remove()


POISONS = ["nan loss", "inf loss", "nan gradient", "inf gradient"]


@pytest.mark.parametrize("kind", POISONS)
def test_what_is_not_finite_is_skipped_counted_and_named(kind, caplog):
    guarded = Guarded()
    with caplog.at_level(logging.WARNING):
        metrics = guarded.policy.train(guarded.poison(kind), 2).metrics
    guarded.assert_untouched()
    assert all(p.grad is None for p in guarded.model.parameters())
    assert metrics["updates_skipped"] == 1 and metrics["updates"] == 0
    unknown = {name for name, value in metrics.items() if math.isnan(value)}
    assert unknown == {"loss", "policy_loss", "grad_norm", "ratio", "clip_ratio", "kl"}
    assert all(math.isfinite(value) for name, value in metrics.items() if name not in unknown)
    assert str(guarded.rollouts[0].key) in caplog.text and "skipped" in caplog.text
    assert guarded.policy.updater.skipped_in_a_row == 1
    guarded.heal()
    assert guarded.policy.train(guarded.batch, 3).metrics["updates"] == 1
    assert guarded.policy.updater.skipped_in_a_row == 0


@pytest.mark.parametrize("extra", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(extra):
    guarded = Guarded()
    result = guarded.policy.updater.update(guarded.batch.samples, [0, 1], lambda logp, micro: (logp.sum() + extra, {}))
    guarded.assert_untouched()
    assert not result.taken and not math.isfinite(result.loss)


def test_only_the_bad_update_of_a_step_is_skipped():
    """One update a response: the three good ones are taken as if the bad one had not been there."""
    bad, good = (Guarded(batch_size_lm=1) for _ in range(2))
    metrics = bad.policy.train(bad.poison("nan loss"), 2).metrics
    assert metrics["updates_skipped"] == 1 and metrics["updates"] == 3
    keep = [i for i in range(4) if i != 1]
    batch = good.batch.only(keep, 0)
    order = [int(i) for i in np.random.default_rng([10086, 2, 0]).permutation(4) if i != 1]
    for i in order:
        place = keep.index(i)
        numbers = Numbers(batch, [place], batch.logp_rollout, None, good.policy.replay.weights(batch, [place]))
        good.policy.updater.update(batch.samples, [place], good.policy._loss(numbers, measure_mismatch=False))
    assert_same_weights(weights_of(bad.model), weights_of(good.model))


def test_mismatch_is_measured_when_the_first_update_is_skipped():
    guarded = Guarded(batch_size_lm=1)
    batch = guarded.policy.batch(guarded.rollouts, [1.0, -1.0, 0.5, -0.5])
    first = int(np.random.default_rng([10086, 2, 0]).permutation(4)[0])
    batch.credit[first] = math.nan
    metrics = guarded.policy.train(batch, 2).metrics
    assert metrics["updates_skipped"] == 1 and metrics["updates"] == 3
    assert metrics["mismatch_abs"] > 1e-5


@pytest.mark.parametrize("kind", ["nan loss", "inf gradient"])
def test_the_run_stops_after_k_in_a_row(kind):
    guarded = Guarded(max_skipped_updates=3)
    batch = guarded.poison(kind)
    for step in (2, 3):
        assert guarded.policy.train(batch, step).metrics["updates_skipped"] == 1
    with pytest.raises(RuntimeError, match="3 updates in a row") as error:
        guarded.policy.train(batch, 4)
    assert str(guarded.rollouts[0].key) in str(error.value)
    guarded.assert_untouched()


def test_a_good_update_ends_the_row():
    guarded = Guarded(max_skipped_updates=2)
    bad = guarded.poison("nan loss")
    for step in range(2, 8):
        guarded.policy.train(bad if step % 2 else guarded.batch, step)
    assert guarded.policy.updater.skipped_in_a_row == 1


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_rollout_with_a_log_prob_that_is_not_finite_is_left_out(value, caplog):
    model = tiny_model("sdar")
    policy = make_policy(model)
    rollouts = sampled(model, LENGTHS)
    spoiled = dataclasses.replace(rollouts[2], canvas_logprobs=[value, *rollouts[2].canvas_logprobs[1:]])
    with caplog.at_level(logging.WARNING):
        batch = policy.batch([*rollouts[:2], spoiled, rollouts[3]], [1.0, -1.0, 0.5, -0.5])
    assert batch.skipped == 1 and [row.key for row in batch.samples] == [rollouts[i].key for i in (0, 1, 3)]
    assert batch.credit == [1.0, -1.0, -0.5] and str(spoiled.key) in caplog.text
    metrics = policy.train(batch, 1).metrics
    assert metrics["rollouts_skipped"] == 1 and metrics["updates"] == 1 and metrics["updates_skipped"] == 0


@pytest.mark.parametrize("value", [-math.inf, math.nan])
@pytest.mark.parametrize("whose", ["policy", "reference"])
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_response_whose_computed_log_prob_is_not_finite_is_left_out(monkeypatch, caplog, family, whose, value):
    """A row a response, and a row a step: the update is that of the others alone."""
    spoiled, plain = (tiny_model(family) for _ in range(2))
    rollouts, advantages = sampled(spoiled, LENGTHS, steps_per_block=2), [1.0, -1.0, 0.5, -0.5]
    policies = [make_policy(model, logp_old="recompute", kl_to="reference", beta=0.1) for model in (spoiled, plain)]
    for policy in policies:
        policy.reference = tiny_model(family, seed=1)
    batch = policies[0].batch(rollouts, advantages)
    last = max(i for i, row in enumerate(batch.samples) if row.key == rollouts[2].key)
    whole, of_policy = train.learner.policy.outputs, policies[0].updater.outputs

    def spoil(found):
        found[last] = np.where(np.arange(len(found[last])) == 0, value, found[last]).astype(np.float32)
        return found

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        if whose == "policy":
            patch.setattr(policies[0].updater, "outputs", lambda *given: spoil(of_policy(*given)))
        else:
            patch.setattr(train.learner.policy, "outputs", lambda *given: spoil(whole(*given)))
        metrics = policies[0].train(batch, 1).metrics
    assert metrics["rollouts_skipped"] == 1 and metrics["updates"] == 1 and metrics["updates_skipped"] == 0
    (said,) = [record.getMessage() for record in caplog.records if "non-finite" in record.getMessage()]
    assert str(rollouts[2].key) in said
    policies[1].train(policies[1].batch(rollouts, [1.0, -1.0, None, -0.5]), 1)
    assert_same_weights(weights_of(spoiled), weights_of(plain), 1e-7)


def test_steps_without_a_finite_log_prob_train_nothing_and_stop_the_run(monkeypatch):
    guarded = Guarded(logp_old="recompute", max_skipped_updates=2)
    nothing = [np.full(row.num_trained, math.nan, np.float32) for row in guarded.batch.samples]
    monkeypatch.setattr(guarded.policy.updater, "outputs", lambda *given: nothing)
    assert guarded.policy.train(guarded.batch, 2).metrics == {"rollouts_skipped": 4.0, "updates_skipped": 1.0}
    with pytest.raises(NotFinite, match="2 updates in a row"):
        guarded.policy.train(guarded.batch, 3)
    guarded.assert_untouched()


def test_a_response_without_an_advantage_is_not_trained():
    model = tiny_model("sdar")
    policy = make_policy(model)
    rollouts = sampled(model, LENGTHS)
    batch = policy.batch(rollouts, [None, 1.0, None, -1.0])
    assert [row.key for row in batch.samples] == [rollouts[1].key, rollouts[3].key] and batch.skipped == 0


def test_the_updaters_state_goes_on_where_it_was():
    """Two updates, and one in each of two processes: the same weights, bit for bit."""
    straight = Guarded()
    straight.policy.train(straight.batch, 2)
    first = Guarded()
    model = tiny_model("sdar")
    model.load_state_dict(first.model.state_dict())
    second = make_policy(model, gradient_accumulation_steps=1, batch_size_lm=10**6)
    second.updater.load_state_dict(copy.deepcopy(first.policy.updater.state_dict()))
    second.train(first.batch, 2)
    assert_same_weights(weights_of(model), weights_of(straight.model))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, k3),
        ({"kl_estimator": "k1"}, k1),
        ({"kl_estimator": "k2"}, k2),
    ],
)
def test_the_kl_estimator_that_a_config_names(settings, kind):
    """The penalty of one update against rollouts whose log-probabilities are off by a known amount."""
    model = tiny_model("sdar")
    rollouts = shifted(sampled(model, LENGTHS), 0.4)
    policy = make_policy(model, **settings)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    now = np.concatenate(policy.updater.outputs(batch.samples, range(len(batch.samples))))
    log_ratio = torch.from_numpy(now - np.concatenate(batch.logp_rollout))
    want = float(kind(log_ratio).mean())
    assert policy.train(batch, 1).metrics["kl"] == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
def test_kl_to_a_frozen_model():
    """The reference differs from the policy: the penalty is not zero where the ratio is one, and pulls towards it."""
    model, frozen = tiny_model("sdar"), tiny_model("sdar", seed=1)
    rollouts = sampled(model, LENGTHS)
    plain, held = (make_policy(copy.deepcopy(model), kl_to=to, beta=1.0) for to in ("old", "reference"))
    held.reference = frozen
    batch = held.batch(rollouts, [0.0] * len(rollouts))
    assert plain.train(plain.batch(rollouts, [0.0] * len(rollouts)), 1).metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    steps = [held.train(batch, step).metrics["kl"] for step in range(1, 30)]
    assert steps[0] > 0.01 and steps[-1] < 0.8 * steps[0]


@pytest.mark.parametrize(("kind", "expected"), [("truncated", [0.5, 2.0, 1.0]), ("masked", [0.0, 0.0, 1.0])])
def test_corrections_of_what_the_sampler_saw(kind, expected):
    old = torch.log(torch.tensor([0.1, 0.5, 0.3]))
    rollout = torch.log(torch.tensor([0.2, 0.1, 0.3]))
    tokens = TokenBatch.of(old, old, old, torch.ones(3), logp_rollout=rollout)
    corrected, _ = Correction(kind, limit=1.5 if kind == "masked" else 2.0)(tokens)
    assert corrected.weight == pytest.approx(expected) and corrected.kl_weight == pytest.approx([1.0] * 3)
    assert Correction()(tokens)[0] is tokens


@pytest.mark.slow
def test_adapters_are_all_that_an_update_moves(tmp_path):
    """RL on adapters: the frozen reference is the same memory without them, and sampler and trainer agree."""
    tiny_checkpoint(tmp_path, "sdar")
    model = load_model(tmp_path)
    model.add_adapters(Adapters(rank=4, alpha=8.0), tmp_path, seed=0)
    config = make_config(model={"pretrained_model": str(tmp_path)}, training={"kl_to": "reference", "beta": 0.1})
    policy = make_policy(model, kl_to="reference", beta=0.1)
    policy.reference = frozen_reference(config, model, "no")
    before = weights_of(model)
    for step in (1, 2):
        rollouts = sampled(model, LENGTHS, n=2, seed=step)
        metrics = policy.train(policy.batch(rollouts, np.linspace(-1, 1, len(rollouts)).tolist()), step).metrics
        assert metrics["mismatch_abs"] < 1e-5 and (metrics["kl"] > 0) == (step == 2)
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_the_reference_of_a_run_that_begins_with_adapters_has_those(tmp_path, beta):
    """Also after they have moved, as in a resumed run; with beta 0 only an objective of one's own reads it."""
    first = adapted_policy(tiny_checkpoint(tmp_path / "base", "sdar"), dropout=0.0).updater.model
    first.save(tmp_path / "first")
    (tmp_path / "own.py").write_text("def own(batch, params):\n    return -(batch.logp * batch.weight).sum(), {}\n")
    objective = "clip" if beta else f"{tmp_path}/own.py:own"
    training = {"kl_to": "reference", "beta": beta, "objective": objective}
    config = make_config(model={"pretrained_model": str(tmp_path / "first")}, training=training)
    assert reads_reference(config.training) and not reads_reference(make_config(training={"beta": 0.0}).training)
    model = load_model(tmp_path / "first")
    rollouts = sampled(model, LENGTHS, n=1, seed=1)
    policy = make_policy(model, kl_to="reference", beta=0.1)
    samples = policy.batch(rollouts, [1.0] * len(rollouts)).samples
    before = policy.updater.outputs(samples, range(len(samples)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.add_(0.1)
    after, frozen = policy.updater.outputs(samples, range(len(samples))), frozen_reference(config, model, "no")
    reference = outputs(frozen, samples, range(len(samples)), 1000, policy.updater.accelerator.device)
    for first, moved, same in zip(before, after, reference, strict=True):
        assert same == pytest.approx(first, abs=1e-5) and moved != pytest.approx(first, abs=1e-3)


def adapted_policy(folder, dropout=0.3, **training):
    """A policy with adapters, B not zero, so that what A's input drops shows everywhere."""
    model = load_model(folder)
    model.add_adapters(Adapters(4, 8.0, dropout), folder, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return make_policy(model, **training)


def trained_adapters(policy, rollouts, steps=(1, 2)):
    for step in steps:
        policy.train(policy.batch(rollouts, [1.0, -1.0, 0.5, 2.0]), step)
    return weights_of(policy.updater.model)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdar", *(pytest.param(f, marks=pytest.mark.slow) for f in ("dream", "sdar_moe"))])
def test_what_adapters_drop_is_the_seeds_and_not_the_packings(tmp_path, family):
    tiny_checkpoint(tmp_path, family)
    rollouts = sampled(load_model(tmp_path), LENGTHS)
    want = trained_adapters(adapted_policy(tmp_path), rollouts)
    assert_same_weights(trained_adapters(adapted_policy(tmp_path, max_tokens_per_microbatch=1), rollouts), want, 1e-5)
    for other in ({"dropout": 0.0}, {"seed": 3}):
        got = trained_adapters(adapted_policy(tmp_path, **other), rollouts)
        assert any(float((got[name] - want[name]).abs().max()) > 1e-4 for name in want)


def test_what_adapters_drop_goes_on_where_it_was(tmp_path):
    tiny_checkpoint(tmp_path, "sdar")
    rollouts = sampled(load_model(tmp_path), LENGTHS)
    straight, stopped, resumed = (adapted_policy(tmp_path) for _ in range(3))
    want = trained_adapters(straight, rollouts)
    weights = trained_adapters(stopped, rollouts, (1,))
    torch.rand(3)
    resumed.updater.model.load_state_dict(weights)
    resumed.updater.load_state_dict(copy.deepcopy(stopped.updater.state_dict()))
    assert_same_weights(trained_adapters(resumed, rollouts, (2,)), want)


def test_recomputed_activations_drop_the_same(tmp_path):
    tiny_checkpoint(tmp_path, "sdar")
    rollouts = sampled(load_model(tmp_path), LENGTHS)
    policy = adapted_policy(tmp_path)
    policy.updater.model.enable_gradient_checkpointing()
    want = trained_adapters(adapted_policy(tmp_path), rollouts)
    assert_same_weights(trained_adapters(policy, rollouts), want, 1e-6)


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_progress_counts_the_rows_that_the_metrics_count(family):
    """Rows as dLLM-RL counts them, one a response and round, however many of them one training sample holds."""
    model = tiny_model(family)
    policy, seen = make_policy(model, SamplingConfig(block_size=4, max_new_tokens=16), num_train_epochs=2), []
    rollouts = sampled(model, LENGTHS, block_size=4)
    batch = policy.batch(rollouts, [1.0, -1.0, 0.5, -0.5])
    metrics = policy.train(batch, 1, seen.append).metrics
    assert sum(seen) == policy.rows_to_train(batch) == 2 * metrics["rows"]
    assert metrics["rows"] == sum(sample.num_rounds for sample in batch.samples) > len(rollouts)


def test_a_policy_needs_no_config():
    """Updater, Replay and Policy with their defaults: what examples and notebooks begin with."""
    model, sampling = tiny_model("sdar"), SamplingConfig(max_new_tokens=11, temperature=1.0, stop_ids=[9])
    updater = Updater(model, make_accelerator("no", torch.device("cpu")))
    policy = Policy(updater, Replay.of(model, sampling))
    rollouts = Sampler(model, sampling).generate([[5, 6, 7]], n=2)
    metrics = policy.train(policy.batch(rollouts, [1.0, -1.0]), 1).metrics
    assert metrics["updates"] == 1 and metrics["learning_rate"] == 1e-6 and metrics["mismatch_abs"] < 1e-5
