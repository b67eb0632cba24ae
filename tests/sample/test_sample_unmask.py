import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from helpers import tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.randomness import hash_uniform
from sample import Sampler, SamplingConfig, unmask
from sample.choices import Choices
from sample.draw import argmax, draw, filtered, in_nucleus
from sample.request import hash_key
from sample.strategies import STRATEGIES, Proposal, best
from sample.targets import TARGETS, Coordinates
from sample.unmask import Rules, schedule, timestep_schedule

settings.register_profile("sample", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("sample")
NAMES = {"strategy": "low_confidence_dynamic", "target": "confidence"}


def choices(**changes):
    """Choices at temperature 1, with the names of a strategy and a target."""
    names = {name: changes.pop(name, default) for name, default in NAMES.items()}
    changes = Choices(**{"temperature": 1.0} | changes)
    return SimpleNamespace(**vars(changes), **names, greedy=changes.greedy)


def propose(logits, key, position, step, mask_id, rules, text_vocab_size=None):
    named = Rules(rules, STRATEGIES[rules.strategy], TARGETS[rules.target])
    return unmask.propose(logits, Coordinates(key, position, step), named, mask_id, text_vocab_size)


@given(st.integers(0, 200), st.integers(1, 300))
def test_schedule_is_even_with_the_remainder_first(positions, steps):
    plan = schedule(positions, steps)
    assert len(plan) == steps and sum(plan) == positions
    assert plan == sorted(plan, reverse=True) and max(plan) - min(plan) <= 1


@given(st.integers(1, 80), st.integers(1, 100))
def test_the_timestep_schedule_begins_with_one_and_decides_all(positions, steps):
    plan = timestep_schedule(positions, steps)
    assert plan[0] == 1 and sum(plan) == positions and min(plan) >= 1 and len(plan) <= max(2, steps)


@pytest.mark.parametrize(
    ("positions", "steps", "plan"),
    [(4, 4, [1, 1, 2]), (4, 2, [1, 3]), (4, 1, [1, 3]), (1, 1, [1]), (1, 4, [1]), (32, 32, [1] * 30 + [2])],
)
def test_timestep_schedules(positions, steps, plan):
    assert timestep_schedule(positions, steps) == plan


def test_a_score_at_the_threshold_passes_where_the_family_says_so():
    score = torch.tensor([[0.5, 0.75, 0.5, 0.25]])
    proposal, masked = Proposal(score.long(), score, score, None), torch.ones(1, 4, dtype=torch.bool)
    one, rules = torch.ones(1, dtype=torch.long), choices(threshold=0.5)
    for passes, want in ((True, [True, True, True, False]), (False, [False, True, False, False])):
        strategy = STRATEGIES["low_confidence_dynamic"].of_family(passes)
        assert strategy(proposal, masked, one, rules).tolist() == [want]
        assert strategy(proposal, masked, one, choices(threshold=0.9)).tolist() == [[False, True, False, False]]
    assert STRATEGIES["sequential"].of_family(True) is STRATEGIES["sequential"]


def test_drawn_orders_follow_the_softmax_of_the_scores():
    """The first position of an order drawn at alg_temp, over 20,000 keys; another temperature, other shares."""
    keys = torch.arange(20_000).repeat_interleave(3)
    position = torch.arange(3).repeat(20_000)
    logits = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    confidence = logits.softmax(-1)[:, 0]
    for alg_temp in (0.2, 1.0):
        rules = choices(temperature=0.0, alg_temp=alg_temp, strategy="low_confidence_static")
        proposal = propose(logits.repeat(20_000, 1), keys, position, position * 0, 2, rules)
        first = proposal.score.view(-1, 3).argmax(-1)
        shares = torch.bincount(first, minlength=3) / len(first)
        torch.testing.assert_close(shares, (confidence / alg_temp).softmax(-1), atol=0.015, rtol=0)
        assert torch.allclose(proposal.logp.view(-1, 3), confidence.log())


def test_ids_beyond_the_text_are_never_drawn_but_stay_in_the_softmax():
    logits = torch.zeros(64, 10)
    logits[:, 8] = 30.0
    zero, many = torch.zeros(64, dtype=torch.long), torch.arange(64)
    for rules in (choices(temperature=0.0), choices(), choices(temperature=0.5, top_k=3), choices(top_p=0.2)):
        proposal = propose(logits.clone(), many, many, zero, 4, rules, text_vocab_size=8)
        assert proposal.token.max() < 8 and not (proposal.token == 4).any()
        assert (proposal.logp < -29).all()


# scores with many ties
blocks = st.integers(1, 8).flatmap(
    lambda b: st.lists(
        st.tuples(
            st.lists(st.sampled_from([-1.5, 0.0, 0.25, 0.5, 0.95, 1.0]), min_size=b, max_size=b),
            st.lists(st.booleans(), min_size=b, max_size=b),
            st.integers(1, b + 1),
        ),
        min_size=1,
        max_size=5,
    )
)


def tensors(rows):
    score, masked, k = (torch.tensor(list(column)) for column in zip(*rows, strict=True))
    return score, masked, k


@given(blocks)
def test_best_takes_the_highest_with_ties_to_the_left(rows):
    got = best(*tensors(rows))
    for (score, masked, k), chosen in zip(rows, got.tolist(), strict=True):
        order = sorted((i for i, m in enumerate(masked) if m), key=lambda i: (-score[i], i))
        assert {i for i, c in enumerate(chosen) if c} == set(order[:k])


@given(blocks, st.sampled_from(sorted(STRATEGIES)), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_strategies_agree_with_the_plain_ones_and_always_progress(rows, name, threshold):
    score, masked, k = tensors(rows)
    proposal = Proposal(torch.zeros_like(k), score, score, 1.0 - score)
    rules = choices(strategy=name, threshold=threshold, entropy_bound=1.25)
    got = STRATEGIES[name](proposal, masked, k, rules)
    assert not (got & ~masked).any()
    assert (got.any(-1) == masked.any(-1)).all()
    if name != "entropy_bounded":
        assert (got.sum(-1) >= torch.minimum(k, masked.sum(-1))).all()
    for i, (score_b, masked_b, k_row) in enumerate(rows):
        positions = [j for j, m in enumerate(masked_b) if m]
        found = {j: {"score": score_b[j], "passing": score_b[j], "entropy": 1.0 - score_b[j]} for j in positions}
        want = oracle.select(found, positions, k_row, rules) if positions else []
        assert set(torch.where(got[i])[0].tolist()) == set(want)


def test_entropies_add_up_to_less_than_the_bound():
    entropy = torch.tensor([[0.75, 0.5, 0.25, 4.0]])
    proposal, masked = Proposal(entropy.long(), -entropy, -entropy, entropy), torch.ones(1, 4, dtype=torch.bool)
    for bound, count in ((0.0, 1), (0.25, 1), (0.5, 1), (0.75, 1), (0.76, 2), (1.5, 2), (1.51, 3), (99.0, 4)):
        chosen = STRATEGIES["entropy_bounded"](proposal, masked, torch.ones(1), choices(entropy_bound=bound))
        assert int(chosen.sum()) == count and torch.equal(chosen, entropy <= entropy.sort().values[0, count - 1])


@given(st.integers(1, 400), st.integers(0, 2**31), st.booleans())
def test_argmax_is_the_leftmost_of_the_largest(V, seed, ties):
    value = torch.randn(5, V, generator=torch.Generator().manual_seed(seed))
    value = value.round() if ties else value
    value[:, V // 2] = -math.inf if V > 1 else 0.0
    assert argmax(value).tolist() == [row.index(max(row)) for row in value.tolist()]


@pytest.mark.parametrize("V", [1, 5, 127, 128, 129, 300, 1024])
def test_draw_takes_every_token_as_often_as_it_weighs(V):
    """Evenly spread uniform numbers: the share of each token is exact up to one number at either end of its
    interval."""
    weight = torch.rand(V, generator=torch.Generator().manual_seed(V)) ** 4
    weight[torch.arange(V) % 3 == 1] = 0.0
    n = 20_000
    token = draw(weight.expand(n, V), (torch.arange(n) + 0.5).double() / n)
    want = weight.double() / weight.double().sum() * n
    assert ((torch.bincount(token, minlength=V) - want).abs() <= 2).all()
    assert token.tolist() == sorted(token.tolist())


@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([0.0, 5e-324, 0.5, 1 - 2**-40, 1 - 2**-53]))
def test_draw_never_takes_a_token_without_weight(V, seed, uniform):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(V, generator=generator) * 10.0 ** torch.randint(-30, 3, (V,), generator=generator)
    weight[torch.rand(V, generator=generator) < 0.7] = 0.0
    weight[seed % V] = 1e-20
    (token,) = draw(weight[None], torch.tensor([uniform], dtype=torch.float64)).tolist()
    assert 0 <= token < V and weight[token] > 0


def chi_square(counts, probability):
    expected = probability * counts.sum()
    common = expected >= 5
    rest, rest_expected = counts[~common].sum(), expected[~common].sum()
    value = ((counts[common] - expected[common]) ** 2 / expected[common]).sum()
    value += (rest - rest_expected) ** 2 / rest_expected.clamp_min(1.0)
    return float(value), int(common.sum())


@pytest.mark.parametrize("settings_", [{}, {"temperature": 0.7}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9}])
def test_sampled_tokens_follow_the_softmax(settings_):
    """Chi-square over 200 keys x 500 positions; the statistic stays within 5 standard deviations of its mean."""
    V, mask_id, draws = 150, 7, 100_000
    logits = torch.randn(V, generator=torch.Generator().manual_seed(1)) * 2
    key = torch.arange(draws) // 500 * 104729
    position, step = torch.arange(draws) % 500, torch.arange(draws) % 4
    counts = torch.zeros(V)
    for part in torch.arange(draws).split(10_000):
        proposal = propose(
            logits.repeat(len(part), 1), key[part], position[part], step[part], mask_id, choices(**settings_)
        )
        counts += torch.bincount(proposal.token, minlength=V)
    rules = choices(**settings_)
    allowed = [v / rules.temperature if t != mask_id else -math.inf for t, v in enumerate(logits.tolist())]
    probability = torch.tensor(oracle.softmax(oracle.keep_top_p(oracle.keep_top_k(allowed, rules.top_k), rules.top_p)))
    assert (counts[probability == 0] == 0).all()
    value, freedom = chi_square(counts, probability)
    assert abs(value - freedom) < 5 * (2 * freedom) ** 0.5


@given(
    st.lists(st.integers(-6, 6), min_size=2, max_size=40),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, 45),
    st.sampled_from([0.1, 0.5, 0.77, 0.9, 0.999, 1.0]),
    st.booleans(),
)
def test_filters_agree_with_the_plain_ones(levels, temperature, top_k, top_p, ties):
    logits = torch.tensor(levels, dtype=torch.float32)
    if not ties:
        logits = logits + torch.linspace(0.0, 0.37, len(levels)).flip(0)
    got = filtered(logits[None], temperature, top_k, top_p)[0]
    scaled = (logits / temperature).tolist()
    want = oracle.keep_top_p(oracle.keep_top_k(scaled, top_k), top_p)
    assert (got > -math.inf).tolist() == [v > -math.inf for v in want]
    kept = got > -math.inf
    torch.testing.assert_close(got[kept], torch.tensor(scaled)[kept])


