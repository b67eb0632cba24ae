"""The field's objectives: each against its equation, written down again response by response in plain Python."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from configs.schema import TrainingConfig
from train.algorithm.objectives import (
    OBJECTIVES,
    BoundObjective,
    Correction,
    TokenBatch,
    bind,
    clipped_surrogate,
    params_of,
    sum_by,
)
from train.algorithm.objectives.sequence import group_shares

SIZES = (3, 5, 2, 4, 6)
ADVANTAGES = (1.0, -1.0, 0.5, -0.25, 2.0)
SETTINGS = {"eps": 0.05, "eps_high": 0.1, "dual_clip": 1.2, "beta": 0.3, "kl_estimator": "k2", "nll_weight": 0.1}


def made_up(spread=0.3, seed=0, reference=True):
    """Five responses of two groups in fp64; every place is trained twice, in two masked copies."""
    generator = torch.Generator().manual_seed(seed)
    response = torch.repeat_interleave(torch.arange(5), torch.tensor(SIZES))
    N = len(response)

    def uniform(low, high):
        return low + (high - low) * torch.rand(N, generator=generator, dtype=torch.float64)

    old, share = uniform(-3.0, -0.1), uniform(0.5, 2.0)
    return TokenBatch(
        logp=(old + uniform(-spread, spread)).requires_grad_(),
        logp_old=old,
        logp_rollout=old + uniform(-0.4, 0.4),
        logp_reference=old + uniform(-0.2, 0.2) if reference else None,
        advantage=torch.tensor(ADVANTAGES, dtype=torch.float64)[response],
        weight=share / (5 * 16),
        kl_weight=share / (5 * 16),
        response=response,
        round=torch.arange(N) % 2,
        place=torch.arange(N) // 2,
        share=share,
        reward=torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[response],
        group=(response >= 3).long(),
    )


def loss_of(name, batch, objective_params=None, **settings):
    training = TrainingConfig(objective=name, **{**SETTINGS, **settings})
    function = OBJECTIVES[name]
    params = params_of(function, objective_params or {}, training)
    if function.needs.sums:
        with torch.no_grad():
            batch = dataclasses.replace(batch, sums=function.needs.sums(batch, params))
    return function(batch, params)


def numbers(batch):
    """The batch as a list of responses, each a dict of lists."""
    fields = ("logp", "logp_old", "logp_reference", "weight", "kl_weight", "share", "place", "round")
    found = []
    for i, size in enumerate(SIZES):
        first = sum(SIZES[:i])
        row = {name: getattr(batch, name)[first : first + size].tolist() for name in fields}
        found.append(row | {"A": ADVANTAGES[i], "right": i % 2 == 0, "group": int(i >= 3)})
    return found


def bounded(ratio, advantage, low, high, dual):
    value = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return max(value, dual * advantage) if advantage < 0 else value


def plain_spg(row, beta=1.5, mix=0.5):
    """Sum over places of the bound on a response's log-likelihood."""
    lower = sum(s * x for s, x in zip(row["share"], row["logp"], strict=True))
    if row["A"] >= 0:
        return lower
    upper = 0.0
    for place in set(row["place"]):
        copies = [c for c in range(len(row["place"])) if row["place"][c] == place]
        upper += math.log(sum(row["share"][c] * math.exp(row["logp"][c]) ** beta for c in copies)) / beta
    return mix * upper + (1 - mix) * lower


def plain_bgpo(row, gaps, held):
    """Sum over masked copies of their weight times the clip of their bound."""
    total = 0.0
    for copy in set(row["round"]):
        mine = [j for j, other in enumerate(row["round"]) if other == copy]
        d = sum(row["share"][j] * gaps[j] for j in mine) / sum(row["share"][j] for j in mine)
        total += sum(row["weight"][j] for j in mine) * held(1 + d if row["A"] >= 0 else math.exp(d))
    return total


