"""DPO: the loss of pairs against the textbook's, its gradient under any split, and what it is given."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_model
from trainees import make_config, plain_log_probs, sampled, updater_of

from data.tasks import Example
from models.attention import Masked
from sample import Rollout
from train.algorithm.masking import METHODS
from train.algorithm.objectives import dpo
from train.algorithm.packing import replay_mask
from train.distributed.accelerator import make_accelerator
from train.learner.tuning import Preference
from train.setup.examples import TokenizedExample, for_model, make_samples
from train.setup.traces import right_and_wrong

BETA = 0.7


def test_loss_and_slope_are_the_formulas():
    """- log sigmoid(beta (g_c - g_r)), by hand; the slope by finite differences; far margins stay finite."""
    chosen, rejected = np.array([0.5, -3.0, 2.0]), np.array([-0.25, 1.0, 2.0])
    got = dpo(chosen, rejected, BETA)
    for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)):
        assert got.margin_P[i] == pytest.approx(BETA * (c - r))
        assert got.loss_P[i] == pytest.approx(-math.log(1 / (1 + math.exp(-BETA * (c - r)))))
    step = 1e-6
    for side, sign in ((0, 1.0), (1, -1.0)):
        moved = [np.array([chosen, rejected]) for _ in range(2)]
        moved[0][side] -= step
        moved[1][side] += step
        low, high = (dpo(*each, BETA).loss_P for each in moved)
        assert (high - low) / (2 * step) == pytest.approx(sign * got.slope_P, abs=1e-8)
    far = dpo(np.array([1e5, -1e5]), np.zeros(2), 1.0)
    assert far.loss_P.tolist() == [0.0, 1e5] and far.slope_P.tolist() == [0.0, -1.0]


def trainee(family, max_tokens=16384, **training):
    """(preference of a model that has left its reference, its config)."""
    model = tiny_model(family)
    config = make_config(
        training={"sft_objective": "dpo", "method": "elbo", "mask_times_per_sample": 2, "block_size": 4}
        | {"max_tokens_per_microbatch": max_tokens}
        | training
    )
    reference = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    updater = updater_of(config, model, make_accelerator("no", torch.device("cpu")))
    return Preference(updater, reference, BETA, {}), config


def pairs(model, config, numbers=(0, 1, 2)):
    """Training samples of pairs of random texts, of unequal lengths."""
    generator, made = np.random.default_rng(0), []
    for number in numbers:
        prompt = generator.integers(3, 60, 3 + number).tolist()
        for side in range(2):
            answer = generator.integers(3, 60, 2 + 3 * side + number).tolist()
            example = TokenizedExample(2 * number + side, prompt, answer, None)
            made += make_samples(example, model, config.training, METHODS["elbo"], 0, window=12)
    return made


def token_logp(model, sample):
    """log p of each trained token of a training sample, by attention under a dense mask."""
    ids, positions, block, copy_S = (
        torch.from_numpy(getattr(sample, name)) for name in ("ids", "positions", "block", "copy")
    )
    hidden = model.hidden(ids[None], positions[None], Masked(replay_mask(block, copy_S)))[0]
    logp = model.lm_head(hidden[sample.index]).log_softmax(-1)
    return logp[range(len(sample.targets)), sample.targets]


def likelihood(model, sample):
    """sum_j share_j logp_j of a training sample."""
    return (token_logp(model, sample) * torch.from_numpy(sample.weight).float()).sum()


def textbook(policy, reference, samples):
    """The loss and what is logged, written down again with one sum a response."""
    gains = {}
    for sample in samples:
        with torch.no_grad():
            held = likelihood(reference, sample)
        gains[sample.key[0]] = gains.get(sample.key[0], 0.0) + likelihood(policy, sample) - held
    margins = torch.stack([BETA * (gains[i] - gains[i + 1]) for i in gains if i % 2 == 0])
    return -F.logsigmoid(margins).mean(), margins.detach()


def gradients(updater, act):
    found, step = {}, updater.engine.optimizer.step

    def recording():
        found.update({name: p.grad.clone() for name, p in updater.model.named_parameters() if p.grad is not None})
        step()

    updater.engine.optimizer.step = recording
    return act(), found


@pytest.mark.parametrize("family", ["sdar", pytest.param("llada", marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_tokens", [16384, 1])
def test_an_update_is_the_textbooks_under_any_split(family, max_tokens):
    preference, config = trainee(family, max_tokens)
    model = preference.updater.model
    samples = pairs(model, config)
    plain = copy.deepcopy(model)
    want, margins = textbook(plain, preference.reference, samples)
    want.backward()
    totals, got = gradients(preference.updater, lambda: preference.update(samples))
    metrics = preference.metrics(totals)
    assert metrics["loss"] == pytest.approx(float(want.detach()), abs=1e-5)
    assert metrics["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)
    assert metrics["pair_accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert BETA * (metrics["gain/chosen"] - metrics["gain/rejected"]) == pytest.approx(metrics["margin"])
    assert (totals.micro_batches > 1) == (max_tokens == 1)
    for name, p in plain.named_parameters():
        if p.grad is not None:
            assert torch.allclose(got[name], p.grad, atol=2e-5), name


def test_the_gradient_is_that_of_finite_differences():
    preference, config = trainee("sdar")
    model = preference.updater.model
    samples = pairs(model, config)
    weight = dict(model.named_parameters())["lm_head.weight"]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    losses = []
    for step in (-1e-2, 2e-2, -1e-2):
        losses.append(float(preference.compare(samples).losses.loss_P.mean()))
        with torch.no_grad():
            weight += step * direction
    before, low, high = losses
    _, got = gradients(preference.updater, lambda: preference.update(samples))
    assert (high - low) / 2e-2 == pytest.approx(float((got["lm_head.weight"] * direction).sum()), rel=2e-2)
    assert before != low


def test_traces_are_compared_at_their_own_steps():
    """A right and a wrong response of the model's own: log-likelihoods over the steps of each, token by token."""
    model = tiny_model("sdar")
    rollouts = sampled(model, (5, 8), n=3, block_size=4)
    found = [{"task": str(i // 3), "reward": float(i % 3 == 1)} | each.row() for i, each in enumerate(rollouts)]
    examples = right_and_wrong([Example("", "", None, trace=each) for each in found], 1, "x")
    assert [example.trace["reward"] for example in examples] == [1.0, 0.0] * 2
    preference, config = trainee("sdar", method="trace")
    samples = []
    for i, example in enumerate(examples):
        rollout = Rollout.from_dict({**example.trace, "key": (i,)})
        example = TokenizedExample(i, rollout.prompt_ids, rollout.token_ids, rollout.step_map, rollout=rollout)
        samples += make_samples(example, preference.updater.model, config.training, METHODS["trace"], 0, window=0)
    compared = preference.compare(samples)
    order = [1, 0, 4, 3]
    for models, sign in ((preference.updater.model, 1.0), (preference.reference, -1.0)):
        sums = [sum(float(x.detach()) for x in plain_log_probs(models, rollouts[i], 4)[0].values()) for i in order]
        compared.chosen_P[:] -= sign * np.array(sums[::2])
        compared.rejected_P[:] -= sign * np.array(sums[1::2])
    assert compared.chosen_P == pytest.approx(np.zeros(2), abs=1e-4)
    assert compared.rejected_P == pytest.approx(np.zeros(2), abs=1e-4)


def test_a_model_that_is_its_reference_has_no_margin_and_learns_the_pair():
    preference, config = trainee("sdar")
    preference.reference = copy.deepcopy(preference.updater.model).requires_grad_(False)
    samples = pairs(preference.updater.model, config)
    first, *_, last = [preference.metrics(preference.update(samples)) for _ in range(6)]
    assert first["loss"] == pytest.approx(math.log(2)) and first["margin"] == pytest.approx(0.0, abs=1e-5)
    assert first["pair_accuracy"] == 0.5
    assert last["margin"] > 0.1 and last["pair_accuracy"] == 1.0 and last["loss"] < first["loss"]


def test_a_pair_without_its_other_half_is_left_out():
    preference, config = trainee("sdar")
    samples = pairs(preference.updater.model, config)
    left = preference.compare([each for each in samples if each.key != (3,)])
    assert len(left.losses.loss_P) == 2 and {each.key[0] for each in left.samples} == {0, 1, 4, 5}
    alone = [each for each in samples if each.key == (1,)]
    assert not preference.update(alone).results and preference.figures([([""], alone[:1])]) is None


def test_held_out_figures_are_those_of_updates():
    preference, config = trainee("sdar")
    samples = pairs(preference.updater.model, config)
    figures = preference.figures([(["a"] * len(samples), samples)])
    chosen = [each for each in samples if each.key[0] % 2 == 0]
    nll = -sum(float(token_logp(preference.updater.model, each).detach().sum()) for each in chosen)
    assert figures["nll"] == pytest.approx(nll / sum(each.num_trained for each in chosen), abs=1e-5)
    metrics = preference.metrics(preference.update(samples))
    for name in ("loss", "margin", "pair_accuracy", "gain/chosen", "gain/rejected", "nll"):
        assert figures[name] == pytest.approx(metrics[name], abs=1e-5), name
    assert figures["nll(a)"] == figures["nll"]


def test_a_number_that_is_not_finite_never_reaches_the_weights(caplog):
    preference, config = trainee("sdar")
    samples = pairs(preference.updater.model, config)
    before = copy.deepcopy(preference.updater.model.state_dict())
    with torch.no_grad():
        preference.reference.lm_head.weight[:] = float("nan")
    (result,) = preference.update(samples).results
    assert not result.taken and "update skipped" in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in preference.updater.model.state_dict().items())


def test_sets_count_the_tokens_of_both_responses_and_the_likelihood_of_the_chosen():
    preference, config = trainee("sdar")
    samples = pairs(preference.updater.model, config)
    preference.label_of = {key: "x" if key < 2 else "y" for key in range(6)}
    totals = preference.update([each for each in samples if each.key != (5,)])
    metrics = preference.metrics(totals)
    tokens = {key: sum(each.num_trained for each in samples if each.key[0] in key) for key in ((0, 1), (2, 3))}
    assert metrics["pairs"] == 2.0
    assert [metrics["trained_tokens(x)"], metrics["trained_tokens(y)"]] == [*tokens.values()]
    assert sum(tokens.values()) == totals.total("tokens")
    assert metrics["nll(x)"] != metrics["nll(y)"]
    chosen = {label: totals.total(f"nll_tokens({label})") for label in "xy"}
    assert sum(metrics[f"nll({x})"] * chosen[x] for x in "xy") / sum(chosen.values()) == pytest.approx(metrics["nll"])


@pytest.mark.parametrize("normalization", ["reference", "token_mean"])
def test_pads_are_counted_within_a_response_under_any_normalization(normalization):
    """So that the weights of elbo add up to the trained tokens in the mean."""
    model, made = tiny_model("sdar"), []
    for name in ("constant", normalization):
        training = {"sft_objective": "dpo", "method": "elbo", "post_num": 1, "normalization": name}
        config = make_config(training=training)
        settings = for_model(config.training, model, METHODS["elbo"], 4)
        example = TokenizedExample(0, [3, 4, 5], [7, 8, 9, 10, 11, 2], None)
        made.append([make_samples(example, model, settings, METHODS["elbo"], each, window=0)[0] for each in range(400)])
    for plain, other in zip(*made, strict=True):
        assert plain.ids.tolist() == other.ids.tolist() and plain.weight.tolist() == other.weight.tolist()
        assert plain.targets.tolist() == other.targets.tolist()
    assert np.mean([each.weight.sum() for each in made[1]]) == pytest.approx(7.0, abs=0.3)
