import dataclasses
import json
from contextlib import contextmanager

import pytest
import torch
from helpers import random_prompts, tiny_model

from sample import Rollout, Sampler, SamplingConfig
from sample.request import hash_key

PROMPTS = random_prompts([9, 1, 4, 6, 3, 11, 8], seed=3)
FREE = {"stop_ids": [], "temperature": 1.0, "threshold": 0.5, "max_new_tokens": 12}


@contextmanager
def calls_of(model):
    """The shapes [B, L] of every forward of the body."""
    shapes = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    hook.remove()


def answers(rollouts):
    return [(r.canvas_ids, r.canvas_step_map, r.num_response_tokens, r.finish_reason) for r in rollouts]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_prompt_of_a_group_is_run_once(sdar, slots):
    prompts = random_prompts([22, 17, 30], seed=1)
    sampler = Sampler(sdar, SamplingConfig(**FREE, max_slots=slots))
    with calls_of(sdar) as shapes:
        rollouts = sampler.generate(prompts, n=6)
    prefills = [shape for shape in shapes if shape[1] > 4]
    assert sum(rows for rows, _ in prefills) == 3
    assert len({tuple(r.token_ids) for r in rollouts}) == 18


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS[2], PROMPTS[1]], ids=["tail", "whole_blocks", "short"])
def test_a_block_of_k_steps_costs_k_forwards(sdar, prompt):
    fused, apart = (Sampler(sdar, SamplingConfig(**FREE, fuse_commit=fuse)) for fuse in (True, False))
    with calls_of(sdar) as shapes:
        (rollout,) = fused.generate([prompt])
    prefills = int(len(prompt) >= 4)
    assert len(shapes) == prefills + rollout.num_steps
    blocks = len(rollout.canvas_ids) + len(prompt) % 4
    with calls_of(sdar) as shapes:
        apart.generate([prompt])
    assert len(shapes) == prefills + rollout.num_steps + blocks // 4 - 1


def test_logits_are_computed_for_undecided_positions_alone(sdar):
    seen = []
    hook = sdar.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    (rollout,) = Sampler(sdar, SamplingConfig(**FREE)).generate([PROMPTS[2]])
    hook.remove()
    steps = rollout.canvas_step_map
    want = []
    for start in range(0, len(steps), 4):
        block = steps[start : start + 4]
        want += [sum(s >= step for s in block) for step in sorted(set(block))]
    assert seen == want


@pytest.mark.slow
def test_a_stop_ends_the_answer_where_it_stands(sdar):
    """Every token of an answer as the stop id in turn: the same answer, cut after its first occurrence."""
    base = SamplingConfig(**FREE)
    right_of_stop = set()
    for rollout in Sampler(sdar, base).generate(PROMPTS[:3]):
        for stop in set(rollout.token_ids):
            config = dataclasses.replace(base, stop_ids=[stop, 63])
            (cut,) = Sampler(sdar, config).generate([rollout.prompt_ids])
            first = min(rollout.token_ids.index(s) for s in (stop, 63) if s in rollout.token_ids)
            assert cut.token_ids == rollout.token_ids[: first + 1]
            assert cut.step_map == rollout.step_map[: first + 1]
            assert cut.logprobs == pytest.approx(rollout.logprobs[: first + 1], abs=1e-5)
            assert cut.finish_reason == "stop"
            right_of_stop |= {step > 0 for step in cut.canvas_step_map[first + 1 :]}
    assert right_of_stop == {True, False}


def test_without_early_stop_every_block_is_decoded(sdar):
    stops = FREE | {"stop_ids": list(range(2, 64, 7)), "max_new_tokens": 17}
    cut = Sampler(sdar, SamplingConfig(**stops)).generate(PROMPTS)
    whole = Sampler(sdar, SamplingConfig(**stops, early_stop=False)).generate(PROMPTS)
    assert {r.finish_reason for r in cut} == {"stop", "length"}
    for a, b in zip(cut, whole, strict=True):
        assert (b.token_ids, b.step_map, b.finish_reason) == (a.token_ids, a.step_map, a.finish_reason)
        assert 0 not in b.canvas_step_map[:17] and len(b.canvas_ids) >= 17


