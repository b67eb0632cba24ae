"""Objectives, KL estimators, advantages, DPO and the weights of likelihood bounds against peers' formulas, whose values
are in tests/golden."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from configs.schema import TrainingConfig
from train.algorithm.advantages import ADVANTAGES
from train.algorithm.masking import Canvas, elbo
from train.algorithm.objectives import KL_ESTIMATORS, OBJECTIVES, TokenBatch, dpo, params_of

PEER = json.loads((GOLDEN / "objectives.json").read_text())
FIELD = json.loads((GOLDEN / "objectives_field.json").read_text())
LENGTHS = PEER["lengths"]
RESPONSE = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
SHARE = {
    "token_mean": np.full(sum(LENGTHS), 1 / sum(LENGTHS)),
    "response_mean": np.repeat([1 / (len(LENGTHS) * n) for n in LENGTHS], LENGTHS),
}


def fp64(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


@pytest.mark.parametrize("case", PEER["losses"], ids=lambda case: f"{case['name']} {case['advantages'][0]}")
def test_loss_and_gradient_are_verls(case):
    training = TrainingConfig(beta=0.0, **case["training"])
    function, logp = OBJECTIVES[training.objective], fp64(PEER["logp"]).requires_grad_()
    advantage, weight = fp64(case["advantages"])[RESPONSE], fp64(SHARE[training.normalization])
    batch = TokenBatch.of(logp, fp64(PEER["logp_old"]), advantage, weight, response=torch.from_numpy(RESPONSE))
    loss, _ = function(batch, params_of(function, {}, training))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-11)
    assert logp.grad.tolist() == pytest.approx(case["gradient"], abs=1e-11)


@pytest.mark.parametrize("case", PEER["kl"], ids=lambda case: case["estimator"])
def test_kl_estimators_are_verls(case):
    gap = fp64(PEER["logp"]) - fp64(PEER["logp_old"])
    assert KL_ESTIMATORS[case["estimator"]](gap).tolist() == pytest.approx(case["values"], abs=1e-11)


@pytest.mark.parametrize("case", PEER["advantages"], ids=lambda case: case["advantage"])
def test_advantages_are_verls(case):
    got = ADVANTAGES[case["advantage"]](np.array(case["rewards"]))
    assert got.tolist() == pytest.approx(case["values"], abs=1e-11)


@pytest.mark.parametrize("case", FIELD["losses"], ids=lambda case: f"{case['name']} {case['advantages'][0]}")
def test_loss_and_gradient_are_the_peers(case):
    """TRL's GRPO and GSPO, d1's diffu-GRPO, ESPO, and DARE's BGPO and EBPO, with their KL to a reference. BGPO
    has one number a mask: here copies of one token."""
    training = TrainingConfig(**case["training"])
    lengths = case["lengths"]
    response, count = np.repeat(np.arange(len(lengths)), lengths), sum(lengths)
    share = {
        "constant": np.full(count, 1 / (len(lengths) * (case["max_gen_length"] or 1))),
        "token_mean": np.full(count, 1 / count),
        "response_mean": np.repeat([1 / (len(lengths) * n) for n in lengths], lengths),
    }[training.normalization]
    function, logp = OBJECTIVES[training.objective], fp64(FIELD["logp"][:count]).requires_grad_()
    batch = TokenBatch.of(
        logp,
        fp64(FIELD["logp_old"][:count]),
        fp64(case["advantages"])[response],
        fp64(share),
        response=torch.from_numpy(response),
        logp_reference=fp64(FIELD["logp_reference"][:count]),
        round=torch.arange(count),
    )
    loss, _ = function(batch, params_of(function, {}, training))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-11)
    assert logp.grad.tolist() == pytest.approx(case["gradient"], abs=1e-11)


def test_dpo_is_the_peers():
    case = FIELD["dpo"]
    gains = (np.subtract(case[side], case[f"reference_{side}"]) for side in ("chosen", "rejected"))
    got = dpo(*gains, case["beta"])
    assert got.loss_P.mean() == pytest.approx(case["loss"], abs=1e-11)
    assert (got.slope_P / 3).tolist() == pytest.approx(case["gradient_chosen"], abs=1e-11)
    assert (-got.slope_P / 3).tolist() == pytest.approx(case["gradient_rejected"], abs=1e-11)


def test_weights_of_the_likelihood_bound_are_espos():
    """A token of a mask of n positions, and of its complement, for every n."""
    want, length = FIELD["elbo"]["weights"], FIELD["elbo"]["length"]
    zeros = np.zeros(length, dtype=np.int64)
    canvas = Canvas(zeros + 7, zeros + 1, zeros == 0, zeros, zeros, mask_id=1)
    seen = set()
    for copy in elbo(canvas, TrainingConfig(mask_times_per_sample=length + 1), np.random.default_rng(0)):
        trained, is_complement = int(copy.trained_C.sum()), copy.round % 2 == 1
        entry = want[length - trained if is_complement else trained]
        weight = entry["complement_weight" if is_complement else "masked_weight"]
        assert copy.weight * (length + 1) == pytest.approx(weight)
        seen.add((trained, is_complement))
    assert len(seen) == 2 * length
