"""What replaying the experts of sampling (training.replay_routing) does to the gap between sampler and trainer in bf16.

    python benchmarks/routing.py [--prompts 16] [--responses 2] [--threads 1]

Random mixtures of 4 layers of width 128, 32 experts of which 4 a token, in the layouts of SDAR-MoE and LLaDA2; their
weights are large, so that a token depends strongly on its experts. Sampler and trainer compute in bf16 with the same
weights; only the shapes of their batches differ, and with them rounding. Prompts of 8 to 24 tokens, answers of 48,
blocks of 8, temperature 1. Of d = logp_sampler - logp_trainer: mean |d|, k3(d), which is what `mismatch_kl` logs, and
the share of tokens whose ratio exp(-d) leaves [0.8, 1.2]. moved: share of tokens and layers whose experts are not those
of sampling, when the trainer chooses. Ends with one line of JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.mismatch import CONFIG, CPU
from configs.schema import TrainingConfig
from models import DiffusionLM
from models.canvas import CanvasRows
from models.experts import routers
from models.tiny import random_prompts, tiny_model
from sample import Rollout, Sampler, SamplingConfig
from train.algorithm.objectives import k3
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, TrainingSample, replay
from train.learner.updater import outputs

FAMILIES = ("sdar_moe", "llada2")
SIZES: dict[str, Any] = {
    **{"hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64, "num_hidden_layers": 4},
    **{"num_experts": 32, "num_experts_per_tok": 4, "block_size": 8},
}
DECODING = SamplingConfig(
    max_new_tokens=CONFIG.max_new_tokens,
    block_size=CONFIG.block_size,
    steps_per_block=4,
    temperature=1.0,
    stop_ids=(),
    record_routing=True,
)


def measure(family: str, prompts: int, responses: int) -> dict[str, dict[str, float]]:
    """Figures of both ways to train, by name."""
    model = tiny_model(family, dtype="bfloat16", **SIZES)
    lengths = np.random.default_rng(0).integers(8, 25, prompts).tolist()
    rollouts = Sampler(model, DECODING).generate(random_prompts(lengths), n=responses)
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, SIZES["block_size"])
    training = TrainingConfig(replay_routing=True)
    samples = [sample for rollout in rollouts for sample in replay(rollout, replayer, training)]
    ways = {"chosen": False, "replayed": True}
    found = {name: gaps(model, rollouts, samples, replays) for name, replays in ways.items()}
    found["chosen"]["moved"] = moved(model, samples)
    return found


def gaps(model: DiffusionLM, rollouts: list[Rollout], samples: list[TrainingSample], replays: bool) -> dict[str, float]:
    trained = outputs(model, samples, range(len(samples)), 16384, CPU, replays_routing=replays)
    pairs = zip(rollouts, samples, trained, strict=True)
    gap = torch.from_numpy(np.concatenate([np.array(r.canvas_logprobs)[s.canvas_index] - x for r, s, x in pairs]))
    ratio = torch.exp(-gap)
    outside = float(((ratio < 0.8) | (ratio > 1.2)).double().mean())
    return {"mean_abs": float(gap.abs().mean()), "k3": float(k3(gap).mean()), "outside": outside}


@torch.no_grad()
def moved(model: DiffusionLM, samples: list[TrainingSample]) -> float:
    batch = pack(samples, range(len(samples)), CPU)
    assert batch.experts is not None
    chosen: list[torch.Tensor] = []
    hooks = [r.register_forward_hook(lambda r, i, output: chosen.append(output[2])) for r in routers(model).values()]
    assert not isinstance(batch.layout, CanvasRows)
    model.hidden(batch.ids, batch.positions, batch.layout)
    for hook in hooks:
        hook.remove()
    trained = torch.stack(chosen, 1).sort(-1).values
    return float((trained != batch.experts.long().sort(-1).values).any(-1).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {family: measure(family, arguments.prompts, arguments.responses) for family in FAMILIES}
    print(f"{'model':12}{'experts':>10}{'mean |d|':>12}{'k3':>12}{'outside':>10}{'moved':>10}")
    for family, ways in found.items():
        for name, row in ways.items():
            shown = f"{row['moved']:10.4f}" if "moved" in row else ""
            print(f"{family:12}{name:>10}{row['mean_abs']:12.2e}{row['k3']:12.2e}{row['outside']:10.4f}{shown}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
