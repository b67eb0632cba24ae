import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from train.algorithm.objectives import (
    KL_ESTIMATORS,
    TokenBatch,
    clipped_surrogate,
    k1,
    k2,
    k3,
    negative_log_likelihood,
    params_of,
    token_weights,
)
from train.algorithm.replay import TrainingSample

EPS = 0.2


def clip(logp, old, advantage, weight, *, eps=EPS, beta=0.0, kl="k3", **fields):
    """The built-in objective on tokens that are given one by one."""
    given = {"eps": eps, "beta": beta, "kl_estimator": kl}
    return clipped_surrogate(TokenBatch.of(logp, old, advantage, weight, **fields), params_of(clipped_surrogate, given))


def tokens(n=24, spread=0.6, seed=0):
    """logp, logp_old, advantage, weight [N] in fp64: some untrained; ratios inside and outside the clip range, none on
    its edge."""
    generator = torch.Generator().manual_seed(seed)
    uniform = functools.partial(torch.rand, n, generator=generator, dtype=torch.float64)
    old = -3.0 * uniform()
    log_ratio = (2.0 * uniform() - 1.0) * spread
    for edge in (np.log(1 - EPS), np.log(1 + EPS)):
        log_ratio = torch.where((log_ratio - edge).abs() < 1e-3, log_ratio + 1e-2, log_ratio)
    advantage = 2.0 * uniform() - 1.0
    weight = uniform() * (uniform() > 0.2)
    return (old + log_ratio).requires_grad_(), old, advantage, weight


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_of_the_clipped_surrogate(kl, beta):
    logp, old, advantage, weight = tokens()
    log_ratio = (logp - old).detach()
    assert (log_ratio > np.log(1 + EPS)).any() and (log_ratio < np.log(1 - EPS)).any()

    def loss(x):
        return clip(x, old, advantage, weight, beta=beta, kl=kl)[0]

    assert gradcheck(loss, logp, eps=1e-6, atol=1e-8)


def test_gradient_of_the_negative_log_likelihood():
    logp, _, _, weight = tokens()
    assert gradcheck(lambda x: negative_log_likelihood(x, weight)[0], logp, eps=1e-6, atol=1e-8)


@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.floats(0.0, 0.5), st.sampled_from(sorted(KL_ESTIMATORS)))
def test_clipped_surrogate_token_by_token(seed, beta, eps, kl):
    logp, old, advantage, weight = tokens(seed=seed)
    loss, sums = clip(logp, old, advantage, weight, eps=eps, beta=beta, kl=kl)
    policy = penalty = clipped = 0.0
    for new, before, a, w in zip(logp.tolist(), old.tolist(), advantage.tolist(), weight.tolist(), strict=True):
        d = new - before
        ratio = np.exp(d)
        bounded = min(max(ratio, 1 - eps), 1 + eps)
        policy -= w * min(ratio * a, bounded * a)
        penalty += w * {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[kl]
        clipped += w > 0 and ratio * a > bounded * a
    assert float(loss.detach()) == pytest.approx(policy + beta * penalty, abs=1e-9)
    assert float(sums["policy_loss"]) == pytest.approx(policy, abs=1e-9)
    assert float(sums["kl_loss"]) == pytest.approx(penalty, abs=1e-9)
    assert int(sums["clipped"]) == clipped and int(sums["tokens"]) == int((weight > 0).sum())


def test_a_normalisation_of_its_own_for_the_kl_term():
    logp, old, advantage, weight = tokens()
    _, sums = clip(logp, old, advantage, weight, kl_weight=torch.ones_like(weight))
    assert float(sums["kl_loss"]) == pytest.approx(float(k3(logp.detach() - old).sum()), abs=1e-9)


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_at_ratio_one(kl):
    """Loss minus the weighted advantages, no KL, nothing clipped, and the gradient is the policy gradient."""
    _, old, advantage, weight = tokens()
    logp = old.clone().requires_grad_()
    loss, sums = clip(logp, old, advantage, weight, beta=0.0, kl=kl)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-float((weight * advantage).sum()), abs=1e-12)
    assert torch.allclose(logp.grad, -weight * advantage)
    assert float(sums["kl"]) == float(sums["kl_loss"]) == 0.0 and int(sums["clipped"]) == 0
    assert float(sums["ratio"]) == float(sums["tokens"])


def test_no_gradient_beyond_the_clip():
    """Where the ratio has moved out in the direction that the advantage asks for, and only there."""
    old = torch.zeros(4, dtype=torch.float64)
    logp = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    clip(logp, old, advantage, torch.ones_like(old))[0].backward()
    assert [bool(g != 0) for g in logp.grad] == [False, True, True, False]


