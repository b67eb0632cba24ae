"""How far approximate caches are from the trainer, and what it costs to train only some rows of a response.

    python benchmarks/mismatch.py [--prompts 8] [--responses 2] [--repeats 200] [--sort-model PATH] [--threads 1]

Random models of full attention in the layouts of Dream and LLaDA, fp32: "tiny" has 2 layers of width 32, "small" 4 of
width 128. Their weights are large, so that every token depends strongly on its whole context; a trained model depends
on it less, and what is seen here is nearer to a worst case than to what to expect.

Caches: prompts of 8 to 24 tokens, answers of 48, blocks of 8, two tokens a step, temperature 1. Each answer is
replayed, and the sampler's log-probability of every trained token is set against the trainer's under the same weights
(d = logp_sampler - logp_trainer): mean |d|, k3(d), and the share of tokens whose ratio exp(-d) leaves [0.8, 1.2], which
PPO's clip at 0.2 would take for a policy that has moved.

Rows: gradients of the policy's loss (normalization constant, on policy) of every row (noisy copy) of the answers of
tiny models, SDAR's among them, with random advantages. For each count of training.rows_per_response the rows are drawn
`repeats` times, under both values of training.rows_by. "noise" is the
variance (summed over parameters) that drawing adds to a response's gradient, as a share of the variance between the
gradients of responses when all rows are trained: 1 means that an update is as noisy as one of half as many responses.
"equal" is the variance of an update that spends the same rows on more responses, as a share of that with all rows of
fewer. "bias" is |mean over draws - all rows|^2 against what chance gives an unbiased estimate: near 1 is unbiased.
Ends with one line of JSON.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import TrainingConfig
from data import load_tasks, resolve_dataset
from models import DiffusionLM, load_model
from models.tiny import random_prompts, tiny_model
from models.tokenizer import read_tokenizer
from sample import Rollout, Sampler, SamplingConfig
from train.algorithm.masking import NoisyCopy, sample_copies, trace
from train.algorithm.objectives import TokenBatch, clipped_surrogate, k3, params_of, token_weights
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, TrainingSample, trained_positions
from train.learner.updater import outputs

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
PARAMS = params_of(clipped_surrogate, {"beta": 0.0})
BLOCK = 8
CONFIG = SamplingConfig(
    max_new_tokens=48,
    block_size=BLOCK,
    steps_per_block=4,
    strategy="low_confidence_static",
    temperature=1.0,
    stop_ids=(),
    max_slots=64,
)
CACHES = {
    "none": CONFIG,
    "prefix": replace(CONFIG, cache="prefix"),
    "prefix, horizon 8": replace(CONFIG, cache="prefix", further_horizon=8),
    "dual": replace(CONFIG, cache="dual"),
}
SMALL: dict[str, dict[str, Any]] = {
    "dream": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    "llada": {"d_model": 128, "mlp_hidden_size": 256, "n_layers": 4},
}
COUNTS = (1, 2, 4, 8, 16)
TABLE = f"{'model':18}{'rows trained':>14}{'noise':>8}{'equal':>8}{'bias':>8}"


def answers(model: DiffusionLM, config: SamplingConfig, prompts: int, responses: int) -> list[Rollout]:
    lengths = np.random.default_rng(0).integers(8, 25, prompts)
    return Sampler(model, config).generate(random_prompts(lengths.tolist()), n=responses)


def mismatch(model: DiffusionLM, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The sampler's log-probabilities against the trainer's."""
    pairs = [(rollout, row) for rollout in rollouts for row in copies_of(model, rollout)[1]]
    rows = [row for _, row in pairs]
    trained = np.concatenate(outputs(model, rows, range(len(rows)), 16384, CPU))
    sampled = np.concatenate([np.asarray(rollout.canvas_logprobs)[row.canvas_index] for rollout, row in pairs])
    gap = torch.from_numpy(sampled - trained)
    ratio = torch.exp(-gap)
    return {
        "mean_abs": float(gap.abs().mean()),
        "k3": float(k3(gap).mean()),
        "outside": float(((ratio < 0.8) | (ratio > 1.2)).double().mean()),
    }


def copies_of(
    model: DiffusionLM, rollout: Rollout, block_size: int = BLOCK
) -> tuple[list[NoisyCopy], list[TrainingSample]]:
    """The noisy copies that TraceRL trains, and a sample of each alone."""
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, block_size)
    canvas = replayer.canvas(rollout, trained_positions(rollout, None, 0))
    copies = trace(canvas, TrainingConfig(), np.random.default_rng(0))
    given = rollout.key, rollout.prompt_ids, rollout.canvas_ids
    return copies, [sample for copy in copies for sample in replayer.samples(*given, [copy])]


def row_gradients(model: DiffusionLM, rows: Sequence[TrainingSample], advantage: float) -> NDArray[np.float64]:
    """Gradient [rows, parameters] of each row's share of the loss of one response."""
    weights = token_weights(rows, "constant", max_gen_length=CONFIG.max_new_tokens).policy
    gradients = []
    for i, weight in enumerate(weights):
        micro = pack(rows, [i], CPU)
        logp_N = model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)
        advantage_N, weight_N = torch.full_like(logp_N, advantage), torch.from_numpy(weight).to(logp_N.dtype)
        loss, _ = clipped_surrogate(TokenBatch.of(logp_N, logp_N.detach(), advantage_N, weight_N), PARAMS)
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]).double().numpy())
    return np.stack(gradients)


