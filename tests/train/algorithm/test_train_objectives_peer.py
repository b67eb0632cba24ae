"""Objectives, KL estimators, advantages, DPO and the weights of likelihood bounds against peers' formulas, whose values
are in tests/golden."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from configs.schema import TrainingConfig
from train.algorithm.advantages import ADVANTAGES, Speed, group_advantages
from train.algorithm.masking import Canvas, elbo
from train.algorithm.objectives import KL_ESTIMATORS, OBJECTIVES, TokenBatch, dpo, params_of
from train.algorithm.objectives.sequence import group_shares

PEER = json.loads((GOLDEN / "objectives.json").read_text())
FIELD = json.loads((GOLDEN / "objectives_field.json").read_text())
SECOND = json.loads((GOLDEN / "objectives_peers2.json").read_text())
BOUNDS, LIGHTNING = SECOND["bounds"], SECOND["lightning"]
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


# ---- peers whose own functions were run: SPG, StableDRL, GDSD, wd1, LightningRL


def agrees(objective, params, batch, case, gradient, factor=1.0):
    """Loss and gradient, times `factor`, are the case's."""
    loss, _ = OBJECTIVES[objective](batch, params)
    loss.backward()
    assert factor * float(loss.detach()) == pytest.approx(case["loss"], abs=1e-11)
    assert (factor * batch.logp.grad).tolist() == pytest.approx(np.asarray(gradient).tolist(), abs=1e-11)


def masked_copies(case, weight_of_response):
    """Responses in masked copies: where a copy masks m of a response's n tokens, each counts n / m, over the copies."""
    masked = np.array(case.get("masked", BOUNDS["masked"])) > 0
    response, copy, place = np.nonzero(masked)
    length = np.array(BOUNDS["lengths"])
    share = (length[:, None] / masked.sum(2) / masked.shape[1])[response, copy]
    batch = TokenBatch.of(
        fp64(np.array(BOUNDS["logp"])[masked]).requires_grad_(),
        fp64(np.array(BOUNDS["logp_old"])[masked]),
        fp64(BOUNDS["advantages"])[response],
        fp64(share * np.asarray(weight_of_response)[response]),
        response=torch.from_numpy(response),
        place=torch.from_numpy(place),
        share=fp64(share),
        group=torch.zeros(len(response), dtype=torch.int64),
    )
    return batch, np.array(case["gradient"])[masked]


@pytest.mark.parametrize("case", BOUNDS["spg"], ids=lambda case: case["name"])
def test_spg_is_its_authors(case):
    """Their loss, a mean over tokens of responses' bounds a token, is token_mean of ours. But they divide the upper
    bound by the places that a mask covers, ours is its sum: where the masks leave out some of a bad response's n
    places and cover m, theirs is n / m times ours."""
    length, advantage = np.array(BOUNDS["lengths"]), np.array(BOUNDS["advantages"])
    covered = (np.array(case.get("masked", BOUNDS["masked"])).sum(1) > 0).sum(1)
    assert (covered[advantage < 0] == length[advantage < 0]).all() == ("masked" not in case)
    factor = np.where(advantage < 0, length / covered, 1.0)
    batch, gradient = masked_copies(case, factor / length.sum())
    agrees("spg", params_of(OBJECTIVES["spg"], case["params"], TrainingConfig(beta=0.0)), batch, case, gradient)


@pytest.mark.parametrize("case", BOUNDS["stable_drl"], ids=lambda case: case["name"])
def test_stable_drl_is_its_authors(case):
    """Their likelihoods are means over a response's tokens and ours are sums: under response_mean, with l / L in place
    of l in the response's weight in its group, the two are one."""
    length = np.array(BOUNDS["lengths"])
    batch, gradient = masked_copies(case, 1.0 / (len(length) * length))
    params = params_of(OBJECTIVES["stabledrl"], case["params"], TrainingConfig(beta=0.0))
    a_token = dataclasses.replace(batch, share=batch.share / fp64(length)[batch.response])
    with torch.no_grad():
        batch = dataclasses.replace(batch, sums=group_shares(a_token, params))
    agrees("stabledrl", params, batch, case, gradient)


