"""Full-attention families: one answer a prompt whatever the way to it, and the rules that are their own."""

import itertools
import random

import oracle
import pytest
import torch
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from sample import Sampler, SamplingConfig
from sample.strategies import STRATEGIES
from sample.targets import TARGETS

FAMILIES = ("dream", "llada", "mmada")
PROMPTS = random_prompts([9, 1, 4, 6], seed=3)
STOPS = tuple(range(2, 64, 13))
CACHES = {
    "none": {"cache": "none"},
    "prefix": {"cache": "prefix"},
    "horizon": {"cache": "prefix", "further_horizon": 2},
    "dual": {"cache": "dual"},
}
DRAWS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "filtered": {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "confidence": "tempered"},
    "drawn_order": {"temperature": 1.0, "alg_temp": 0.5, "pad_target_penalty": 3.0, "pad_id": 40},
}
SHAPES = [(4, 3, 10), (5, 5, 12), (8, (1, 4, 2), 18), (4, 2, 3), (16, 6, 9)]
CASES = [
    (strategy, target, draw, cache, SHAPES[(i + j) % len(SHAPES)])
    for i, (strategy, target) in enumerate(itertools.product(STRATEGIES, TARGETS))
    for j, (draw, cache) in enumerate(zip(DRAWS, list(CACHES)[i % 4 :] + list(CACHES)[: i % 4], strict=True))
    if (i + j) % 3 == 0 or (strategy == "low_confidence_static" and draw == "drawn_order")
]


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


def make(case, **changes):
    strategy, target, draw, cache, (block_size, steps, tokens) = case
    settings = {"strategy": strategy, "target": target, "block_size": block_size, "steps_per_block": steps}
    settings |= {"max_new_tokens": tokens, "threshold": 0.5, "entropy_bound": 1.5, "stop_ids": STOPS, "seed": 7}
    return SamplingConfig(**settings | DRAWS[draw] | CACHES[cache] | changes)


@pytest.mark.parametrize(
    "case",
    thinned([(FAMILIES[i % 3], case) for i, case in enumerate(CASES)], 2),
    ids=lambda c: "-".join([c[0], *c[1][:4], f"b{c[1][4][0]}"]),
)
def test_a_batch_equals_the_oracle(models, case):
    family, case = case
    model = models[family]
    sampler = Sampler(model, make(case, max_slots=3))
    for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        same(rollout, oracle.decode_full(model, prompt, sampler.config, rollout.key))
        assert len(rollout.canvas_ids) == sampler.config.max_new_tokens


VARIANTS = {
    "one_by_one": {},
    "slots_1": {"max_slots": 1},
    "slots_2": {"max_slots": 2},
    "eight_steps_a_look": {"max_slots": 3},
    "deterministic": {"deterministic": True, "max_slots": 3},
    "mixed": {"max_slots": 2},
}


@pytest.mark.parametrize(
    ("variant", "cache", "family"),
    [(v, c, FAMILIES[(i + j) % 3]) for i, v in enumerate(VARIANTS) for j, c in enumerate(CACHES)],
)
def test_batch_mates_order_and_slots_do_not_enter(models, family, cache, variant):
    case = ("low_confidence_dynamic", "confidence", "plain", cache, (4, 4, 11))
    want = Sampler(models[family], make(case)).generate(PROMPTS, n=2)
    sampler = Sampler(models[family], make(case, **VARIANTS[variant]))
    order = list(range(len(want)))
    if variant == "eight_steps_a_look":
        sampler.steps_between_polls = 8
    if variant == "mixed":
        random.Random(1).shuffle(order)
    prompts, keys = [want[i].prompt_ids for i in order], [want[i].key for i in order]
    if variant == "one_by_one":
        got = [sampler.generate([p], keys=[k])[0] for p, k in zip(prompts, keys, strict=True)]
    else:
        got = sampler.generate(prompts, keys=keys)
    for i, rollout in zip(order, got, strict=True):
        same(rollout, want[i])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_caches_are_approximations(models, family):
    """They may differ from a full recompute, and here do: otherwise the tests above would see no cache at all."""
    case = ("low_confidence_static", "confidence", "greedy", "none", (8, 8, 24))
    logps = {}
    for cache, settings in CACHES.items():
        rollouts = Sampler(models[family], make(case, stop_ids=(), **settings)).generate(PROMPTS)
        logps[cache] = tuple(logp for r in rollouts for logp in r.logprobs)
    assert len(set(logps.values())) == len(CACHES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_runs(models, family):
    """Whole sequences at the first call of a block, windows after it; logits only where a token may be decided."""
    model, spans, heads = models[family], [], []
    hooks = [
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: spans.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        ),
        model.lm_head.register_forward_pre_hook(lambda module, args: heads.append(len(args[0]))),
    ]
    case = ("low_confidence_static", "confidence", "greedy", "none", (4, 4, 8))
    seen = {}
    for cache, settings in CACHES.items():
        Sampler(model, make(case, stop_ids=(), **settings)).generate(PROMPTS[:1])
        seen[cache], spans[:] = spans[:], []
    for hook in hooks:
        hook.remove()
    steps = 3 if family == "dream" else 4
    assert seen["none"] == [17] * 2 * steps
    assert seen["prefix"] == [17] + [8] * (steps - 1) + [17] + [4] * (steps - 1)
    assert seen["horizon"] == [17] + [6] * (steps - 1) + [17] + [4] * (steps - 1)
    assert seen["dual"] == [17] + [4] * (steps - 1) + [17] + [4] * (steps - 1)
    assert heads == ([1, 3, 2] if family == "dream" else [4, 3, 2, 1]) * 2 * len(CACHES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_without_early_stop_the_window_is_decoded_to_its_end(models, family, cache):
    case = ("low_confidence_dynamic", "confidence", "plain", cache, (4, 4, 11))
    cut = Sampler(models[family], make(case)).generate(PROMPTS, n=3)
    whole = Sampler(models[family], make(case, early_stop=False)).generate(PROMPTS, n=3)
    assert "stop" in {r.finish_reason for r in cut}
    for a, b in zip(cut, whole, strict=True):
        assert b.token_ids == a.token_ids and b.step_map == a.step_map and b.finish_reason == a.finish_reason
        assert 0 not in b.canvas_step_map and b.num_steps >= a.num_steps
    assert sum(a.num_steps for a in cut) < sum(b.num_steps for b in whole)


def only(model, token):
    """The model, answering nothing but `token`."""
    return model.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([token]), 50.0)
    )


