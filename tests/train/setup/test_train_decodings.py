"""Sections of a config -> sampling configs."""

import logging
from dataclasses import fields

import pytest
from helpers import random_prompts, tiny_model

from configs.schema import DecodeConfig, EvaluationConfig, RolloutConfig
from sample import Sampler, SamplingConfig
from train.setup.blocks import block_sizes
from train.setup.decodings import sampling_entries


@pytest.fixture(scope="module")
def dream():
    return tiny_model("dream")


def entries(model, kind=RolloutConfig, **keys):
    decode = kind(**keys)
    blocks = block_sizes(decode, model.spec, model.block_size)
    return sampling_entries(decode, model, blocks, seed=0, deterministic=False)


def test_the_keys_of_dream(dream):
    keys = {"max_new_tokens": 100, "steps": 90, "max_slots": 2, "temperature": 0.1, "top_p": 0.95, "top_k": 40}
    keys |= {"cache": "prefix", "further_horizon": 16, "block_size": [32, 4], "target": "entropy", "alg_temp": 0.5}
    keys |= {"strategy": ["low_confidence_static", "low_confidence_dynamic"], "pad_target_penalty": 1.2}
    static, dynamic = entries(dream, EvaluationConfig, **keys, early_stop=False).values()
    assert (static.max_new_tokens, static.max_slots, static.block_size) == (100, 2, 32)
    assert static.steps_per_block == [23, 23, 22, 22]
    assert dynamic.block_size == 4 and dynamic.steps_per_block == [4] * 15 + [3] * 10
    for config in (static, dynamic):
        assert (config.cache, config.further_horizon, config.target) == ("prefix", 16, "neg_entropy")
        assert (config.alg_temp, config.pad_target_penalty, config.early_stop) == (0.5, 1.2, False)
        assert (config.temperature, config.top_p, config.top_k) == (0.1, 0.95, 40)


def test_without_a_cache_the_horizon_has_no_meaning(dream):
    (config,) = entries(dream, further_horizon=128, max_new_tokens=64).values()
    assert (config.cache, config.further_horizon, config.block_size, config.steps_per_block) == ("none", None, 32, 32)
    (config,) = entries(dream, cache="dual", further_horizon=128, max_new_tokens=8).values()
    assert (config.cache, config.further_horizon, config.max_new_tokens) == ("dual", None, 8)


def test_block_families_have_their_cache_anyway(sdar, caplog):
    (config,) = entries(sdar, cache="prefix", further_horizon=128, steps=8, max_new_tokens=16).values()
    assert (config.cache, config.further_horizon, config.steps_per_block) == ("exact", None, [2, 2, 2, 2])
    assert "rollout.cache: prefix approximates full attention; sdar keeps its exact cache" in caplog.text


def test_entries_are_named_by_the_edit_threshold_where_it_is_a_list(sdar):
    found = entries(sdar, edit_threshold=[None, 0.5], max_post_steps=3, temperature=0.0)
    assert [(name, config.edit_threshold) for name, config in found.items()] == [
        ("dynamic-b4-greedy", None),
        ("dynamic-b4-greedy-e0.5", 0.5),
    ]
    assert {config.max_post_steps for config in found.values()} == {3}


def test_steps_that_do_not_fit(dream):
    with pytest.raises(ValueError, match=r"rollout\.steps=3 are fewer than the 4 blocks of 32 tokens in 128"):
        entries(dream, steps=3, max_new_tokens=128, block_size=32)
    with pytest.raises(ValueError, match=r"rollout\.steps=8 and rollout.steps_per_block=4 mean the same"):
        entries(dream, steps=8, steps_per_block=4)


@pytest.mark.parametrize(("steps", "sizes", "said"), [(8, 4, 1), (4, 4, 0), (8, [4, 8], 1), ([4, 9], [4, 8], 1)])
def test_more_steps_than_a_block_has_tokens_are_reported(sdar, caplog, steps, sizes, said):
    with caplog.at_level(logging.WARNING):
        entries(sdar, steps_per_block=steps, block_size=sizes)
    size, most = (8, 9) if steps == [4, 9] else (4, 8)
    text = f"steps_per_block={most} is more than a block's {size} tokens: at most {size} steps are taken"
    assert len(caplog.records) == caplog.text.count(text) == said


def test_steps_as_many_as_the_blocks_tokens_are_what_more_steps_do(sdar):
    prompts = random_prompts([3, 4, 6])
    answers = []
    for steps in (4, 9):
        arguments = {"steps_per_block": steps, "block_size": 4, "strategy": "low_confidence_static"}
        (config,) = entries(sdar, max_new_tokens=9, **arguments).values()
        answers.append(Sampler(sdar, config).generate(prompts))
    assert [(r.canvas_ids, r.canvas_step_map) for r in answers[0]] == [
        (r.canvas_ids, r.canvas_step_map) for r in answers[1]
    ]


OTHER = {"strategy": "sequential", "target": "random", "confidence": "tempered", "cache": "prefix", "graphs": "off"} | {
    "attention": "sdpa",
    "output": "image",
}
OF_THE_RUN = {"stop_ids", "pad_id", "seed", "fuse_commit", "deterministic", "record_routing", "delete_insert_ids"}
SHARED = sorted({item.name for item in fields(SamplingConfig)} - OF_THE_RUN - {"strategy_params", "target_params"})


def test_every_choice_of_the_sampler_is_a_key():
    """What is added to SamplingConfig and not to the schema fails here, but what comes from the model or the run."""
    assert set(SHARED) <= {item.name for item in fields(DecodeConfig)}


@pytest.mark.parametrize("name", SHARED)
def test_a_key_arrives_in_the_sampler_under_its_name(dream, name, monkeypatch):
    """Both ways: under a value that neither schema nor sampler has by default."""
    canvases = ("final_temperature", "stable_steps", "settled_entropy")
    if name in ("guidance", "output", "edit_threshold", *canvases):  # of models that draw, edit or have canvases
        monkeypatch.setattr(SamplingConfig, "for_model", lambda config, model: config)
    default = getattr(RolloutConfig(), name)
    number = {"top_p": 0.5, "threshold": 0.25, "block_size": 2, "steps_per_block": 1}
    number = (number | {"edit_threshold": 0.5, "remask_threshold": 0.5, "final_temperature": 0.5}).get(name, 3)
    value = OTHER.get(name, not default if isinstance(default, bool) else number)
    keys = {"further_horizon": {"cache": "prefix"}, "guidance": {"output": "image"}}.get(name, {})
    (config,) = entries(dream, **keys | {name: value}).values()
    assert getattr(config, name) == value != default


def test_a_users_parameters_go_to_the_users_own_among_several(dream, tmp_path):
    (tmp_path / "own.py").write_text("def own(proposal, masked_nb, k_n, choices, *, part=1):\n    return masked_nb\n")
    named = {"strategy": ["sequential", f"{tmp_path}/own.py:own"], "strategy_params": {"part": 2}}
    assert list(entries(dream, **named)) == ["sequential-b32-T1", "own-b32-T1"]
