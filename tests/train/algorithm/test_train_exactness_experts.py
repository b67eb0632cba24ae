"""Mixtures of experts: the trainer sees what the sampler saw."""

import functools

import numpy as np
import pytest
import torch
from helpers import GOLDEN, random_prompts, tiny_model
from safetensors.torch import load_file
from trainees import STOPS, make_policy, plain_log_probs

from models import load_model
from sample import Sampler, SamplingConfig
from train.algorithm.masking import NoisyCopy
from train.algorithm.replay import Replayer
from train.learner.updater import outputs


@functools.cache
def model_of(family):
    """llada2_2: with experts that are chosen for blocks of 4 together."""
    return tiny_model("llada2", expert_capacity=3) if family == "llada2_2" else tiny_model(family)


@pytest.mark.parametrize(
    "family", ["llada2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llada2_2", "sdar_moe"))]
)
@pytest.mark.parametrize("block_size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (8, 32))])
def test_trainer_log_probs_are_the_samplers_and_those_of_plain_sequences(family, block_size):
    """Prompts that end on and inside blocks, and one shorter than a block; stops inside blocks."""
    model = model_of(family)
    config = SamplingConfig(
        max_new_tokens=2 * block_size + 3,
        block_size=block_size,
        steps_per_block=-(-block_size // 2),
        threshold=0.4,
        temperature=1.0,
        stop_ids=STOPS,
    )
    prompts = random_prompts([block_size, 2 * block_size + 1, block_size - 1, 3], seed=block_size)
    rollouts = Sampler(model, config).generate(prompts, n=2)
    policy = make_policy(model, config)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    assert batch.skipped == 0 and len(batch.samples) == len(rollouts)
    logps = policy.updater.outputs(batch.samples, range(len(rollouts)))
    for place, (rollout, row, logp) in enumerate(zip(rollouts, batch.samples, logps, strict=True)):
        assert sorted(row.canvas_index.tolist()) == list(range(rollout.num_response_tokens))
        assert logp == pytest.approx(np.array(rollout.canvas_logprobs)[row.canvas_index], abs=1e-5)
        if place % 3 == 0:
            with torch.no_grad():
                found, _ = plain_log_probs(model, rollout, block_size)
            assert logp == pytest.approx([float(found[i]) for i in row.canvas_index.tolist()], abs=1e-5)


@pytest.mark.parametrize("block_size", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_packed_noisy_blocks_have_the_token_losses_of_dfactory(block_size):
    """Its layout is a noisy copy of the whole sequence before the clean one; ours has the noisy blocks behind it."""
    model, golden = load_model(GOLDEN / "llada2"), load_file(GOLDEN / "llada2" / "logits.safetensors")
    noisy_BL, clean_BL = (part.numpy() for part in golden["input_ids_dup"].chunk(2, dim=1))
    replayer = Replayer("block", False, model.mask_id, block_size)
    for noisy, clean, labels, want in zip(
        noisy_BL, clean_BL, golden["labels_dup"].numpy(), golden[f"token_loss_dup{block_size}"].numpy(), strict=True
    ):
        P = int(np.flatnonzero(labels != -100)[0])
        masked, block = labels[P:] != -100, np.arange(P, len(clean)) // block_size
        copies = []
        for unit in np.unique(block[masked]):
            inside = block == unit
            held = np.where(inside, noisy[P:], clean[P:])
            copies.append(NoisyCopy(int(unit), 0, held, clean[P:], masked & inside))
        (sample,) = replayer.samples((0,), clean[:P].tolist(), clean[P:].tolist(), copies)
        (logp,) = outputs(model, [sample], [0], 4096, torch.device("cpu"))
        assert sorted(sample.canvas_index.tolist()) == np.flatnonzero(masked).tolist()
        assert -logp == pytest.approx(want[P + sample.canvas_index], abs=5e-5)