def test_a_block_of_pads_ends_a_dream_answer():
    model = tiny_model("dream", seed=2)
    hook = only(model, 40)
    settings = {"max_new_tokens": 11, "block_size": 4, "pad_id": 40}
    (filled,) = Sampler(model, SamplingConfig(**settings, stop_ids=[])).generate([[5, 6]])
    assert filled.canvas_ids == [40] * 11 and filled.finish_reason == "length"
    assert filled.canvas_step_map == [1, 2, 2, 2] + [3] * 7 and filled.num_steps == 2
    (stopped,) = Sampler(model, SamplingConfig(**settings, stop_ids=[40])).generate([[5, 6]])
    assert stopped.token_ids == [40] and stopped.canvas_ids[1:] == [model.mask_id] * 10
    (other,) = Sampler(model, SamplingConfig(**settings | {"pad_id": 41}, stop_ids=[])).generate([[5, 6]])
    (whole,) = Sampler(model, SamplingConfig(**settings, stop_ids=[], early_stop=False)).generate([[5, 6]])
    assert other.canvas_step_map == whole.canvas_step_map == [1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6]
    hook.remove()
    llada = tiny_model("llada")
    hook = only(llada, 40)
    (rollout,) = Sampler(llada, SamplingConfig(**settings, stop_ids=[])).generate([[5, 6]])
    assert rollout.canvas_step_map == [1] * 4 + [2] * 4 + [3] * 3
    hook.remove()


@pytest.mark.parametrize("draw", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 12}])
def test_image_codes_and_masks_are_never_sampled(models, draw):
    model = models["mmada"]
    assert model.text_vocab_size == 64 < model.hf_config.vocab_size
    hooks = [only(model, token) for token in (70, model.mask_id)]
    rollouts = Sampler(model, SamplingConfig(max_new_tokens=12, stop_ids=[], **draw)).generate(PROMPTS, n=3)
    for hook in hooks:
        hook.remove()
    for rollout in rollouts:
        assert max(rollout.token_ids) < 64 and model.mask_id not in rollout.token_ids
        assert max(rollout.logprobs) < -20


def test_defaults_and_names(models):
    config = SamplingConfig().for_model(models["llada"])
    assert (config.block_size, config.steps_per_block, config.cache) == (32, 32, "none")
    assert SamplingConfig(max_new_tokens=9).for_model(models["dream"]).block_size == 9
    names = {"maskgit_plus": "confidence", "entropy": "neg_entropy", "topk_margin": "margin_confidence"}
    for name, target in (names | {"origin": "random"}).items():
        assert SamplingConfig(target=name) == SamplingConfig(target=target)
    with pytest.raises(ValueError, match="cache 'exact' does not exist for dream"):
        Sampler(models["dream"], SamplingConfig(cache="exact"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_beyond_the_models_positions_is_refused_before_any_forward(models, family):
    sampler = Sampler(models[family], SamplingConfig(max_new_tokens=500))
    hook = models[family].model.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    with pytest.raises(ValueError, match="13 tokens; with max_new_tokens=500 they exceed the 512 positions"):
        sampler.generate([[3], [3] * 13])
    hook.remove()


@pytest.mark.slow
def test_deterministic_mode_gives_the_same_bits_in_any_order(models):
    case = ("low_confidence_dynamic", "confidence", "plain", "horizon", (4, 4, 11))
    sampler = Sampler(models["dream"], make(case, max_slots=3, deterministic=True))
    want = {r.key: r for r in sampler.generate(PROMPTS, n=2)}
    mixed = random.Random(0).sample(list(want.values()), len(want))
    for rollout in sampler.generate([r.prompt_ids for r in mixed], keys=[r.key for r in mixed]):
        assert rollout == want[rollout.key]


@pytest.mark.slow
def test_slots_are_used_again_with_other_windows(models):
    config = make(("low_confidence_static", "confidence", "plain", "dual", (4, 4, 11)), max_slots=2)
    sampler = Sampler(models["llada"], config)
    for prompts in (PROMPTS, random_prompts([30, 2], seed=2), PROMPTS[1:3]):
        for a, b in zip(sampler.generate(prompts), Sampler(models["llada"], config).generate(prompts), strict=True):
            same(a, b)
