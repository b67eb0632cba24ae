"""`block_diffusion_generate` as SDAR's and TraDo's users call it, over this project's sampler.

from generate import block_diffusion_generate
from models import load_model
model = load_model("Gen-Verse/TraDo-8B-Instruct", dtype="bfloat16", device="cuda")
tokens = model.tokenizer([text], return_tensors="pt")
output_ids = block_diffusion_generate(model, prompt=tokens, mask_id=model.mask_id, gen_length=200, block_length=4)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models import DiffusionLM
from sample import Rollout, SamplingConfig, sampler_of
from sample.config import decoding_of


def block_diffusion_generate(
    model: DiffusionLM,
    prompt: Mapping[str, Tensor],
    mask_id: int,
    gen_length: int = 128,
    block_length: int | None = None,
    denoising_steps: int | None = None,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    remasking_strategy: str | None = None,
    confidence_threshold: float | None = None,
    stopping_criteria_idx: Sequence[int] | None = None,
    seed: int | None = None,
    edit_threshold: float | None = None,
    max_post_steps: int = 16,
    entropy_bound: float | None = None,
    final_temperature: float | None = None,
) -> Tensor:
    """Prompts and their answers as one tensor of token ids [B, width] on the model's device.

    model: of `models.load_model`.
    prompt: a tokenizer's output, input_ids [B, P]; where it has an attention_mask [B, P], padding is taken out.
    gen_length: new tokens at most. block_length, denoising_steps: tokens and steps of a block, None = 8 of each.
    temperature: None = 1. remasking_strategy: None = low_confidence_dynamic. confidence_threshold: None = 0.85.
    stopping_criteria_idx: ids that end an answer, None = no id does.
    seed: None = drawn from torch's own generator, so that calls differ and torch.manual_seed repeats them.
    edit_threshold, max_post_steps: draft and edit of LLaDA2.1 and 2.2, None = no edits (`SamplingConfig`).
    entropy_bound: of remasking_strategy entropy_bounded, None = 0.35. final_temperature: of canvases.
    Of canvases (DiffusionGemma) None is the checkpoint's canvas, steps and decoding (generation_config.json).
    A row is the prompt, the answer and mask ids up to the end of the last block (whole blocks from position 0; full
    attention: up to gen_length; canvases: whole ones); shorter rows are filled with mask ids (canvases: pads).
    Confidence is that of temperature 1.
    https://github.com/JetAstra/SDAR (generate.py), whose arguments and defaults these are up to seed. ValueError:
    mask_id is not the model's, a block_length or remasking_strategy that is none of canvases, or what `SamplingConfig`
    and `Sampler.generate` refuse.
    """
    if mask_id != model.mask_id:
        raise ValueError(f"mask_id={mask_id} is not the model's: pass model.mask_id, which is {model.mask_id}.")
    size, steps, threshold = _usual(model, block_length, remasking_strategy)
    decoding = {"strategy": remasking_strategy, "entropy_bound": entropy_bound, "temperature": temperature}
    config = SamplingConfig(
        max_new_tokens=gen_length,
        block_size=size,
        steps_per_block=steps if denoising_steps is None else denoising_steps,
        threshold=threshold if confidence_threshold is None else confidence_threshold,
        top_k=top_k,
        top_p=top_p,
        stop_ids=stopping_criteria_idx or (),
        edit_threshold=edit_threshold,
        max_post_steps=max_post_steps,
        seed=int(torch.randint(2**31, ())) if seed is None else seed,
        **decoding_of(decoding | {"final_temperature": final_temperature}, model.spec),
    )
    prompts = _prompts(prompt)
    keys = [(row,) for row in range(len(prompts))]
    rollouts = sampler_of(model, config).generate(prompts, keys=keys)
    return _rows(model, rollouts, gen_length, size).to(model.device)


def _prompts(prompt: Mapping[str, Tensor]) -> list[list[int]]:
    """The ids of each row without padding."""
    input_ids = prompt["input_ids"].cpu()
    is_real = prompt["attention_mask"].cpu().bool() if "attention_mask" in prompt else torch.ones_like(input_ids).bool()
    return [ids[real].tolist() for ids, real in zip(input_ids, is_real, strict=True)]


def _usual(
    model: DiffusionLM, block_length: int | None, remasking_strategy: str | None
) -> tuple[int, int | None, float]:
    """Tokens of a block (block_length if there is one), and its steps and threshold where none are given. ValueError
    where the choices are none of the family's canvases."""
    if model.spec.family.noise == "mask":
        return 8 if block_length is None else block_length, 8, 0.85
    if block_length not in (None, model.block_size):
        raise ValueError(
            f"block_length={block_length}: a canvas of this checkpoint has {model.block_size} tokens: leave it out."
        )
    if remasking_strategy not in (None, "entropy_bounded"):
        raise ValueError(
            f"remasking_strategy={remasking_strategy!r}: {model.family} has canvases, which are denoised by entropy: "
            "leave it out, or set entropy_bounded."
        )
    return model.block_size, None, SamplingConfig.threshold


def _rows(model: DiffusionLM, rollouts: Sequence[Rollout], gen_length: int, block_length: int) -> Tensor:
    """Prompts and canvases [B, width], filled up."""
    longest, filler = max(len(rollout.prompt_ids) for rollout in rollouts), model.mask_id
    width = longest + gen_length
    if model.spec.family.noise == "uniform":
        width, filler = longest + -(-gen_length // block_length) * block_length, model.pad_id or 0
    elif model.attention == "block":
        width = -(-width // block_length) * block_length
    output = torch.full((len(rollouts), width), filler)
    for row, rollout in zip(output, rollouts, strict=True):
        ids = rollout.prompt_ids + rollout.canvas_ids
        row[: len(ids)] = torch.tensor(ids)
    return output
