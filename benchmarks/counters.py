"""Work that sampling does whatever the device: rows, keys read, captured shapes, before beside after.

    python benchmarks/counters.py

A tiny random SDAR answers 64 prompts in 64 slots, blocks of 4, two denoising steps a block, under the shapes of a GPU.
Before: room for a commit of every slot in every step. The last line is JSON; a figure that is not measured yet is not
there. body_rows_over_nb: rows that the body computes a step / (slots x block). keys_read_over_needed: keys that
attention reads a step / sum over live slots of the length rounded up to 128. captured_keys: shapes of which a step is
captured.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.tiny import random_prompts, tiny_model
from sample import Sampler, SamplingConfig
from sample.denoiser import Denoiser
from sample.graphs import CommitBudget
from sample.slots import CAPACITY_MULTIPLE, StepState
from sample.spans import Bounds, CachePolicy

SLOTS, BLOCK, STEPS_A_BLOCK, PROMPT_TOKENS, NEW_TOKENS = 64, 4, 2, 40, 240


def measured() -> dict[str, float]:
    """The counts of one call of `generate`, over the steps in which all slots are at work."""
    config = SamplingConfig(
        strategy="low_confidence_static",
        steps_per_block=STEPS_A_BLOCK,
        block_size=BLOCK,
        max_new_tokens=NEW_TOKENS,
        stop_ids=(),
        max_slots=SLOTS,
    )
    sampler = Sampler(tiny_model("sdar"), config)
    sampler.capture, sampler.steps_between_polls = _uncaptured, 8
    rows: list[float] = []
    keys: list[float] = []
    step = Denoiser.step

    def counted(denoiser: Denoiser, cache: CachePolicy, state: StepState, bounds: Bounds) -> None:
        n = len(state.start)
        if state.live.all():
            rows.append((n + bounds.commits) / n)
            lengths = (state.start + BLOCK).float()
            needed = (lengths / CAPACITY_MULTIPLE).ceil().sum() * CAPACITY_MULTIPLE
            keys.append(float(n * bounds.view_tokens / needed))
        step(denoiser, cache, state, bounds)

    with mock.patch.object(Denoiser, "step", counted):
        sampler.generate(random_prompts([PROMPT_TOKENS] * SLOTS))
    steady = slice(8, None)  # the first look chooses the commit budget
    return {
        "body_rows_over_nb": sum(rows[steady]) / len(rows[steady]),
        "keys_read_over_needed": sum(keys[steady]) / len(keys[steady]),
        "captured_keys": sampler.captured_keys,
    }


def _uncaptured(step: Callable[[], None]) -> Callable[[], None]:
    return step


def main() -> None:
    torch.set_num_threads(1)
    after = measured()
    with mock.patch.object(CommitBudget, "spans", lambda budget, slots, live: slots):
        before = measured()
    print(f"{'':24}{'before':>10}{'after':>10}")
    for name, value in after.items():
        print(f"{name:24}{before[name]:10.3f}{value:10.3f}")
    print(json.dumps({name: round(value, 4) for name, value in after.items()}))


if __name__ == "__main__":
    main()
