"""Text to image, and answers to questions about pictures, against decodes of the original code."""

import dataclasses
import json
import math
from collections import Counter, defaultdict

import pytest
import torch
from helpers import GOLDEN, thinned
from safetensors.torch import load_file
from test_sample_golden import ranks

from configs.schema import TrainingConfig
from models import load_model
from sample import Sampler, SamplingConfig
from sample.unmask import cosine_schedule
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, replay

MMADA = GOLDEN / "mmada_mmu"
T2I = json.loads((MMADA / "t2i.json").read_text())
DRAWINGS = T2I["cases"]
DECODES = json.loads((MMADA / "decode.json").read_text())


@pytest.fixture(scope="module")
def model():
    return load_model(MMADA, image_tokenizer=str(GOLDEN / "magvit"))


def drawing_config(steps=4, guidance=0.0, **more):
    default = {"output": "image", "strategy": "low_confidence_static", "max_new_tokens": T2I["num_image_tokens"]}
    return SamplingConfig(**default | {"steps_per_block": steps, "guidance": guidance} | more)


def codes_of(rollout):
    return [token_id - T2I["image_offset"] for token_id in rollout.token_ids]


@pytest.mark.parametrize("place", range(len(DRAWINGS)))
def test_pictures_are_drawn_as_by_the_original(model, place):
    case = DRAWINGS[place]
    prompt = model.drawing_prompt(case["text"])
    shown = [i for i, seen in zip(case["ids"], case["attention_mask"], strict=True) if seen]
    assert [*prompt.ids, *[model.mask_id] * T2I["num_image_tokens"], *model.drawing.suffix_ids] == shown
    logits = model.logits(torch.tensor([shown]))[0, -1 - T2I["num_image_tokens"] : -1]
    codes = logits[:, model.drawing.codes.start : model.drawing.codes.stop]
    wanted = load_file(MMADA / "t2i.safetensors")[f"logits.{place}"]
    torch.testing.assert_close(codes, wanted, atol=1e-4, rtol=0)
    config = drawing_config(case["timesteps"], case["guidance_scale"])
    (rollout,) = Sampler(model, config).generate([prompt.ids])
    assert codes_of(rollout) == case["codes"] and rollout.step_map == case["step_map"]
    assert (rollout.num_steps, rollout.finish_reason) == (case["timesteps"], "stop")


@pytest.mark.parametrize(
    ("guidance", "temperature"), [(1.5, 1.0), *(pytest.param(g, 0.0, marks=pytest.mark.slow) for g in (0.0, 1.5))]
)
def test_pictures_of_a_batch_are_those_drawn_alone(model, guidance, temperature):
    config = drawing_config(5, guidance, temperature=temperature, alg_temp=temperature, max_slots=3)
    prompts = [model.drawing_prompt(text).ids for text in ("", "cat", "a red dot", "two squares")]
    together = Sampler(model, config).generate(prompts, n=2)
    alone = [rollout for prompt in prompts for rollout in Sampler(model, config).generate([prompt], n=2)]
    assert [(r.token_ids, r.step_map) for r in together] == [(r.token_ids, r.step_map) for r in alone]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_trainer_computes_the_log_probabilities_of_a_drawn_picture(model, guidance):
    config = drawing_config(5, guidance, temperature=1.0, alg_temp=0.5)
    (rollout,) = Sampler(model, config).generate([model.drawing_prompt("a red dot").ids])
    assert rollout.suffix_ids == [T2I["cases"][0]["ids"][-1]]
    assert all(0 <= code < T2I["codebook_size"] for code in codes_of(rollout))
    rows = replay(rollout, Replayer(model.attention, model.logit_shift, model.mask_id, 16), TrainingConfig())
    assert sum(row.num_trained for row in rows) == 16
    batch = pack(rows, range(len(rows)), torch.device("cpu"))
    with torch.no_grad():
        logp = model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
    sampled = torch.cat([torch.tensor(rollout.logprobs)[torch.from_numpy(row.canvas_index)] for row in rows])
    torch.testing.assert_close(logp, sampled, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_codes_are_drawn_with_the_models_probabilities_among_codes(model):
    """The first step of a picture of one step: frequencies of the first code, with and without guidance."""
    prompt = model.drawing_prompt("cat").ids
    suffix, masks = list(model.drawing.suffix_ids), [model.mask_id] * 4
    codes = slice(model.drawing.codes.start, model.drawing.codes.stop)

    def logits(ids):
        return model.logits(torch.tensor([ids + masks + suffix]))[0, len(ids), codes].double()

    for guidance in (0.0, 2.0):
        config = drawing_config(1, guidance, max_new_tokens=4, temperature=1.0, max_slots=500)
        drawn = Counter(codes_of(r)[0] for r in Sampler(model, config).generate([prompt], n=4000))
        blank = logits(model.drawing_prompt("").ids)
        wanted = ((1.0 + guidance) * logits(prompt) - guidance * blank).softmax(-1)
        for code, share in enumerate(wanted.tolist()):
            assert abs(drawn[code] / 4000 - share) < 5 * math.sqrt(share / 4000) + 1e-3


@pytest.mark.parametrize("place", range(len(DRAWINGS)))
def test_the_cosine_leaves_as_many_masks_as_the_original(place):
    case = DRAWINGS[place]
    left, masks = T2I["num_image_tokens"], []
    for k in cosine_schedule(left, case["timesteps"]):
        left -= k
        masks.append(left)
    assert masks[:-1] == case["masked_after_step"][:-1] and masks[-1] == 0


def test_the_cosine_ends_without_empty_steps():
    assert cosine_schedule(4, 9) == [1, 1, 1, 1] and cosine_schedule(1, 5) == [1] and cosine_schedule(7, 1) == [7]
    assert sum(cosine_schedule(1024, 18)) == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 8}, "block_size=8 divides a picture of 16 codes"),
        ({"output": "picture"}, "output"),
        ({"output": "text", "guidance": 1.0}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"alg_temp": 1.0, "target": "neg_entropy"}, "alg_temp"),
    ],
)
def test_choices_that_no_picture_has_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, drawing_config(**changes))


