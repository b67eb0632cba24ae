"""What of a response's reward can be foretold before a denoising step, from what a value model would read.

    python benchmarks/value.py RUN --model CHECKPOINT [--steps 1 30] [--responses 4000] [--fit 0]

RUN is a run's folder, on a task with one right answer (sort, addition); the hidden states are CHECKPOINT's, the trunk
that a value model would begin with. A value is asked at every trained token, in the state in which its denoising step
began, as in a run. Half of the questions are fitted, the other half is foretold: `explained` is 1 - var(return -
value) / var(return) over their tokens, 0 for a value model that says nothing.

returns
    centered   the reward less its group's mean, what a run with a value model learns (groups of equal rewards dropped)
    reward     the reward itself
    tokens     a dense process reward: 1 for each token that is right, summed over the steps to come
readers, each fitted in closed form (ridge regression, so that no learning rate enters)
    place      the number of the step and of the block alone
    own doubt  the sampler's log-probabilities of what was written so far, their sum and their least
    token      the hidden state of the token
    block      the mean hidden state of the block's trained tokens (one value a state, as CAPR's block head)
    wide       `token` through 1,024 random features (ReLU)
    error      one bit, known to nobody: whether something that is already written is wrong

--fit N then trains a value model of CHECKPOINT itself, all weights, N passes at each of three rates, on `centered`.
Ends with one line of JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import TrainingConfig
from models import DiffusionLM, ValueModel, load_model
from models.canvas import CanvasRows
from sample import Rollout
from train.algorithm.advantages import step_gae
from train.algorithm.packing import MicroBatch, pack, within_budget
from train.algorithm.replay import Replayer, TrainingSample, replay

Floats = NDArray[np.float64]
CPU = torch.device("cpu")
TOKENS = 4096
RATES = (1e-3, 3e-4, 1e-4)


@dataclass(frozen=True)
class States:
    """Every trained token of the responses: N of them. sample: its place in `samples`; group: its question's number;
    block, step: of the state in which it was chosen, per response; returns by name [N]; written [N, 3]: see `own
    doubt`; error [N]: see `error`."""

    samples: list[TrainingSample]
    sample: NDArray[np.int64]
    group: NDArray[np.int64]
    block: NDArray[np.int64]
    step: NDArray[np.int64]
    returns: dict[str, Floats]
    written: Floats
    error: NDArray[np.bool_]


def groups_of(path: Path, steps: tuple[int, int], limit: int) -> list[list[dict[str, Any]]]:
    """Groups of which some responses are right and some wrong, of these RL steps, up to `limit` responses."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with path.open() as file:
        for row in map(json.loads, file):
            if row["step"] > steps[1]:
                break
            if row["step"] >= steps[0]:
                groups.setdefault((row["step"], row["task"]), []).append(row)
    mixed = [group for group in groups.values() if len({row["reward"] for row in group}) > 1]
    return mixed[: max(1, limit // max(1, len(mixed[0])))] if mixed else []


def states_of(groups: Sequence[Sequence[dict[str, Any]]], model: DiffusionLM) -> States:
    """The states of all responses. A token is right where it is that of the group's first right response."""
    samples: list[TrainingSample] = []
    parts: list[dict[str, NDArray[Any]]] = []
    for number, group in enumerate(groups):
        mean = float(np.mean([row["reward"] for row in group]))
        right = next(row for row in group if row["reward"] == 1.0)
        for row in group:
            rollout = Rollout.from_dict(row)
            replayer = Replayer(model.attention, model.logit_shift, model.mask_id, row["block_size"])
            for sample in replay(rollout, replayer, TrainingConfig(), pad_id=model.pad_id):
                told = _state(rollout, sample, replayer, right)
                reward_N = np.full(len(told["step"]), row["reward"])
                credit = {"reward": reward_N, "centered": reward_N - mean}
                parts.append(told | credit | {"group": number, "sample": len(samples)})
                samples.append(sample)
    count = [len(part["step"]) for part in parts]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("block", "step", "written", "error")}
    returns = {name: np.concatenate([part[name] for part in parts]) for name in ("centered", "reward", "tokens")}
    of_part = {name: np.repeat([part[name] for part in parts], count) for name in ("sample", "group")}
    return States(samples, of_part["sample"], of_part["group"], returns=returns, **joined)


def _state(rollout: Rollout, sample: TrainingSample, replayer: Replayer, right: dict[str, Any]) -> dict[str, Any]:
    """What `States` holds of a sample's trained tokens [N], but for its rewards."""
    R, place_N = rollout.num_response_tokens, sample.canvas_index
    ids_C, step_C = np.array(rollout.canvas_ids), np.array(rollout.canvas_step_map)
    logp_C, right_C = np.array(rollout.canvas_logprobs), np.full(len(ids_C), -1)
    known = min(len(ids_C), right["num_response_tokens"])
    right_C[:known] = right["canvas_ids"][:known]
    wrong_C = (right_C != ids_C) & (np.arange(len(ids_C)) < R)
    step_N = step_C[place_N]
    before_NC = (step_C[None] < step_N[:, None]) & (np.arange(len(ids_C)) < R)[None]
    written = np.stack([(logp_C * before_NC).sum(1), np.where(before_NC, logp_C, 0.0).min(1), before_NC.sum(1)], axis=1)
    token_N, _ = step_gae(1.0 - wrong_C[place_N], np.zeros(len(place_N)), step_N, gamma=1.0, lam=1.0)
    canvas = replayer.canvas(rollout, step_C > 0)
    return {
        "block": canvas.unit_C[place_N] - canvas.unit_C[0],
        "step": step_N,
        "written": written,
        "error": (before_NC & wrong_C[None]).any(1),
        "tokens": token_N,
    }


@torch.no_grad()
def read(states: States, reader: Callable[[MicroBatch], Tensor]) -> Floats:
    """What a reader of packed samples says of each trained token, in their order."""
    found: dict[int, NDArray[np.float32]] = {}
    for group in within_budget(states.samples, range(len(states.samples)), TOKENS):
        micro = pack(states.samples, group, CPU)
        told_N = reader(micro).numpy()
        for place, i in enumerate(micro.samples):
            found[i] = told_N[micro.sample_of_N == place]
    return np.concatenate([found[i] for i in range(len(states.samples))]).astype(np.float64)


def hidden_of(states: States, model: DiffusionLM) -> Floats:
    """The hidden state [N, D] of each trained token."""

    def hidden(micro: MicroBatch) -> Tensor:
        assert not isinstance(micro.layout, CanvasRows)
        return model.hidden(micro.ids, micro.positions, micro.layout).flatten(0, 1)[micro.index]

    return read(states, hidden)


def readers(states: States, hidden_ND: Floats) -> Iterator[tuple[str, Floats]]:
    """What each reader sees [N, F]."""
    place = np.eye(int(states.step.max()) + 1)[states.step], np.eye(int(states.block.max()) + 1)[states.block]
    yield "place", np.concatenate(place, 1)
    doubt = states.written
    yield "own doubt", np.concatenate([*place, doubt, np.exp(doubt[:, :2])], 1)
    yield "token", hidden_ND
    state = np.unique(np.stack([states.sample, states.block, states.step], 1), axis=0, return_inverse=True)[1].ravel()
    sums = np.zeros((state.max() + 1, hidden_ND.shape[1]))
    np.add.at(sums, state, hidden_ND)
    yield "block", (sums / np.bincount(state)[:, None])[state]
    rng = np.random.default_rng(0)
    scaled = (hidden_ND - hidden_ND.mean(0)) / (hidden_ND.std(0) + 1e-6)
    weights, bias = rng.standard_normal((scaled.shape[1], 1024)), rng.standard_normal(1024)
    yield "wide", np.maximum(scaled @ weights / scaled.shape[1] ** 0.5 + bias, 0.0)
    yield "error", states.error[:, None].astype(np.float64)


def ridge(seen_NF: Floats, return_N: Floats, fitted_N: NDArray[np.bool_]) -> Floats:
    """Values [N] of a ridge regression on the fitted tokens, its strength the best of several on a fifth of those."""
    scale = seen_NF[fitted_N].std(0) + 1e-6
    x = np.concatenate([(seen_NF - seen_NF[fitted_N].mean(0)) / scale, np.ones((len(seen_NF), 1))], 1)
    inner, judged = fitted_N.copy(), fitted_N.copy()
    cut = np.flatnonzero(fitted_N)[int(0.8 * fitted_N.sum())]
    inner[cut:], judged[:cut] = False, False

    def solve(which: NDArray[np.bool_], strength: float) -> Floats:
        a = x[which]
        return x @ np.linalg.solve(a.T @ a + strength * len(a) * np.eye(x.shape[1]), a.T @ return_N[which])

    best = max((10.0**k for k in range(-6, 2)), key=lambda s: explained(solve(inner, s), return_N, judged))
    return solve(fitted_N, best)


def explained(value_N: Floats, return_N: Floats, which: NDArray[np.bool_]) -> float:
    return 1.0 - float((return_N - value_N)[which].var() / return_N[which].var())


def trained_values(states: States, path: str, fitted_N: NDArray[np.bool_], passes: int, rate: float) -> Floats:
    """Values [N] of a value model whose weights have all learnt `centered` on the fitted tokens."""
    model = ValueModel(load_model(path))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, betas=(0.9, 0.95))
    ends = np.flatnonzero(np.diff(states.sample)) + 1
    target = [torch.from_numpy(part).float() for part in np.split(states.returns["centered"], ends)]
    rng, chosen = np.random.default_rng(0), np.unique(states.sample[fitted_N])

    def values(micro: MicroBatch) -> Tensor:
        return model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)

    for _ in range(passes):
        order = rng.permutation(chosen)
        for first in range(0, len(order), 64):
            micro = pack(states.samples, order[first : first + 64].tolist(), CPU)
            loss = ((values(micro) - torch.cat([target[i] for i in micro.samples])) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return read(states, values)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True, help="checkpoint whose hidden states are read")
    parser.add_argument("--steps", type=int, nargs=2, default=(1, 30), help="first and last RL step")
    parser.add_argument("--responses", type=int, default=4000, help="responses at most, of mixed groups")
    parser.add_argument("--fit", type=int, default=0, help="passes of a value model's training")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    groups = groups_of(args.run / "rollouts.jsonl", tuple(args.steps), args.responses)
    if not groups:
        raise SystemExit(
            f"{args.run}: no group of steps {args.steps[0]} to {args.steps[1]} has right and wrong responses."
        )
    model = load_model(args.model)
    states = states_of(groups, model)
    fitted_N = states.group % 2 == 0
    alone = float((states.step == 1).mean())
    print(
        f"{len(states.samples)} responses, {len(fitted_N)} tokens, {alone:.2f} of them chosen from the question alone"
    )
    print(f"{'explained by':14}" + "".join(f"{name:>10}" for name in states.returns))
    result: dict[str, Any] = {"first_step": alone}
    for name, seen in readers(states, hidden_of(states, model)):
        result[name] = {
            target: explained(ridge(seen, return_N, fitted_N), return_N, ~fitted_N)
            for target, return_N in states.returns.items()
        }
        print(f"{name:14}" + "".join(f"{value:10.3f}" for value in result[name].values()), flush=True)
    for rate in RATES if args.fit else ():
        value_N, return_N = trained_values(states, args.model, fitted_N, args.fit, rate), states.returns["centered"]
        held_out, learnt = (explained(value_N, return_N, which) for which in (~fitted_N, fitted_N))
        result[f"trained at {rate:g}"] = {"held out": held_out, "fitted": learnt}
        print(f"value model at {rate:g}: held out {held_out:.3f}, fitted {learnt:.3f}", flush=True)
    print(json.dumps({"benchmark": "value", "explained": result}))


if __name__ == "__main__":
    main()