def plain(name, rows, eps=0.05, eps_high=0.1, dual=1.2, beta=0.3, alpha=0.1, psi=1.0, limit=5.0):
    """The loss: policy, KL k2 to the reference, likelihood of right traces."""
    total = 0.0
    moves = [sum(s * (x - o) for s, x, o in zip(r["share"], r["logp"], r["logp_old"], strict=True)) for r in rows]
    for row, move in zip(rows, moves, strict=True):
        A, length, weight = row["A"], sum(row["share"]), sum(row["weight"])
        scale = row["weight"][0] / row["share"][0]
        gaps = [x - o for x, o in zip(row["logp"], row["logp_old"], strict=True)]
        if name == "clip":
            policy = sum(
                w * bounded(math.exp(d), A, eps, eps_high, dual) for w, d in zip(row["weight"], gaps, strict=True)
            )
        elif name == "bgpo":
            policy = plain_bgpo(row, gaps, lambda g, A=A: bounded(g, A, eps, eps_high, dual))
        elif name == "reinforce":
            policy = sum(w * A * x for w, x in zip(row["weight"], row["logp"], strict=True))
        elif name in ("gspo", "espo"):
            policy = weight * bounded(math.exp(move / length), A, eps, eps_high, dual)
        elif name == "ebpo":
            policy = weight / length * bounded(math.exp(move), A, eps, eps_high, dual)
        elif name == "gdsd":
            held = min(max(move, math.log(1 - eps)), math.log(1 + eps_high))
            policy = -weight * (held / length - psi * A) ** 2
        elif name == "distill":
            gains = [r - o for r, o in zip(row["logp_reference"], row["logp_old"], strict=True)]
            policy = sum(
                w * bounded(math.exp(d), a, eps, eps_high, dual)
                for w, d, a in zip(row["weight"], gaps, gains, strict=True)
            )
        elif name == "spg":
            policy = scale * A * plain_spg(row)
        elif name == "stabledrl":
            mates = [
                math.exp(min(m, math.log(limit)))
                for r, m in zip(rows, moves, strict=True)
                if r["group"] == row["group"]
            ]
            policy = scale * len(mates) * math.exp(min(move, math.log(limit))) / sum(mates) * A * plain_spg(row)
        to_reference = [x - r for x, r in zip(row["logp"], row["logp_reference"], strict=True)]
        if name == "espo":
            gap = sum(s * d for s, d in zip(row["share"], to_reference, strict=True))
            kl = sum(row["kl_weight"]) * gap * gap / (2 * length)
        else:
            kl = sum(v * d * d / 2 for v, d in zip(row["kl_weight"], to_reference, strict=True))
        nll = -sum(w * x for w, x in zip(row["weight"], row["logp"], strict=True)) if row["right"] else 0.0
        total += -policy + beta * kl + alpha * nll
    return total


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_is_its_equation_written_down_again(name):
    for seed in range(3):
        batch = made_up(seed=seed)
        loss, metrics = loss_of(name, batch)
        assert float(loss.detach()) == pytest.approx(plain(name, numbers(batch)), abs=1e-12)
        assert {"tokens", "ratio", "clipped", "kl", "policy_loss", "kl_loss", "nll"} == set(metrics)
        assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_of_each_objective_by_finite_differences(name):
    """Also of its policy term alone, which many a token has."""
    batch = made_up()
    wide = {"eps_low": 0.4, "eps_high": 0.8} if name == "gdsd" else {}
    policy_loss, metrics = loss_of(name, batch, **{**wide, "beta": 0.0, "nll_weight": 0.0})
    (gradient,) = torch.autograd.grad(policy_loss, batch.logp)
    assert int((gradient != 0).sum()) == len(gradient) - int(metrics["clipped"]) > 0.4 * len(gradient)
    sums = group_shares(batch, {"limit": 5.0})
    batch = dataclasses.replace(batch, sums={"share": sums["share"].detach()})
    params = params_of(OBJECTIVES[name], {}, TrainingConfig(**SETTINGS | wide))

    def loss(logp):
        return OBJECTIVES[name](dataclasses.replace(batch, logp=logp), params)[0]

    assert gradcheck(loss, batch.logp, eps=1e-7, atol=1e-6)