def test_a_model_that_draws_nothing_is_named():
    with pytest.raises(ValueError, match="draws no pictures"):
        Sampler(load_model(GOLDEN / "llada"), drawing_config())


def test_approximate_caches_see_what_ends_the_picture(model):
    """One step has nothing frozen yet: as without a cache."""
    prompt = model.drawing_prompt("cat").ids
    exact, prefix, dual = (
        Sampler(model, drawing_config(1, cache=cache)).generate([prompt])[0] for cache in ("none", "prefix", "dual")
    )
    assert exact.token_ids == prefix.token_ids == dual.token_ids
    several = Sampler(model, drawing_config(6, cache="dual")).generate([prompt])[0]
    assert all(code >= 0 for code in codes_of(several))


def config_of(case):
    cached = case.get("use_cache")
    return SamplingConfig(
        max_new_tokens=case["gen_length"],
        block_size=case["block_size"],
        steps_per_block=case["steps_per_block"],
        strategy=case["strategy"],
        threshold=case["threshold"] if case["threshold"] is not None else 0.9,
        cache="prefix" if cached else "none",
        further_horizon=case["further_horizon"] if cached else None,
        stop_ids=(case["eot_token_id"],) if case["decoder"] == "mmu_generate_fast" else (),
    )


def agrees(rollout, case):
    n = rollout.num_response_tokens
    assert rollout.token_ids == case["token_ids"][:n] and ranks(rollout.step_map) == ranks(case["step_map"][:n])
    if case["decoder"] != "mmu_generate_fast":
        assert n == case["gen_length"]
    elif n < case["gen_length"]:
        assert rollout.token_ids[-1] == case["eot_token_id"]


@pytest.mark.parametrize("place", thinned(range(len(DECODES["cases"])), 8))
def test_answers_about_pictures_are_those_of_the_original(model, place):
    case = DECODES["cases"][place]
    (rollout,) = Sampler(model, config_of(case)).generate([case["ids"]])
    agrees(rollout, case)


@pytest.mark.long
@pytest.mark.slow
def test_answers_about_pictures_in_batches_are_those_of_the_original(model):
    batches = defaultdict(list)
    for case in DECODES["cases"]:
        config = config_of(case)
        steps = tuple(config.steps_per_block)
        batches[dataclasses.replace(config, max_slots=3, steps_per_block=steps)].append(case)
    assert max(map(len, batches.values())) > 1
    for config, cases in batches.items():
        for rollout, case in zip(Sampler(model, config).generate([case["ids"] for case in cases]), cases, strict=True):
            agrees(rollout, case)
