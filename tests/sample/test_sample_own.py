"""Strategies and targets that a user writes: through SamplingConfig as a function, a record or a file's name."""

import math

import pytest
import torch
from helpers import random_prompts, tiny_model

from sample import Sampler, SamplingConfig, Strategy, Target, doors

PROMPTS = random_prompts([5, 9, 4])
FILE = '''
import torch
from sample import Strategy, Target


def static(proposal, masked_nb, k_n, choices):
    order = proposal.score.masked_fill(~masked_nb, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < k_n[:, None]) & masked_nb


def share(proposal, masked_nb, k_n, choices, *, part=0.5):
    """The best of a block's masked positions, a part of them."""
    k_n = (masked_nb.sum(-1) * part).ceil().long()
    return static(proposal, masked_nb, k_n, choices)


def surest(proposal, masked_nb, k_n, choices):
    entropy = proposal.entropy.masked_fill(~masked_nb, torch.inf)
    within = entropy.sort(dim=-1).values.cumsum(-1) < choices.entropy_bound
    order = entropy.argsort(dim=-1, stable=True).argsort(dim=-1)
    return masked_nb & (order < within.sum(-1, keepdim=True).clamp_min(1))


def dynamic(proposal, masked_nb, k_n, choices):
    passed = masked_nb & (proposal.probability > choices.threshold)
    return torch.where((passed.sum(-1) >= k_n)[:, None], passed, static(proposal, masked_nb, k_n, choices))


bounded = Strategy(surest, needs_entropy=True)
thresholded = Strategy(dynamic, by_threshold=True)


def probability(candidates):
    return candidates.logp.exp()


certain = Target(lambda candidates: -candidates.entropy, needs_entropy=True)
ahead = Target(lambda candidates, times=1.0: times * candidates.margin, bounded=True, needs_margin=True)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(FILE)
    return path


def answers(model, **settings):
    config = SamplingConfig(**{"max_new_tokens": 11, "temperature": 0.9, "seed": 3, "stop_ids": []} | settings)
    return [(r.canvas_ids, r.canvas_step_map, r.num_steps) for r in Sampler(model, config).generate(PROMPTS)]


@pytest.mark.parametrize(
    ("own", "built_in"),
    [
        ({"strategy": "static"}, {"strategy": "low_confidence_static"}),
        ({"strategy": "bounded", "entropy_bound": 5.0}, {"strategy": "entropy_bounded", "entropy_bound": 5.0}),
        ({"strategy": "thresholded", "threshold": 0.02}, {"threshold": 0.02}),
        (
            {"strategy": "thresholded", "target": "random", "threshold": 0.02},
            {"target": "random", "threshold": 0.02},
        ),
        ({"target": "probability", "threshold": 0.02}, {"threshold": 0.02}),
        ({"target": "certain", "threshold": 0.02}, {"target": "neg_entropy", "threshold": 0.02}),
        ({"target": "ahead", "threshold": 0.02}, {"target": "margin_confidence", "threshold": 0.02}),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()),
)
def test_a_built_in_written_a_second_time_in_a_users_file_decodes_the_same(sdar, file, own, built_in):
    named = {key: f"{file}:{own[key]}" for key in ("strategy", "target") if key in own and own[key] != "random"}
    steps = {"block_size": 4, "steps_per_block": 2}
    assert answers(sdar, **steps, **own | named) == answers(sdar, **steps, **built_in)


def test_a_function_a_record_and_a_files_name_are_one_strategy(sdar, file):
    settings = {"block_size": 4, "steps_per_block": 2}

    def mine(proposal, masked_nb, k_n, choices):
        score = proposal.score.masked_fill(~masked_nb, -torch.inf)
        return (score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) < k_n[:, None]) & masked_nb

    want = answers(sdar, strategy=f"{file}:static", **settings)
    assert answers(sdar, strategy=mine, **settings) == answers(sdar, strategy=Strategy(mine), **settings) == want
    target = answers(sdar, target=lambda candidates: candidates.confidence, **settings)
    assert target == answers(sdar, target=Target(lambda candidates: candidates.confidence), **settings)


def test_parameters_are_keyword_arguments(sdar, file):
    def steps(**settings):
        return {num_steps for _, _, num_steps in answers(sdar, strategy=f"{file}:share", block_size=4, **settings)}

    assert max(steps(strategy_params={"part": 1.0})) < max(steps()) < max(steps(strategy_params={"part": 0.1}))
    plain, turned = ({"target": f"{file}:ahead", "target_params": {"times": t}} for t in (1.0, -1.0))
    assert answers(sdar, strategy="low_confidence_static", **plain) != answers(
        sdar, strategy="low_confidence_static", **turned
    )


def nothing(proposal, masked_nb, k_n, choices):
    return torch.zeros_like(masked_nb)


def all_of_the_block(proposal, masked_nb, k_n, choices):
    return torch.ones_like(masked_nb)


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_a_step_that_commits_nothing_commits_the_best(family):
    """So decoding ends, one position a step as if a static strategy took one."""
    model = tiny_model(family)
    settings = {"block_size": 4, "steps_per_block": 4, "max_new_tokens": 8, "target": "margin_confidence"}
    assert answers(model, strategy=nothing, **settings) == answers(
        model, strategy=lambda proposal, masked_nb, k_n, choices: first(proposal, masked_nb), **settings
    )


def test_what_never_commits_or_ranks_is_named_before_a_run(caplog):
    SamplingConfig(strategy=lambda proposal, masked_nb, k_n, choices: masked_nb & (proposal.probability > 0.9))
    assert not caplog.messages
    doors._warn_once.cache_clear()
    SamplingConfig(strategy=nothing, target=lambda candidates: candidates.logp * math.nan)
    assert "sampling strategy commits nothing even where all tokens are sure" in caplog.text
    assert "sampling target is not a number for ordinary candidates" in caplog.text
    count = len(caplog.messages)
    SamplingConfig(strategy=nothing)
    assert len(caplog.messages) == count


def first(proposal, masked_nb):
    score = proposal.score.masked_fill(~masked_nb, -math.inf)
    return masked_nb & (score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) == 0)


def test_only_masked_positions_are_committed(sdar):
    got = answers(sdar, strategy=all_of_the_block, block_size=4, temperature=0.0)
    assert got == answers(sdar, strategy="low_confidence_static", block_size=4, steps_per_block=1, temperature=0.0)


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf, 0])
@pytest.mark.parametrize("strategy", ["low_confidence_static", "low_confidence_dynamic", nothing])
def test_scores_that_are_no_numbers_end_nothing(sdar, value, strategy):
    def target(candidates):
        return torch.full_like(candidates.token, value, dtype=torch.float64)

    decoded = answers(sdar, target=target, strategy=strategy, threshold=1.0, block_size=4, alg_temp=0.5)
    assert all(sorted(set(steps) - {0}) == list(range(1, num + 1)) for _, steps, num in decoded)


def two_arguments(proposal, masked_nb):
    return masked_nb


def scores(proposal, masked_nb, k_n, choices):
    return proposal.score


def of_the_first_slot(proposal, masked_nb, k_n, choices):
    return masked_nb[0]


def fails(proposal, masked_nb, k_n, choices):
    return masked_nb & (proposal.score > choices.treshold)


def of_one(candidates):
    return candidates.confidence.mean()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": "mine.py:static"}, "no file 'mine.py'"),
        ({"strategy": "FILE:statc"}, "has no 'statc'; nearest: static"),
        ({"strategy": "FILE:torch"}, "cannot be called|not a function"),
        ({"strategy": 5}, "sampling strategy is 5"),
        ({"strategy": two_arguments}, "is called with 4 arguments"),
        ({"strategy": scores}, r"returned float32 \[2, 4\]; it must be bool \[2, 4\]"),
        ({"strategy": of_the_first_slot}, r"returned bool \[4\]; it must be bool \[2, 4\]"),
        ({"strategy": fails}, "sampling strategy: AttributeError: .*treshold.*test_sample_own.py line"),
        ({"strategy": "FILE:surest"}, "FILE:surest: AttributeError: 'NoneType'"),
        ({"strategy": "FILE:share", "strategy_params": {"prt": 0.1}}, "prt is unknown.*Did you mean 'part'"),
        ({"strategy": "sequential", "strategy_params": {"part": 0.1}}, "sequential is built in and takes none"),
        ({"target": of_one}, r"sampling target returned float32 \[\]; it must be a number a candidate, \[3\]"),
        ({"target": "FILE:certain", "target_params": {"x": 1}}, "x is unknown"),
    ],
)
def test_a_strategy_or_target_that_is_none_is_named_before_any_model(file, settings, says):
    named = {
        key: value.replace("FILE", str(file)) if isinstance(value, str) else value for key, value in settings.items()
    }
    with pytest.raises(ValueError, match=says.replace("FILE", str(file))):
        SamplingConfig(**named)


def test_a_mistake_inside_a_step_is_named(sdar):
    def wide_only(proposal, masked_nb, k_n, choices):
        return masked_nb if masked_nb.shape[1] == 4 else proposal.score

    with pytest.raises(ValueError, match=r"sampling strategy returned float32 \[3, 8\]; it must be bool \[3, 8\]"):
        answers(sdar, strategy=wide_only, block_size=8)


def test_configs_with_functions_are_equal_and_hashable():
    one, other = (SamplingConfig(strategy=nothing, strategy_params={}) for _ in range(2))
    assert one == other and hash(one) == hash(other) and one != SamplingConfig()


def test_a_choice_that_writes_into_its_arguments_changes_no_state():
    """Decoding ends all the same, a token a step."""

    def erasing(proposal, masked_nb, k_n, choices):
        masked_nb.zero_()
        k_n.zero_()
        return masked_nb

    settings = SamplingConfig(max_new_tokens=4, block_size=4, strategy=erasing, early_stop=False)
    (rollout,) = Sampler(tiny_model("sdar"), settings).generate([[5, 6, 7]])
    assert sorted(rollout.step_map) == [1, 2, 3, 4]
