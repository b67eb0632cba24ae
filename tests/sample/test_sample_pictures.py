"""Prompts with pictures in the sampler: LLaDA-V's golden decodes, batches, keys, and how often a picture is encoded."""

import dataclasses
import json

import pytest
import torch
from helpers import GOLDEN, golden_lladav
from safetensors.torch import load_file

from models import Picture, Prompt, load_model
from models.tiny import random_prompts, tiny_model
from models.vision.tiles import plan
from sample import Sampler, SamplingConfig

FOLDER = GOLDEN / "lladav_vision"
CASES = json.loads((FOLDER / "decode.json").read_text())["cases"]


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def first_set(tmp_path_factory):
    return load_model(golden_lladav(tmp_path_factory.mktemp("first") / "lladav"))


def settings(case, stop_ids):
    return SamplingConfig(
        max_new_tokens=case["gen_length"], block_size=case["block_size"], steps_per_block=case["steps_per_block"],
        strategy=case["strategy"], threshold=case["threshold"] or 0.9, stop_ids=stop_ids,
    )  # fmt: skip


def spelled_out(ids, pictures):
    shown = iter(pictures)
    whole = [i for one in ids for i in (next(shown).ids if one == -200 else [one])]
    return Prompt(whole, pictures=pictures)


def prompt_of(case, model):
    files = [FOLDER / "images" / f"{name}.png" for name in case["images"]]
    return spelled_out(case["ids"], model.encode_images(files, fit="pad" if len(files) > 1 else "auto"))


def ranks(steps):
    order = sorted({step for step in steps if step})
    return [order.index(step) if step else None for step in steps]


def check(rollout, case, eot):
    ids, steps = case["token_ids"], case["step_map"]
    length = ids.index(eot) + 1 if eot in ids else len(ids)
    assert rollout.token_ids == ids[:length]
    # The original ends after the block with eot: what it decides there is left of eot, so the ranks are the same.
    assert ranks(rollout.step_map) == ranks(steps[:length])


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['prompt']}" for i, case in enumerate(CASES)])
@pytest.mark.long
def test_golden_decodes_one_by_one(model, case):
    eot = case["eot_token_id"]
    (rollout,) = Sampler(model, settings(case, [eot])).generate([prompt_of(case, model)])
    check(rollout, case, eot)


@pytest.mark.slow
def test_golden_decodes_in_batches(model):
    """Cases of one setting together, text and pictures side by side."""
    groups = {}
    for case in CASES:
        key = (case["gen_length"], case["block_size"], case["steps"], case["strategy"], case["threshold"])
        groups.setdefault(key, []).append(case)
    for cases in groups.values():
        config = dataclasses.replace(settings(cases[0], [cases[0]["eot_token_id"]]), max_slots=3)
        rollouts = Sampler(model, config).generate([prompt_of(case, model) for case in cases])
        for rollout, case in zip(rollouts, cases, strict=True):
            check(rollout, case, case["eot_token_id"])


@pytest.mark.slow
def test_golden_decodes_of_the_first_set(first_set):
    golden = load_file(GOLDEN / "lladav" / "logits.safetensors")
    data = json.loads((GOLDEN / "lladav" / "decode.json").read_text())
    for case in data["cases"]:
        pictures = []
        if case["image"]:
            name = f"mm_{case['image']}"
            count, size = int(golden[f"{name}.num_pixel_values"]), tuple(golden[f"{name}.image_size_wh"].tolist())
            layout = plan(size, "anyres", first_set.vision.grid)
            with torch.no_grad():
                rows = first_set.vision.lay_out(golden["projected_features"][:count], layout)
            pictures = [Picture([-200] * len(rows), rows)]
        prompt = spelled_out(case["prompt_ids"], pictures)
        (rollout,) = Sampler(first_set, settings(case, [data["eot_token_id"]])).generate([prompt])
        check(rollout, case, data["eot_token_id"])


def pictures(rows, model, counts):
    """A picture of features that counts how often they are made."""

    def features():
        counts.append(rows)
        return torch.randn(rows, model.hf_config.hidden_size, generator=torch.Generator().manual_seed(rows))

    return Picture([-200] * rows, features, digest=f"{rows:016x}")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("lladav")


TINY = SamplingConfig(max_new_tokens=8, block_size=4, steps_per_block=2, temperature=1.0, stop_ids=[], max_slots=3)