def test_distillation_follows_the_reverse_kl_to_the_teacher():
    """Over all tokens of a small vocabulary, each as often as the policy draws it."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    logp, other = logits.log_softmax(-1), teacher.log_softmax(-1)
    (want,) = torch.autograd.grad((logp.exp() * (logp - other)).sum(), logits, retain_graph=True)
    old = logp.detach()
    batch = TokenBatch.of(logp, old, torch.zeros_like(old), old.exp(), logp_reference=other)
    loss, metrics = loss_of("distill", batch, beta=0.0, nll_weight=0.0)
    assert torch.autograd.grad(loss, logits)[0] == pytest.approx(want, abs=1e-12) and want.abs().max() > 0.1
    assert int(metrics["clipped"]) == 0


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("clip", "distill")])
def test_on_policy_every_objective_has_the_gradient_of_the_clip(name):
    """One copy of each token: GDSD at psi 1/2, SPG's bounds and the group's weights at their common value."""
    batch = made_up(spread=0.0)
    ones = torch.ones_like(batch.share)
    once = {"share": ones, "weight": ones / 80, "kl_weight": ones / 80, "place": torch.arange(len(ones))}
    batch = dataclasses.replace(batch, **once, logp_reference=None)
    settings = {"beta": 0.0, "nll_weight": 0.0, "eps": 0.2}
    more = {"objective_params": {"psi": 0.5}} if name == "gdsd" else {}
    gradients = []
    for each in ("clip", name):
        training = TrainingConfig(objective=each, **settings, **(more if each == name else {}))
        bound = bind(each, OBJECTIVES[each], training)
        sums = bound.sums(batch) if bound.needs.sums else None
        sums = {key: value.double() for key, value in sums.items()} if sums else None
        loss, metrics = bound(dataclasses.replace(batch, sums=sums))
        (gradient,) = torch.autograd.grad(loss, batch.logp)
        gradients.append(gradient)
        assert int(metrics["clipped"]) == 0 and float(metrics["ratio"]) == pytest.approx(len(ones))
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-9)


def test_where_a_response_has_reached_its_target_gdsd_has_no_gradient():
    batch = made_up(spread=0.0)
    length = sum_by(batch.response, batch.share)
    batch = dataclasses.replace(batch, advantage=torch.full_like(length, 1e-3))
    moved = (batch.logp_old + batch.advantage).detach().requires_grad_()  # m / L = 1e-3 = psi A
    loss, _ = loss_of("gdsd", dataclasses.replace(batch, logp=moved), beta=0.0, nll_weight=0.0)
    assert torch.autograd.grad(loss, moved)[0] == pytest.approx(torch.zeros_like(moved), abs=1e-12)


def test_the_upper_bound_of_a_bad_response_is_above_the_lower_one_and_equal_where_its_copies_agree():
    halves = torch.full((4,), 0.5, dtype=torch.float64)
    for logp, apart in (([-1.0, -3.0, -0.5, -2.0], True), ([-1.0, -1.0, -2.0, -2.0], False)):
        logp = torch.tensor(logp, dtype=torch.float64)
        fields = {"share": halves, "place": torch.tensor([0, 0, 1, 1])}
        loss, _ = loss_of("spg", TokenBatch.of(logp, logp, -2.0 * halves, halves, **fields), beta=0.0)
        lower = float((halves * logp).sum())  # the loss of a bad response is its likelihood
        assert float(loss) > lower + 0.1 if apart else float(loss) == pytest.approx(lower)


@pytest.mark.parametrize("limit", [5.0, 1.1])
def test_stable_drls_weights_stop_at_the_limit(limit):
    batch = made_up()
    moves = sum_by(batch.response, batch.share * (batch.logp - batch.logp_old)).detach()
    reached = moves > math.log(limit)
    assert reached.any() == (limit == 1.1) and not reached.all()
    loss, metrics = loss_of("stabledrl", batch, {"limit": limit})
    assert float(loss.detach()) == pytest.approx(plain("stabledrl", numbers(batch), limit=limit), abs=1e-12)
    assert int(metrics["clipped"]) == int(reached.sum())


def in_groups(moves, tokens=40):
    """Responses of one group in fp32, each moved by so many nats in all."""
    response = torch.repeat_interleave(torch.arange(len(moves)), tokens)
    old = torch.full((len(response),), -1.0)
    return TokenBatch.of(
        old + torch.tensor(moves)[response] / tokens,
        old,
        torch.ones_like(old),
        torch.full_like(old, 1 / len(old)),
        response=response,
        group=torch.zeros_like(response),
    )


def test_stable_drls_weights_in_fp32_are_right_far_off_policy():
    for moves, want in (
        ([-200.0, -200.0], [1.0, 1.0]),
        ([0.0, -200.0], [2.0, 0.0]),
        ([-60.0, -61.0], [1.4621, 0.5379]),
    ):
        share = group_shares(in_groups(moves), {"limit": 5.0})["share"]
        assert share[::40].tolist() == pytest.approx(want, abs=1e-4)
    share = group_shares(in_groups([200.0, 0.0, 200.0]), {"limit": 5.0})["share"]
    assert share[::40].tolist() == pytest.approx([15 / 11, 3 / 11, 15 / 11])


def test_far_off_policy_no_objective_explodes():
    for gap in (60.0, -60.0):
        batch = made_up()
        far = (batch.logp_old + gap).detach().requires_grad_()
        for name in OBJECTIVES:
            loss, _ = loss_of(name, dataclasses.replace(batch, logp=far))
            (gradient,) = torch.autograd.grad(loss, far)
            assert torch.isfinite(loss) and gradient.isfinite().all(), name


def test_dual_clip_bounds_what_a_bad_token_that_became_likely_costs():
    old = torch.zeros(3, dtype=torch.float64)
    logp = torch.log(torch.tensor([5.0, 2.0, 5.0], dtype=torch.float64)).requires_grad_()
    batch = TokenBatch.of(logp, old, torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64), torch.ones_like(old))
    for dual, want in ((None, 5.0 + 2.0 - 1.2), (3.0, 3.0 + 2.0 - 1.2)):
        training = TrainingConfig(dual_clip=dual, beta=0.0)
        loss, metrics = clipped_surrogate(batch, params_of(clipped_surrogate, {}, training))
        assert float(loss.detach()) == pytest.approx(want) and int(metrics["clipped"]) == (2 if dual else 1)


def test_eps_low_and_eps_high_bound_the_two_sides_apart():
    old = torch.zeros(2, dtype=torch.float64)
    logp = torch.log(torch.tensor([2.0, 0.5], dtype=torch.float64))
    batch = TokenBatch.of(logp, old, torch.tensor([1.0, -1.0], dtype=torch.float64), torch.ones_like(old))
    for low, high, want in ((None, None, -1.2 + 0.8), (0.3, None, -1.2 + 0.7), (None, 0.28, -1.28 + 0.8)):
        params = params_of(clipped_surrogate, {}, TrainingConfig(eps_low=low, eps_high=high, beta=0.0))
        assert float(clipped_surrogate(batch, params)[0]) == pytest.approx(want)


def test_right_traces_are_those_with_a_positive_reward():
    batch = made_up()
    plain_loss, with_nll = (loss_of("reinforce", batch, nll_weight=alpha)[0] for alpha in (0.0, 0.5))
    want = -0.5 * float((batch.weight * (batch.reward > 0) * batch.logp).sum().detach())
    assert float((with_nll - plain_loss).detach()) == pytest.approx(want)


# ---- rollout correction


def corrected(correction, batch):
    found, metrics = correction(batch)
    return (found.weight / batch.weight).tolist(), metrics, found


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_importance_weights_and_rejection_are_apart_at_each_level(level):
    batch = made_up()
    gaps = (batch.logp_old - batch.logp_rollout).tolist()
    want = []
    for i, size in enumerate(SIZES):
        first = sum(SIZES[:i])
        shares, own = batch.share[first : first + size].tolist(), gaps[first : first + size]
        total = sum(s * d for s, d in zip(shares, own, strict=True))
        want += {
            "token": [math.exp(d) for d in own],
            "sequence": [math.exp(total)] * size,
            "geometric": [math.exp(total / sum(shares))] * size,
        }[level]
    truncated, metrics, _ = corrected(Correction("truncated", level, 1.1), batch)
    assert truncated == pytest.approx([min(r, 1.1) for r in want])
    assert float(metrics["rollout_weight"]) == pytest.approx(sum(truncated)) and metrics["rollout_rejected"] == 0
    masked, _, _ = corrected(Correction("masked", level, 1.1), batch)
    assert masked == pytest.approx([r if 1 / 1.1 <= r <= 1.1 else 0.0 for r in want])
    low, high = 0.9 * min(want), 0.99 * max(want)
    kept, metrics, found = corrected(Correction(rejection=level, bounds=(low, high)), batch)
    assert kept == pytest.approx([float(low <= r <= high) for r in want]) and 0 < sum(kept) < len(kept)
    assert metrics["rollout_rejected"] == kept.count(0.0) and (found.kl_weight > 0).tolist() == [k > 0 for k in kept]
    assert Correction("truncated", level).whole_responses == (level != "token")


@pytest.mark.parametrize(("level", "gap"), [("sequence", 5.0), ("sequence", -5.0), ("geometric", 12.0)])
def test_ratios_of_whole_responses_in_fp32_stop_at_10_nats(level, gap):
    """Neither infinite nor 0, where a response would count as rejected."""
    batch = in_groups([0.0, 0.0])
    far = torch.where(batch.response == 0, gap, 0.0)
    batch = dataclasses.replace(batch, logp_rollout=batch.logp_old - far)
    weights, metrics, _ = corrected(Correction("truncated", level, 1e9), batch)
    assert weights == pytest.approx([math.exp(math.copysign(10.0, gap))] * 40 + [1.0] * 40, rel=1e-4)
    assert int(metrics["rollout_rejected"]) == 0 and torch.isfinite(metrics["rollout_weight"])


def test_a_correction_weighs_every_objective_and_none_leaves_the_batch_alone():
    batch = made_up()
    assert Correction()(batch) == (batch, {})
    training = TrainingConfig(rollout_correction="truncated", rollout_correction_level="geometric", beta=0.0)
    bound = bind("reinforce", OBJECTIVES["reinforce"], training)
    assert isinstance(bound, BoundObjective) and bound.needs.whole_responses
    loss, metrics = bound(batch)
    weight = Correction.of(training)(batch)[0].weight
    assert float(loss.detach()) == pytest.approx(-float((weight * batch.advantage * batch.logp).sum().detach()))
    assert metrics["rollout_tokens"] == metrics["tokens"] == sum(SIZES)
    assert np.isfinite(float(metrics["rollout_weight"]))
