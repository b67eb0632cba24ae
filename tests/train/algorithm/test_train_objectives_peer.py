"""Objectives, KL estimators and advantages against a peer's formulas, whose values are in tests/golden."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from configs.schema import TrainingConfig
from train.algorithm.advantages import ADVANTAGES
from train.algorithm.objectives import KL_ESTIMATORS, OBJECTIVES, TokenBatch, params_of

PEER = json.loads((GOLDEN / "objectives.json").read_text())
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
