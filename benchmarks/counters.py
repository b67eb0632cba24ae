"""Counts that stand for what a GPU would show, taken on a CPU: each beside what it was at commit 6db0e99 and what is
wanted.

    python benchmarks/counters.py [--only bf16,...] [--threads 1]

bf16: a random model of 64M parameters in bf16 answers 8 prompts of 64 tokens with 48 tokens at temperature 1; the
sampler's log-probability of every trained token is set against the trainer's under the same weights. bf16_mean_abs is
the mean of |difference|, bf16_off_share the share of tokens whose probability is off by more than 20%, which PPO's clip
would take for a policy that has moved. bf16_head_dw: relative error, against fp64, of the gradient of a bf16 head's
weight over 75 chunks of logits.
steps: a tiny SDAR answers 64 prompts in 64 slots, blocks of 4, two denoising steps a block, under the shapes and the
attention of a GPU (FlexAttention, compiled for the CPU, which needs g++ and Python's headers).
body_rows_over_nb: rows that the body computes a step / (slots x block). keys_read_over_needed: keys that attention
reads a step / sum over live slots of the length rounded up to 128. captured_keys: shapes of which a step is captured.
layers: a tiny SDAR of 12 layers runs spans of 4 tokens in 2, 3, 5 and 4 slots with its layers compiled for the CPU.
layer_graphs: graphs that torch's compiler made of them. kernels_a_layer: kernels that it wrote for one size, which all
layers share, products of matrices and attention aside.
Ends with one line of JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch._inductor.config
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from benchmarks.sampler import random_model
from configs.schema import TrainingConfig
from models import DiffusionLM
from models.attention import Masked
from models.checkpoint import random_network
from models.flex import BLOCK_TOKENS, Blocks, blocks_before
from models.fused import compile_layers
from models.log_probs import linear_log_probs
from models.tiny import random_prompts, tiny_model
from sample import Sampler, SamplingConfig
from sample.denoiser import Denoiser
from sample.slots import CAPACITY_MULTIPLE, StepState
from sample.spans import Bounds, CachePolicy
from train.algorithm.replay import Replayer, replay
from train.learner.updater import outputs


@dataclass(frozen=True)
class Count:
    """One row of the table. before: at commit 6db0e99, as text."""

    name: str
    value: float
    before: str
    wanted: str

    def show(self) -> None:
        print(f"{self.name:24}{self.before:>12}{self.value:12.4g}{self.wanted:>12}")


def bf16_mismatch() -> list[Count]:
    """Sampler against trainer, both as a run under training.mixed_precision=bf16 has them."""
    model = random_model(torch.bfloat16, sharpness=16.0)
    gap = sampler_less_trainer(model, random_prompts([64] * 8, vocab_size=model.text_vocab_size, seed=1))
    return [
        Count("bf16_mean_abs", float(np.abs(gap).mean()), "4.4e-2", "<= 4e-3"),
        Count("bf16_off_share", off_share(gap), "1.6e-2", "0"),
    ]


def sampler_less_trainer(model: DiffusionLM, prompts: list[list[int]]) -> NDArray[np.float32]:
    """The sampler's log-probabilities [N] of the tokens of an answer to each prompt, less the trainer's."""
    sampling = SamplingConfig(max_new_tokens=48, temperature=1.0, stop_ids=(), max_slots=8).for_model(model)
    assert sampling.block_size is not None
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, sampling.block_size)
    rollouts = Sampler(model, sampling).generate(prompts)
    pairs = [(rollout, row) for rollout in rollouts for row in replay(rollout, replayer, TrainingConfig())]
    rows = [row for _, row in pairs]
    trained = np.concatenate(outputs(model, rows, range(len(rows)), 4096, model.device))
    canvas = [np.asarray(rollout.canvas_logprobs, np.float32)[row.canvas_index] for rollout, row in pairs]
    return np.concatenate(canvas) - trained


def off_share(gap_N: NDArray[np.float32]) -> float:
    """Share of tokens whose probability is off by more than 20%."""
    return float((np.abs(np.expm1(-gap_N)) > 0.2).mean())


def bf16_head_gradient() -> list[Count]:
    """The head's weight gradient as `train.distributed.masters` sums it, against fp64 from unrounded numbers."""
    rows, chunks, size, vocabulary = 8, 75, 64, 5000
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, size, generator=generator) / size**0.5
    hidden = torch.randn(rows * chunks, size, generator=generator)
    targets = torch.randint(vocabulary, (len(hidden),), generator=generator)
    slope = torch.randn(len(hidden), generator=generator) + 1
    exact = weight.double().requires_grad_()
    logp = (hidden.double() @ exact.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((logp * slope.double()).sum(), exact)
    working = torch.nn.Parameter(weight.bfloat16())
    working.grad_dtype = torch.float32
    (linear_log_probs(hidden.bfloat16(), working, None, targets, rows) * slope).sum().backward()
    assert working.grad is not None
    error = float((working.grad - wanted).norm() / wanted.norm())
    return [Count("bf16_head_dw", error, "4.7e-3", "<= 3.2e-3")]


def step_work() -> list[Count]:
    """Of the steps in which all slots are at work, from the second look at them on."""
    slots, block = 64, 4
    config = SamplingConfig(
        strategy="low_confidence_static", steps_per_block=2, block_size=block, max_new_tokens=240, stop_ids=()
    )
    sampler = Sampler(tiny_model("sdar"), replace(config, max_slots=slots, attention="flex"))
    sampler.capture, sampler.steps_between_polls = _uncaptured, 8
    rows: list[float] = []
    keys: list[float] = []
    read: list[float] = []
    step = Denoiser.step

    def blocks(seen_nQ: Tensor, most: int) -> Blocks:
        found = blocks_before(seen_nQ, most)
        read.append(float((found.partial + found.whole).sum() * BLOCK_TOKENS))
        return found

    def counted(denoiser: Denoiser, cache: CachePolicy, state: StepState, bounds: Bounds) -> None:
        n, all_live = len(state.start), bool(state.live.all())
        needed = ((state.start + block) / CAPACITY_MULTIPLE).ceil().sum() * CAPACITY_MULTIPLE
        step(denoiser, cache, state, bounds)
        if all_live:
            rows.append((n + bounds.commits) / n)
            keys.append(float(read[-1] / needed))

    with mock.patch.object(Denoiser, "step", counted), mock.patch("models.flex.blocks_before", blocks):
        sampler.generate(random_prompts([40] * slots))
    return [
        Count("body_rows_over_nb", float(np.mean(rows[8:])), "2", "<= 1.7"),
        Count("keys_read_over_needed", float(np.mean(keys[8:])), "1.92", "<= 1.05"),
        Count("captured_keys", sampler.captured_keys, "", "<= 3 a bucket"),
    ]


def layer_kernels() -> list[Count]:
    """Of compiled decoder layers."""
    small = tiny_model("sdar")
    spec = replace(small.spec, raw={**small.spec.raw, "num_hidden_layers": 12})
    model = DiffusionLM(random_network(spec, torch.float32, seed=0), spec, {}, None).eval()
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    compile_layers(model)

    def run(slots: int) -> Tensor:
        positions = torch.arange(4).expand(slots, 4)
        return model.hidden(positions + 3, positions, Masked(None))

    with torch.inference_mode(), torch._inductor.config.patch(force_disable_caches=True):
        _, written = run_and_get_code(run, 2)
        for slots in (3, 5, 4):
            run(slots)
    kernels = sum(code.count("async_compile.cpp_pybinding(") for code in written)
    return [
        Count("layer_graphs", counters["stats"]["unique_graphs"] - before, "stops at 8", "<= 8"),
        Count("kernels_a_layer", kernels, "46", "<= 8"),
    ]


def _uncaptured(step: Callable[[], None]) -> Callable[[], None]:
    return step


COUNTERS: dict[str, Callable[[], list[Count]]] = {
    "bf16": bf16_mismatch,
    "head": bf16_head_gradient,
    "steps": step_work,
    "layers": layer_kernels,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(COUNTERS), help="names of counters, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'counter':24}{'before':>12}{'now':>12}{'wanted':>12}")
    found: dict[str, float] = {}
    for name in arguments.only.split(","):
        for count in COUNTERS[name]():
            count.show()
            found[count.name] = count.value
    print(json.dumps({"benchmark": "counters", **found}))


if __name__ == "__main__":
    main()
