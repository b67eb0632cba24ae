"""generate.py: the call that SDAR's users know."""

import json

import pytest
import torch
from helpers import GOLDEN, random_prompts, tiny_model

from generate import block_diffusion_generate
from models import load_model
from sample import Sampler, SamplingConfig


def tokens_of(prompts):
    """What a tokenizer returns with padding=True: left-padded ids and their mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static", "sequential"])
def test_reference_decodes(strategy):
    model = load_model(GOLDEN / "sdar")
    cases = json.loads((GOLDEN / "sdar" / "decode.json").read_text())["cases"]
    cases = [case for case in cases if case["strategy"] == strategy and not case["stop_ids"]][:6]
    assert cases
    for case in cases:
        b, P = case["block_size"], len(case["prompt_ids"])
        output = block_diffusion_generate(
            model,
            prompt={"input_ids": torch.tensor([case["prompt_ids"]])},
            mask_id=255,
            gen_length=case["gen_length"],
            block_length=b,
            denoising_steps=case["steps"],
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            remasking_strategy=strategy,
            confidence_threshold=case["threshold"] or 0.9,
        )
        assert output.shape == (1, -(-(P + case["gen_length"]) // b) * b)
        assert (
            output[0, : P + case["gen_length"]].tolist() == case["prompt_ids"] + case["token_ids"][: case["gen_length"]]
        )


def test_answers_end_at_a_stop_and_the_rest_is_masks(sdar):
    (prompt,) = random_prompts([6])
    settings = {"gen_length": 14, "block_length": 4, "denoising_steps": 4, "seed": 3}
    whole = block_diffusion_generate(sdar, {"input_ids": torch.tensor([prompt])}, sdar.mask_id, **settings)[0].tolist()
    stop = whole[9]
    first = whole.index(stop, 6)
    settings |= {"stopping_criteria_idx": [stop]}
    cut = block_diffusion_generate(sdar, {"input_ids": torch.tensor([prompt])}, sdar.mask_id, **settings)[0].tolist()
    assert len(cut) == len(whole) == 20 and cut[: first + 1] == whole[: first + 1]
    assert set(cut[first // 4 * 4 + 4 :]) == {sdar.mask_id}


def test_a_padded_batch_is_each_prompt_alone(sdar):
    prompts = random_prompts([3, 9, 6], seed=4)
    settings = {"mask_id": sdar.mask_id, "gen_length": 8, "block_length": 4, "denoising_steps": 2, "temperature": 0.0}
    settings |= {"remasking_strategy": "low_confidence_static"}
    batch = block_diffusion_generate(sdar, tokens_of(prompts), **settings)
    assert batch.shape == (3, 20)
    config = SamplingConfig(
        max_new_tokens=8, block_size=4, steps_per_block=2, strategy="low_confidence_static", stop_ids=[]
    )
    for row, prompt in zip(batch.tolist(), prompts, strict=True):
        (rollout,) = Sampler(sdar, config).generate([prompt])
        ids = prompt + rollout.canvas_ids
        assert row == ids + [sdar.mask_id] * (20 - len(ids))


@pytest.mark.slow
def test_torchs_seed_repeats_a_call_and_calls_differ(sdar):
    prompt, settings = tokens_of(random_prompts([5])), {"gen_length": 16, "block_length": 4, "denoising_steps": 4}
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs += [block_diffusion_generate(sdar, prompt, sdar.mask_id, **settings).tolist() for _ in range(2)]
    assert outputs[:2] == outputs[2:4]
    assert len({str(output) for output in outputs}) == 4


def test_full_attention():
    model = tiny_model("dream")
    output = block_diffusion_generate(
        model, tokens_of(random_prompts([5])), model.mask_id, gen_length=10, block_length=4, denoising_steps=4
    )
    assert output.shape == (1, 15) and model.mask_id not in output[0].tolist()


def test_a_wrong_mask_id_is_refused(sdar):
    with pytest.raises(ValueError, match="mask_id=151669 is not the model's: pass model.mask_id, which is 1"):
        block_diffusion_generate(sdar, tokens_of([[3, 4]]), mask_id=151669)


def test_edits_are_those_of_the_sampler(sdar):
    (prompt,) = random_prompts([6])
    edits = {"edit_threshold": 0.2, "max_post_steps": 3}
    settings = {"gen_length": 10, "block_length": 4, "denoising_steps": 4, "temperature": 0.0, "seed": 3} | edits
    output = block_diffusion_generate(sdar, {"input_ids": torch.tensor([prompt])}, sdar.mask_id, **settings)
    shared = {"max_new_tokens": 10, "block_size": 4, "steps_per_block": 4, "threshold": 0.85, "stop_ids": (), "seed": 3}
    (rollout,) = Sampler(sdar, SamplingConfig(**shared | edits)).generate([prompt], keys=[(0,)])
    assert output[0, 6:].tolist() == rollout.canvas_ids and rollout.events.overwrites().any()