@pytest.mark.parametrize("gap", [50.0, -50.0, 1e4])
def test_a_ratio_far_away_stays_finite(gap):
    logp = torch.tensor([gap], requires_grad=True)
    loss, sums = clip(logp, torch.zeros(1), torch.tensor([-1.0]), torch.ones(1), beta=1.0, kl="k3")
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all()
    assert float(sums["ratio"]) == pytest.approx(np.exp(np.clip(gap, -10.0, 10.0)), rel=1e-5)


def test_untrained_tokens_do_not_enter():
    logp, old, advantage, weight = tokens()
    keep = weight > 0
    for beta in (0.0, 0.5):
        every, sums = clip(logp, old, advantage, weight, beta=beta)
        some, sums_of_some = clip(logp[keep], old[keep], advantage[keep], weight[keep], beta=beta)
        assert float(every.detach()) == pytest.approx(float(some.detach()), abs=1e-12)
        for name in sums:
            assert float(sums[name]) == pytest.approx(float(sums_of_some[name]), abs=1e-12), name


@given(st.floats(-3.0, 3.0))
def test_kl_estimators(d):
    at = torch.tensor(d, dtype=torch.float64)
    assert float(k1(at)) == d and float(k2(at)) == pytest.approx(d * d / 2)
    assert float(k3(at)) == pytest.approx(np.exp(-d) - 1 + d) and float(k3(at)) >= -1e-15
    near = torch.tensor(d / 1e3, dtype=torch.float64)
    assert float(k3(near)) == pytest.approx(float(k2(near)), rel=2e-3)


def test_kl_estimators_have_the_kl_as_expectation():
    """KL(p | q) of two categorical distributions, d = log p - log q over tokens of p: k1, k3 are unbiased, k2 not."""
    p, q = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [0.4, 0.25, 0.35]))
    exact = float((p * (p / q).log()).sum())
    for estimator in (k1, k3):
        assert float((p * estimator((p / q).log())).sum()) == pytest.approx(exact, abs=1e-12)
    assert float((p * k2((p / q).log())).sum()) != pytest.approx(exact, abs=1e-4)


def test_negative_log_likelihood_value():
    logp, _, _, weight = tokens()
    loss, sums = negative_log_likelihood(logp, weight)
    assert float(loss.detach()) == pytest.approx(
        -sum(w * x for w, x in zip(weight.tolist(), logp.tolist(), strict=True))
    )
    assert float(sums["nll"]) == pytest.approx(-float(logp.detach()[weight > 0].sum()))


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=20),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_token_weights(sizes, max_gen_length, longest):
    """constant: 1 / (responses x max_gen_length), token_mean: 1 / tokens, reference: 1 / (rounds x longest)."""

    rows = [row(key, *size) for key, size in enumerate(sizes)]
    weights = {
        kind: token_weights(rows, kind, max_gen_length=max_gen_length, longest_response=longest)
        for kind in ("constant", "token_mean", "reference")
    }
    trained = np.array([n for n, _ in sizes])
    total = {kind: np.concatenate(weights[kind].policy).sum() for kind in weights}
    assert total["token_mean"] == pytest.approx(1.0)
    assert total["constant"] == pytest.approx(trained.mean() / max_gen_length)
    assert total["reference"] == pytest.approx(trained.sum() / (sum(k for _, k in sizes) * longest))
    for values in weights.values():
        assert [len(w) for w in values.policy] == trained.tolist() and values.policy == values.kl


def row(key, trained, rounds, weight=1.0):
    zeros = np.zeros(trained, dtype=np.int64)
    weights = np.full(trained, weight)
    return TrainingSample((key,), *[zeros] * 9, rounds, weights)


def test_weights_of_several_rows_a_response():
    """Full attention: two rows of one response, weighted 1 / 2 each as two noisy copies are, and one of another."""
    rows = [row("a", 4, 1, 0.5), row("a", 2, 1, 0.5), row("b", 3, 1)]
    constant = token_weights(rows, "constant", max_gen_length=10)
    assert [w.tolist() for w in constant.policy] == [[0.025] * 4, [0.025] * 2, [0.05] * 3]
    mean = token_weights(rows, "token_mean", max_gen_length=10).policy
    assert [w.tolist() for w in mean] == [[0.5 / 6] * 4, [0.5 / 6] * 2, [1 / 6] * 3]


def test_the_reference_averages_full_attention_rows_and_sums_their_kl():
    rows = [row("a", 4, 1), row("a", 2, 1), row("b", 3, 1)]
    weights = token_weights(rows, "reference", max_gen_length=10)
    assert np.concatenate(weights.policy) == pytest.approx([1 / 12] * 4 + [1 / 6] * 2 + [1 / 9] * 3)
    assert np.concatenate(weights.kl) == pytest.approx([1 / 3] * 9)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="token_mean"):
        token_weights([], "mean", max_gen_length=1)