def test_a_stop_in_the_prompt_does_not_count(sdar):
    prompt = [5, 6, 7, 8, 9, 2]
    (free,) = Sampler(sdar, SamplingConfig(**FREE)).generate([prompt])
    assert 2 not in free.token_ids
    (stopping,) = Sampler(sdar, SamplingConfig(**FREE | {"stop_ids": [2, 9]})).generate([prompt])
    assert answers([stopping]) == answers([free]) and stopping.finish_reason == "length"


def test_the_models_eos_stops_by_default_and_an_empty_list_never():
    eos = {5, 17, 23, 44}
    model = tiny_model("sdar", eos_token_id=sorted(eos))
    prompts = random_prompts([5] * 12, seed=8)
    by_default = Sampler(model, SamplingConfig(**FREE | {"stop_ids": None, "max_new_tokens": 20})).generate(prompts)
    never = Sampler(model, SamplingConfig(**FREE | {"max_new_tokens": 20})).generate(prompts)
    assert {r.finish_reason for r in by_default} == {"stop", "length"}
    for rollout in by_default:
        assert not eos & set(rollout.token_ids[:-1])
        assert (rollout.token_ids[-1] in eos) if rollout.finish_reason == "stop" else len(rollout.token_ids) == 20
    assert any(eos & set(r.token_ids) for r in never)
    assert all(r.finish_reason == "length" and len(r.token_ids) == 20 for r in never)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 4, 5, 7, 13])
def test_lengths_that_are_no_multiple_of_the_block(sdar, max_new_tokens):
    config = SamplingConfig(**FREE | {"max_new_tokens": max_new_tokens})
    for rollout in Sampler(sdar, config).generate(PROMPTS):
        assert len(rollout.token_ids) == max_new_tokens
        assert (len(rollout.prompt_ids) + len(rollout.canvas_ids)) % 4 == 0
        assert len(rollout.canvas_ids) < max_new_tokens + 4


@pytest.mark.parametrize(
    "strategy", ["low_confidence_static", "low_confidence_dynamic", "sequential", "entropy_bounded"]
)
@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_canvas_and_view(sdar, strategy, block_size):
    config = SamplingConfig(
        **FREE | {"max_new_tokens": 18, "stop_ids": list(range(2, 64, 11))}, strategy=strategy, block_size=block_size
    )
    for rollout in Sampler(sdar, config).generate(PROMPTS, n=2):
        canvas = list(zip(rollout.canvas_ids, rollout.canvas_step_map, rollout.canvas_logprobs, strict=True))
        for token, step, logp in canvas:
            assert (step == 0) == (token == sdar.mask_id)
            assert (logp == 0.0) if step == 0 else (logp < 0.0)
        assert 0 not in rollout.step_map and sdar.mask_id not in rollout.token_ids
        assert len(rollout.token_ids) == len(rollout.step_map) == len(rollout.logprobs) == rollout.num_response_tokens
        assert set(rollout.canvas_step_map) - {0} == set(range(1, rollout.num_steps + 1))
        first = block_size - len(rollout.prompt_ids) % block_size
        ends = [0, *range(first, len(canvas) + 1, block_size)]
        blocks = [rollout.canvas_step_map[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        for before, after in zip(blocks, blocks[1:], strict=False):
            assert 0 not in before and max(before) < min(s for s in after if s)


def test_a_list_of_steps_per_block_holds_block_by_block(sdar):
    config = SamplingConfig(**FREE, strategy="sequential", steps_per_block=[1, 4, 2])
    (rollout,) = Sampler(sdar, config).generate([PROMPTS[2]])
    assert rollout.step_map == [1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 7, 7] and rollout.num_steps == 7
    config = dataclasses.replace(config, steps_per_block=3, max_new_tokens=8)
    (rollout,) = Sampler(sdar, config).generate([PROMPTS[3]])
    assert rollout.step_map == [1, 1, 2, 2, 3, 4, 5, 5], (
        "two prompt tokens in the first block; the schedule is a full block's"
    )


def test_the_mask_id_is_never_emitted():
    model = tiny_model("sdar", seed=2)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor([1]), 60.0))
    for draws in ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5}):
        for rollout in Sampler(model, SamplingConfig(**FREE | draws)).generate(PROMPTS):
            assert model.mask_id not in rollout.canvas_ids[: rollout.num_response_tokens]
            assert max(rollout.logprobs) < -20