@given(
    st.lists(st.one_of(st.integers(-6, 6), st.floats(-30, 30, width=32), st.just(-math.inf)), min_size=2, max_size=40),
    st.floats(0.01, 1.0, exclude_max=True),
)
def test_the_nucleus_without_a_sort_is_the_sorted_one(levels, top_p):
    """Up to rounding where the sum comes to top_p itself."""
    logits = torch.tensor([levels, levels[::-1]], dtype=torch.float32)
    logits[:, 0] = logits[:, 0].clamp_min(-30)
    mass = logits[0].double().softmax(-1).sort(descending=True).values.cumsum(-1)
    assume((mass - top_p).abs().min() > 1e-5)
    assert torch.equal(in_nucleus(logits, top_p), filtered(logits, 1.0, 0, top_p) > -math.inf)


def test_top_k_keeps_the_likeliest_token_only_when_it_is_one():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert filtered(logits, 1.0, 1, 1.0).softmax(-1).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert (filtered(logits, 1.0, 3, 1e-9) > -math.inf).tolist() == [[False, True, False, False]]


def test_the_mask_id_is_never_drawn_but_stays_in_the_softmax():
    logits = torch.zeros(64, 10)
    logits[:, 4], logits[:, 6] = 30.0, 1.0
    zero, many = torch.zeros(64, dtype=torch.long), torch.arange(64)
    for rules in (choices(temperature=0.0), choices(), choices(temperature=0.5, top_k=1), choices(top_p=0.2)):
        proposal = propose(logits.clone(), many, many, zero, 4, rules)
        assert not (proposal.token == 4).any()
        want = logits.log_softmax(-1).gather(-1, proposal.token[:, None])[:, 0]
        torch.testing.assert_close(proposal.logp, want, atol=1e-5, rtol=0)
    assert propose(logits.clone(), many, many, zero, 4, choices(temperature=0.0)).token.tolist() == [6] * 64