@pytest.mark.parametrize("case", SECOND["gdsd"]["cases"], ids=lambda case: case["name"])
def test_gdsd_is_its_authors(case):
    """One share a token, whose sum is their L, the length. They regress each of a response's masks apart and add the
    squares up: theirs is the number of masks times ours with each mask a response."""
    logp, logp_old = np.array(case["logp"]), np.array(case["logp_old"])  # [response, mask, token]
    responses, masks, length = logp.shape
    response = np.repeat(np.arange(responses * masks), length)
    batch = TokenBatch.of(
        fp64(logp.ravel()).requires_grad_(),
        fp64(logp_old.ravel()),
        fp64(SECOND["gdsd"]["advantages"])[response // masks],
        fp64(np.full(logp.size, 1 / logp.size)),
        response=torch.from_numpy(response),
    )
    training = TrainingConfig(eps=0.01, eps_low=case["eps_low"], eps_high=case["eps_high"], beta=0.0)
    params = params_of(OBJECTIVES["gdsd"], {"psi": case["psi"]}, training)
    agrees("gdsd", params, batch, case, np.array(case["gradient"]).ravel(), factor=masks)


@pytest.mark.parametrize("case", SECOND["wd1"]["cases"], ids=lambda case: str(case["rewards"]))
def test_wd1_with_reinforce_is_its_authors(case):
    """They divide by no length: ours under `constant`, times its max_gen_length."""
    logp, length = np.array(SECOND["wd1"]["logp"]), np.array(SECOND["wd1"]["lengths"])
    real, longest = np.arange(logp.shape[1]) < length[:, None], 16
    response = np.nonzero(real)[0]
    advantage = ADVANTAGES["wd1"](np.array(case["rewards"]))[response]
    logp = fp64(logp[real])
    weight = fp64(np.full(real.sum(), 1 / (len(length) * longest)))
    batch = TokenBatch.of(logp.clone().requires_grad_(), logp, fp64(advantage), weight)
    params = params_of(OBJECTIVES["reinforce"], {}, TrainingConfig(beta=0.0))
    agrees("reinforce", params, batch, case, np.array(case["gradient"])[real], factor=longest)


def test_advantages_of_accuracy_and_speed_are_lightning_rls():
    """z-scores in the group, summed, whitened over the batch: theirs by the sample's std, ours by the population's.
    Both leave out groups of one speed and groups that are all wrong."""
    groups = LIGHTNING["groups"]
    rewards = [float(right) for group in groups for right in group["right"]]
    speeds = [n / f for group in groups for n, f in zip(group["tokens"], group["forwards"], strict=True)]
    want = [advantage for group in groups for advantage in group["advantages"]]
    speed = Speed(speeds, weight=1.0, least_spread=0.01)
    credit = group_advantages(rewards, 4, speed=speed, whiten=True, accuracy_band=(0.01, 1.0))
    kept = sum(advantage is not None for advantage in want)
    got = [None if a is None else a * ((kept - 1) / kept) ** 0.5 for a in credit.values]
    assert got == [None if a is None else pytest.approx(a, abs=1e-11) for a in want]
    assert 0 < kept < len(want) and credit.dropped.total() == 2


@pytest.mark.parametrize("case", LIGHTNING["cases"], ids=lambda case: case["name"])
def test_loss_and_gradient_are_lightning_rls(case):
    """The clip, the KL k3 and the likelihood of right traces. Theirs of right traces is a mean over right tokens (in
    mode sequence over right responses), ours a sum weighted as all trained ones: nll_weight is theirs times the number
    of all by that of the right."""
    length, right = np.array(LIGHTNING["lengths"]), np.array(LIGHTNING["right"])
    real = np.arange(4) < length[:, None]
    response = np.nonzero(real)[0]
    by_token = case["training"]["normalization"] == "token_mean"
    weight = np.full(real.sum(), 1 / real.sum()) if by_token else (1 / (len(length) * length))[response]
    all_by_right = real.sum() / length[right > 0].sum() if by_token else len(right) / right.sum()
    training = TrainingConfig(**case["training"] | {"nll_weight": case["training"]["nll_weight"] * all_by_right})
    batch = TokenBatch.of(
        fp64(np.array(LIGHTNING["logp"])[real]).requires_grad_(),
        fp64(np.array(LIGHTNING["logp_old"])[real]),
        fp64(LIGHTNING["advantages"])[response],
        fp64(weight),
        response=torch.from_numpy(response),
        logp_reference=fp64(np.array(LIGHTNING["logp_reference"])[real]),
        reward=fp64(right)[response],
    )
    params = params_of(OBJECTIVES["clip"], {}, training)
    agrees("clip", params, batch, case, np.array(case["gradient"])[real])