def rows_variance(
    model: DiffusionLM,
    rollouts: Sequence[Rollout],
    repeats: int,
    by: str,
    block_size: int = BLOCK,
) -> list[dict[str, float]]:
    """What drawing rows adds to the variance of a response's gradient, for each of COUNTS below the fewest rows."""
    rng = np.random.default_rng(0)
    whole: list[NDArray[np.float64]] = []
    pieces = [copies_of(model, rollout, block_size) for rollout in rollouts]
    counts = [count for count in COUNTS if count < min(len(copies) for copies, _ in pieces)]
    noise: dict[int, list[float]] = {count: [] for count in counts}
    bias: dict[int, list[float]] = {count: [] for count in counts}
    num_rows = []
    for rollout, (copies, rows) in zip(rollouts, pieces, strict=True):
        gradients = row_gradients(model, rows, rng.standard_normal())
        inner = gradients @ gradients.T
        whole.append(gradients.sum(0))
        num_rows.append(len(rows))
        scores = -np.asarray(rollout.canvas_logprobs) if by == "surprisal" else None
        for count in counts:
            error = drawing_errors(copies, count, repeats, rng, scores)
            mean, variance = error.mean(0), float(np.einsum("si,ij,sj->", error, inner, error)) / repeats
            noise[count].append(variance)
            bias[count].append(float(mean @ inner @ mean) / (variance / repeats))
    between = float(np.stack(whole).var(axis=0, ddof=1).sum())
    found = []
    for count in counts:
        added = float(np.mean(noise[count])) / between
        share = count / float(np.mean(num_rows))
        row = {"count": count, "rows": count / share, "noise": added, "equal": (1 + added) * share}
        found.append(row | {"bias": float(np.mean(bias[count]))})
    return found


def drawing_errors(
    copies: list[NoisyCopy], count: int, repeats: int, rng: np.random.Generator, scores: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """For each draw of `count` copies, the weight that each of `copies` has in the estimate, less the 1 it has in the
    whole [repeats, copies]."""
    place = {(copy.unit, copy.round): i for i, copy in enumerate(copies)}
    weights = np.zeros((repeats, len(copies)))
    for weight_K in weights:
        for copy in sample_copies(copies, count, rng, scores):
            weight_K[place[copy.unit, copy.round]] = copy.weight
    return weights - 1.0


def sort_answers(model: DiffusionLM, count: int) -> list[Rollout]:
    """Answers to questions of the tiny task, sampled as configs/rl_tiny.yaml does."""
    tasks = load_tasks(resolve_dataset("tiny_test", folder=ROOT / "data", seed=1), data_type="general")[:count]
    tokenizer = read_tokenizer(model.spec.folder, model.spec.family)
    assert tokenizer is not None
    config = SamplingConfig(max_new_tokens=15, block_size=4, steps_per_block=4, threshold=0.9, temperature=1.0)
    return Sampler(model, config).generate([tokenizer.encode(task.question) for task in tasks])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--responses", type=int, default=2, help="answers a prompt")
    parser.add_argument("--repeats", type=int, default=200, help="draws of rows for each response and count")
    parser.add_argument("--sort-model", help="checkpoint of the tiny task, whose rows are drawn too")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"benchmark": "mismatch", "caches": {}, "rows": {}}
    print(f"{'model':14}{'cache':20}{'mean |d|':>10}{'k3(d)':>10}{'ratio off':>11}")
    for family, larger in SMALL.items():
        for size, config in (("tiny", {}), ("small", larger)):
            model = tiny_model(family, **config)
            name = f"{family} {size}"
            result["caches"][name] = found = {
                cache: mismatch(model, answers(model, sampling, args.prompts, args.responses))
                for cache, sampling in CACHES.items()
            }
            for cache, values in found.items():
                print(f"{name:14}{cache:20}{values['mean_abs']:10.2g}{values['k3']:10.2g}{values['outside']:11.1%}")
    print("\n" + TABLE)
    subjects = {family: tiny_model(family) for family in ("sdar", *SMALL)}
    rollouts = {name: answers(model, CONFIG, args.prompts, args.responses) for name, model in subjects.items()}
    if args.sort_model:
        subjects["sort"] = load_model(args.sort_model)
        rollouts["sort"] = sort_answers(subjects["sort"], 2 * args.prompts * args.responses)
    for (family, model), by in itertools.product(subjects.items(), ("uniform", "surprisal")):
        name, block_size = f"{family} {by}", 4 if family == "sort" else BLOCK
        result["rows"][name] = rows_variance(model, rollouts[family], args.repeats, by, block_size)
        for found_rows in result["rows"][name]:
            share = f"{found_rows['count']} of {found_rows['rows']:g}"
            numbers = "".join(f"{found_rows[key]:8.2f}" for key in ("noise", "equal", "bias"))
            print(f"{name:18}{share:>14}{numbers}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