def test_scores_of_each_target():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 3
    many = torch.arange(50)
    p = logits.double().softmax(-1)
    for temperature in (0.0, 0.8):
        for target in ("confidence", "margin_confidence", "neg_entropy", "random"):
            got = propose(logits.clone(), many, many, many, 3, choices(temperature=temperature, target=target))
            two = p.topk(2, dim=-1).values
            want = {
                "confidence": p.gather(-1, got.token[:, None])[:, 0],
                "margin_confidence": two[:, 0] - two[:, 1],
                "neg_entropy": (p * p.log()).sum(-1),
                "random": hash_uniform(many, many, many, 1),
            }[target]
            torch.testing.assert_close(got.score.double(), want, atol=1e-5, rtol=0)
    tempered = propose(logits.clone(), many, many, many, 3, choices(temperature=0.5, top_k=4, confidence="tempered"))
    logits[:, 3] = -math.inf
    drawn = filtered(logits, 0.5, 4, 1.0).softmax(-1)
    torch.testing.assert_close(tempered.score, drawn.gather(-1, tempered.token[:, None])[:, 0])


def splitmix(x):
    """The finaliser of Steele, Lea and Flood 2014 on unsigned 64-bit numbers."""
    full = 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % full
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % full
    return x ^ (x >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**20), st.integers(0, 5000), st.integers(0, 1))