def test_top_k_of_one_is_greedy(sdar):
    one, zero = (Sampler(sdar, SamplingConfig(**FREE | draw)) for draw in ({"top_k": 1}, {"temperature": 0.0}))
    assert answers(one.generate(PROMPTS)) == answers(zero.generate(PROMPTS))


def test_the_key_decides_the_randomness(sdar):
    sampler = Sampler(sdar, SamplingConfig(**FREE))
    prompt = PROMPTS[0]
    a, b, again = sampler.generate([prompt] * 3, keys=[(1, "task", 0), (1, "task", 1), (1, "task", 0)])
    assert answers([a]) == answers([again]) and answers([a]) != answers([b])
    assert a.key == (1, "task", 0)
    (alone,) = sampler.generate([prompt], keys=[(1, "task", 0)])
    assert answers([alone]) == answers([a])
    twice = sampler.generate([prompt, PROMPTS[1], prompt], n=2)
    assert [r.key[1] for r in twice] == [0, 1, 0, 1, 0, 1]
    assert answers(twice[:2]) == answers(twice[4:]) and answers(twice[:1]) != answers(twice[1:2])
    (other,) = Sampler(sdar, SamplingConfig(**FREE, seed=1)).generate([prompt], keys=[(1, "task", 0)])
    assert answers([other]) != answers([a])


def test_keys_that_read_alike_are_different():
    keys = [(1, 2), ("1", 2), ("1,2",), (12,), ("12",), ((1,), 2), (1,), ("a", "b"), ("a,sb",), ("a,b",)]
    assert len({hash_key(key) for key in keys}) == len(keys)
    assert hash_key((3, "math/7", 1)) == hash_key((3, "math/7", 1))


def test_greedy_answers_do_not_depend_on_keys(sdar):
    sampler = Sampler(sdar, SamplingConfig(**FREE | {"temperature": 0.0}))
    first, second = sampler.generate([PROMPTS[0]], n=2)
    assert answers([first]) == answers([second])


@pytest.mark.slow
def test_slots_are_used_again_for_calls_of_any_size(sdar):
    config = SamplingConfig(**FREE, max_slots=4)
    sampler = Sampler(sdar, config)
    for prompts in (PROMPTS[:2], random_prompts([40, 2], seed=2), PROMPTS, PROMPTS[1:2], random_prompts([60] * 5)):
        assert answers(sampler.generate(prompts)) == answers(Sampler(sdar, config).generate(prompts))
    sampler.release()
    assert answers(sampler.generate(PROMPTS)) == answers(Sampler(sdar, config).generate(PROMPTS))


def test_new_weights_take_effect_in_place():
    model, other = tiny_model("sdar", seed=0), tiny_model("sdar", seed=1)
    sampler = Sampler(model, SamplingConfig(**FREE))
    before = sampler.generate(PROMPTS)
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    sampler.update_weights((name, p.detach()) for name, p in other.named_parameters())
    after = sampler.generate(PROMPTS)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses
    assert answers(after) == answers(Sampler(other, SamplingConfig(**FREE)).generate(PROMPTS)) != answers(before)
    assert {r.weights_version for r in before} == {0} and {r.weights_version for r in after} == {1}


def test_weights_that_share_storage_are_left_alone():
    model = tiny_model("sdar")
    sampler = Sampler(model, SamplingConfig(**FREE))
    versions = {name: p._version for name, p in model.named_parameters()}
    sampler.update_weights(model.named_parameters())
    assert {name: p._version for name, p in model.named_parameters()} == versions
    assert sampler.weights_version == 1