def mixed(tiny, counts):
    texts = random_prompts([5, 3, 6], seed=2)
    shown = [pictures(rows, tiny, counts) for rows in (7, 4)]
    return [
        texts[0],
        Prompt([9, *shown[0].ids, *texts[1]], pictures=shown[:1]),
        Prompt([*shown[1].ids, 8, *shown[0].ids, 7], pictures=[shown[1], shown[0]]),
        Prompt([*texts[2], *shown[1].ids], pictures=shown[1:]),
    ]


@pytest.mark.parametrize(
    "cache", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prefix", "dual"))]
)
def test_a_batch_with_pictures_answers_as_each_prompt_alone(tiny, cache):
    counts = []
    config = dataclasses.replace(TINY, cache=cache)
    sampler = Sampler(tiny, config)
    prompts = mixed(tiny, counts)
    rollouts = sampler.generate(prompts, n=3)
    assert sorted(counts) == [4, 7]  # made once, however many prompts and samples share a picture
    for i, prompt in enumerate(prompts):
        alone = Sampler(tiny, config).generate([prompt], n=3)
        assert [r.token_ids for r in alone] == [r.token_ids for r in rollouts[3 * i : 3 * i + 3]]
        assert [r.step_map for r in alone] == [r.step_map for r in rollouts[3 * i : 3 * i + 3]]
        for one, many in zip(alone, rollouts[3 * i : 3 * i + 3], strict=True):
            assert one.logprobs == pytest.approx(many.logprobs, abs=1e-5)
        assert one.prompt_ids == Prompt.of(prompt).ids
        assert one.images == Prompt.of(prompt).digests
    assert sampler.generate([prompts[0]], n=3)[0].token_ids == rollouts[0].token_ids  # slots that held pictures before
    assert '"images"' in rollouts[3].to_json() and '"images"' not in rollouts[0].to_json()


def test_features_are_freed_where_no_one_wants_them_again(tiny):
    counts = []
    sampler, prompts = Sampler(tiny, dataclasses.replace(TINY, max_slots=2)), mixed(tiny, counts)[1:]
    want = [rollout.token_ids for rollout in sampler.generate(prompts, n=2)]
    assert sorted(counts) == [4, 7] and prompts[0].pictures[0]._features is not None
    sampler.forgets_pictures = True
    assert [rollout.token_ids for rollout in sampler.generate(prompts, n=2)] == want
    assert all(picture._features is None for prompt in prompts for picture in prompt.pictures)
    assert sampler._held.cache.features is None


def test_prompts_of_equal_ids_and_other_pictures_are_other_samples(tiny):
    rows = torch.randn(4, tiny.hf_config.hidden_size, generator=torch.Generator().manual_seed(0))
    prompts = [
        Prompt([5, -200, -200, 6], rows[:2]),
        Prompt([5, -200, -200, 6], rows[2:]),
        Prompt([5, -200, -200, 6], rows[:2]),
    ]
    keys = [rollout.key for rollout in Sampler(tiny, TINY).generate(prompts)]
    assert keys[0] == keys[2] != keys[1]


def test_what_is_wrong_with_a_prompt_of_pictures_is_named(tiny):
    sampler = Sampler(tiny, TINY)
    with pytest.raises(ValueError, match="2 positions hold an image id and there are 0 rows"):
        sampler.generate([[5, -200, -200]])
    with pytest.raises(ValueError, match="contains the id -3;"):
        sampler.generate([Prompt([5, -3], torch.ones(1, 32))])
    with pytest.raises(ValueError, match="has 601 tokens, 600 of them of pictures; .* the 512 positions"):
        sampler.generate([Prompt([5, *[-200] * 600], torch.ones(600, 32))])
    with pytest.raises(ValueError, match="contains the id -200;"):
        Sampler(tiny_model("llada"), TINY).generate([Prompt([5, -200], torch.ones(1, 32))])


@pytest.mark.slow
def test_a_stop_id_in_a_block_narrows_it(tiny):
    """Positions right of the first stop id are no longer decided, and stay masked in the canvas."""
    config = SamplingConfig(max_new_tokens=8, block_size=8, steps_per_block=8, stop_ids=[])
    masked = 0
    for prompt in random_prompts([4] * 6, seed=5):
        (free,) = Sampler(tiny, config).generate([prompt])
        first = free.canvas_ids[free.canvas_step_map.index(1)]
        (stopped,) = Sampler(tiny, dataclasses.replace(config, stop_ids=[first])).generate([prompt])
        end = stopped.num_response_tokens
        assert all(step < stopped.step_map[-1] for step in stopped.canvas_step_map[end:])
        masked += stopped.canvas_ids[end:].count(tiny.mask_id)
    assert masked > 8