def test_hash_is_splitmix_in_wrapping_arithmetic(key, position, step, stream):
    start = key + position * 0x9E3779B97F4A7C15 + (2 * step + stream) * 0x5851F42D4C957F2D
    (got,) = hash_uniform(*(torch.tensor([v]) for v in (key, position, step)), stream).tolist()
    assert got == (splitmix(start % 2**64) >> 11) / 2**53


def test_hash_is_even_and_depends_on_everything():
    index = torch.arange(40_000)
    zero = torch.zeros_like(index)
    other = torch.full_like(index, hash_key(("other",)))
    streams = {
        "key": hash_uniform(index, zero, zero, 0),
        "position": hash_uniform(zero, index, zero, 0),
        "step": hash_uniform(zero, zero, index, 0),
        "order": hash_uniform(zero, index, zero, 1),
        "second step": hash_uniform(zero, index, zero + 1, 0),
        "other key": hash_uniform(other, index, zero, 0),
        "block": hash_uniform(zero, index // 100, index % 100, 0),
    }
    for values in streams.values():
        assert values.min() >= 0 and values.max() < 1 and len(values.unique()) == len(index)
        counts = torch.histc(values, bins=100, min=0, max=1)
        assert abs(float(((counts - 400) ** 2 / 400).sum()) - 99) < 5 * (2 * 99) ** 0.5
    stacked = torch.corrcoef(torch.stack(list(streams.values())))
    assert (stacked - torch.eye(len(streams))).abs().max() < 0.025


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_weights_that_are_not_finite_leave_their_mark_and_end_nothing(strategy, temperature):
    """A diverged model's answer says so in its log-probabilities; the guard of training reads them there."""
    model = tiny_model("sdar")
    model.model.norm.weight.data.fill_(math.nan)
    config = SamplingConfig(max_new_tokens=9, temperature=temperature, strategy=strategy)
    (rollout,) = Sampler(model, config).generate([[5, 6, 7]])
    assert not np.isfinite(rollout.logprobs).all()
    assert all(0 <= i < 64 for i in rollout.canvas_ids)


@pytest.mark.parametrize("target", ["neg_entropy", "random"])
def test_a_threshold_is_for_the_confidence_whatever_ranks(target):
    """At threshold 0 all pass, at 1 none does and one is taken a step, the best by the target."""
    model = tiny_model("sdar")
    for threshold, steps in ((0.0, 2), (1.0, 8)):
        config = SamplingConfig(max_new_tokens=8, block_size=4, target=target, threshold=threshold, stop_ids=[])
        (rollout,) = Sampler(model, config).generate([[5, 6, 7, 8]])
        assert rollout.num_steps == steps