def test_weights_of_another_type_are_converted():
    model, other = tiny_model("sdar", dtype="bfloat16"), tiny_model("sdar", seed=1)
    sampler = Sampler(model, SamplingConfig(**FREE))
    sampler.update_weights(other.named_parameters())
    for name, p in other.named_parameters():
        assert torch.equal(model.get_parameter(name), p.detach().bfloat16())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"model.norm.weights": torch.zeros(32)}, "'model.norm.weights': no such parameter"),
        ({"model.norm.weight": torch.zeros(31)}, r"its shape is \(32,\), not \(31,\)"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    model = tiny_model("sdar")
    sampler = Sampler(model, SamplingConfig(**FREE))
    norm = model.get_parameter("model.norm.weight").clone()
    with pytest.raises(ValueError, match=message):
        sampler.update_weights(weights.items())
    assert torch.equal(model.get_parameter("model.norm.weight"), norm) and sampler.weights_version == 0


def test_bfloat16_answers_carry_the_log_probabilities_of_the_model():
    model = tiny_model("sdar", dtype="bfloat16")
    config = SamplingConfig(**FREE, strategy="low_confidence_static", steps_per_block=1)
    for rollout in Sampler(model, config).generate(PROMPTS[2:4]):
        P = len(rollout.prompt_ids)
        block = rollout.prompt_ids + [model.mask_id] * (4 - P % 4)
        logps = model.logits(torch.tensor([block]))[0].float().log_softmax(-1)
        for position in range(P, len(block)):
            token, logp = rollout.token_ids[position - P], rollout.logprobs[position - P]
            assert logp == pytest.approx(float(logps[position, token]), abs=0.15)


def test_training_mode_and_gradients_are_left_as_they_were(sdar):
    sdar.train()
    rollouts = Sampler(sdar, SamplingConfig(**FREE)).generate(PROMPTS[:2])
    assert sdar.training
    sdar.eval()
    assert answers(rollouts) == answers(Sampler(sdar, SamplingConfig(**FREE)).generate(PROMPTS[:2]))
    assert all(p.grad is None for p in sdar.parameters())


def test_progress_counts_every_answer_and_no_prompt_is_no_work(sdar):
    sampler = Sampler(sdar, SamplingConfig(**FREE, max_slots=3))
    finished = []
    assert len(sampler.generate(PROMPTS, n=2, progress=finished.append)) == 14
    assert sum(finished) == 14
    assert sampler.generate([]) == []


def test_a_rollout_survives_json(sdar):
    for rollout in Sampler(sdar, SamplingConfig(**FREE)).generate(PROMPTS[:2], keys=[(1, "a", 0), ("b",)]):
        row = json.loads(rollout.to_json(reward=1.0))
        assert row["reward"] == 1.0 and Rollout.from_dict(row) == rollout


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.generate([[3], []]), "prompt 1 is empty"),
        (lambda s: s.generate([[3, 1]]), "prompt 0 contains the mask id 1"),
        (lambda s: s.generate([[3, 64]]), r"prompt 0 .*64.*vocabulary.*64"),
        (lambda s: s.generate([[3, -1]]), r"prompt 0 .*-1"),
        (lambda s: s.generate([[3], [3] * 501]), "prompt 1 has 501 tokens; with max_new_tokens=12 they exceed the 512"),
        (lambda s: s.generate([[3]], n=0), "n=0"),
        (lambda s: s.generate([[3]], n=2, keys=[(0,)]), "keys has 1 entries; 1 prompts x n=2 need 2"),
    ],
)
def test_bad_calls(sdar, call, message):
    with pytest.raises(ValueError, match=message):
        call(Sampler(sdar, SamplingConfig(**FREE)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"steps_per_block": 0}, "steps_per_block is 0"),
        ({"steps_per_block": [4, 0]}, "steps_per_block"),
        ({"steps_per_block": []}, "steps_per_block"),
        ({"strategy": "low_confidence_dinamic"}, "Did you mean 'low_confidence_dynamic'"),
        ({"target": "entropie"}, "target is 'entropie'; choose from confidence.*Did you mean 'entropy'"),
        ({"alg_temp": -1.0}, "alg_temp is -1.0"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be between 0 and 1"),
        ({"entropy_bound": -1.0}, "entropy_bound"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"confidence": "raw"}, "confidence 'raw'"),
        ({"cache": "paged"}, "cache 'paged'"),
        ({"cache": "prefix"}, "cache 'prefix' approximates full attention; sdar"),
        ({"further_horizon": 8}, "further_horizon=8"),
        ({"further_horizon": -1, "cache": "prefix"}, "further_horizon is -1"),
        ({"pad_target_penalty": 0.0}, "pad_target_penalty is 0.0"),
        ({"max_slots": 0}, "max_slots is 0"),
        ({"stop_ids": [64]}, "stop_ids"),
        ({"block_size": 6, "steps_per_block": 7}, None),
    ],
)
def test_bad_settings(sdar, settings, message):
    if message is None:
        Sampler(sdar, SamplingConfig(**settings))
        return
    with pytest.raises(ValueError, match=message):
        Sampler(sdar, SamplingConfig(**settings))
