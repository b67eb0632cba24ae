"""Speed and memory of an update: packed replay against one padded row a round.

    python benchmarks/update.py [--threads 2] [--rounds 2] [--clock wall] [--dtype float32]

The same made-up rollouts train a random SDAR of 64M parameters (10 layers, hidden 512, vocabulary 32k) in two ways.
Prompts have 64 tokens, four answers 60 to 400 (183 on average), then four have 184 each; blocks of 4 tokens are decided
in 2.1 steps on average.

ours       what rl.py runs: one packed sequence a response, log-probabilities at trained positions only, the sampler's
           as the old ones
reference  dLLM-RL's formulation, written well, on the same transformers class with its usual attention: one row a round
           over [prompt | clean answer | noisy answer], padded to the longest, under a dense mask; logits over the whole
           vocabulary at every position, of which prompt and noisy answer are kept; a second forward, without
           gradients, for the old log-probabilities

An update here is rollouts to gradients; the optimizer's step, the same for both, is left out. First it is checked that
loss and gradients agree. Then both run in turns, each in a process of its own, in the micro-batches that suit it best
on a CPU (ours two responses, the reference two rows), and mean times are compared. Memory is the peak of a
process's resident size above that after loading the model, gradients included: with the whole update in one forward and
backward, and in those micro-batches. On a busy machine use `--threads 1 --clock cpu`: processor time instead of wall
time.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.sampler import BLOCK, CONFIG, MASK_ID, PROMPT_TOKENS, processor
from configs.schema import TrainingConfig
from models import DiffusionLM, load_model
from sample.rollout import Rollout
from train.algorithm.objectives import TokenBatch, clipped_surrogate, params_of, per_token, token_weights
from train.algorithm.packing import MicroBatch, pack, within_budget
from train.algorithm.replay import Replayer, TrainingSample, replay
from train.distributed.masters import Masters
from train.learner.optimizer import OptimizerSettings, make_optimizer

SPREAD, EQUAL = (60, 92, 180, 400), (184, 184, 184, 184)
STEPS_SHARE = (0.3, 0.4, 0.2, 0.1)
PARAMS = params_of(clipped_surrogate, {"eps": 0.2, "beta": 0.01})
MAX_TOKENS = 16384
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """Rollouts of one update, their advantages, and how many responses (ours) or rows (reference) a forward holds."""

    rollouts: list[Rollout]
    advantages: list[float]
    dtype: torch.dtype
    responses_in_flight: int = 2
    rows_in_flight: int = 2

    @property
    def longest(self) -> int:
        return max(rollout.num_response_tokens for rollout in self.rollouts)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def made_up_rollout(
    number: int, length: int, prompt_tokens: int = PROMPT_TOKENS, vocabulary: int = int(str(CONFIG["vocab_size"]))
) -> Rollout:
    """A response of `length` tokens in whole blocks; what lies right of its end was never decided."""
    generator = np.random.default_rng([number, length])
    canvas = -(-length // BLOCK) * BLOCK
    ids = generator.integers(3, vocabulary, prompt_tokens + canvas)
    steps, last = [], 0
    for _ in range(canvas // BLOCK):
        count = int(generator.choice(len(STEPS_SHARE), p=STEPS_SHARE)) + 1
        ranks = np.concatenate([np.arange(count), generator.integers(0, count, BLOCK - count)])
        steps.append(last + 1 + generator.permutation(ranks))
        last += count
    step_map = np.concatenate(steps)
    step_map[length:] = 0
    ids[prompt_tokens + length :] = MASK_ID
    return Rollout(
        key=(number,),
        prompt_ids=ids[:prompt_tokens].tolist(),
        canvas_ids=ids[prompt_tokens:].tolist(),
        canvas_step_map=step_map.tolist(),
        canvas_logprobs=[0.0] * canvas,
        num_response_tokens=length,
        finish_reason="stop",
        num_steps=last,
    )


def random_model() -> DiffusionLM:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        return load_model(folder, random_init_seed=0)


def row_of(rollout: Rollout) -> TrainingSample:
    (row,) = replay(rollout, Replayer("block", False, MASK_ID, BLOCK), TrainingConfig())
    return row


def packed(rows: Sequence[TrainingSample], which: Sequence[int]) -> list[MicroBatch]:
    return [pack(rows, group, torch.device("cpu")) for group in within_budget(rows, which, MAX_TOKENS)]


def our_update(model: DiffusionLM, job: Job) -> float:
    """Gradients of one update on the real code path; returns the loss."""
    rows = [row_of(rollout) for rollout in job.rollouts]
    weights = token_weights(rows, "reference", max_gen_length=job.longest, longest_response=job.longest).policy
    old = [np.asarray(r.canvas_logprobs)[row.canvas_index] for r, row in zip(job.rollouts, rows, strict=True)]
    total = 0.0
    device = torch.device("cpu")
    for first in range(0, len(rows), job.responses_in_flight):
        group = range(len(rows))[first : first + job.responses_in_flight]
        for micro in packed(rows, group):
            logp_N = model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)
            numbers = (per_token(values, micro, device) for values in (old, job.advantages, weights))
            loss, _ = clipped_surrogate(TokenBatch.of(logp_N, *numbers), PARAMS)
            loss.backward()
            total += loss.item()
    return total


@torch.no_grad()
def with_log_probs(model: DiffusionLM, job: Job) -> Job:
    """The job with the log-probabilities that a sampler would have left in the rollouts."""
    rollouts = []
    for rollout in job.rollouts:
        row = row_of(rollout)
        (micro,) = packed([row], [0])
        logprobs = np.zeros(len(rollout.canvas_ids))
        logp_N = model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)
        logprobs[row.canvas_index] = logp_N.numpy()
        rollouts.append(replace(rollout, canvas_logprobs=logprobs.tolist()))
    return replace(job, rollouts=rollouts)


@dataclass(frozen=True)
class PaddedRows:
    """Rows in the reference's layout: prompt, clean answer, noisy answer, and the trained places [B, R]; response_B
    says whose row it is."""

    prompt_BP: Tensor
    clean_BR: Tensor
    noisy_BR: Tensor
    trained_BR: Tensor
    response_B: Tensor

    def split(self, count: int) -> Iterator["PaddedRows"]:
        for tensors in zip(*(vars(self)[field.name].split(count) for field in fields(self)), strict=True):
            yield PaddedRows(*tensors)


def padded_rows(rollouts: Sequence[Rollout], longest: int) -> PaddedRows:
    """One row a round of each response, padded to whole blocks of the longest."""
    R = -(-longest // BLOCK) * BLOCK
    prompts, cleans, noisies, trained, responses = [], [], [], [], []
    for i, rollout in enumerate(rollouts):
        length = rollout.num_response_tokens
        clean, steps = np.full(R, MASK_ID), np.full(R, np.iinfo(np.int64).max)
        clean[:length], steps[:length] = rollout.canvas_ids[:length], rollout.canvas_step_map[:length]
        rounds = np.concatenate([np.unique(block, return_inverse=True)[1] for block in steps.reshape(-1, BLOCK)])
        answer = np.arange(R) < length
        for number in range(int(rounds[answer].max()) + 1):
            prompts.append(rollout.prompt_ids)
            cleans.append(clean)
            noisies.append(np.where(rounds >= number, MASK_ID, clean))
            trained.append(answer & (rounds == number))
            responses.append(i)
    return PaddedRows(*(torch.from_numpy(np.stack(rows)) for rows in (prompts, cleans, noisies, trained, responses)))


def reference_mask(R: int) -> Tensor:
    """Bool [1, 1, N, N] over [prompt | clean | noisy]: dLLM-RL's, for a prompt of whole blocks."""
    clean = torch.arange(PROMPT_TOKENS + R) // BLOCK
    block = torch.cat([clean, clean[PROMPT_TOKENS:]])
    noisy = torch.arange(len(block)) >= PROMPT_TOKENS + R
    query, key = block[:, None], block[None]
    past = ~noisy[None] & torch.where(noisy[:, None], key < query, key <= query)
    return (past | (noisy[:, None] & noisy[None] & (query == key)))[None, None]


def reference_log_probs(model: DiffusionLM, rows: PaddedRows, mask: Tensor, job: Job) -> Tensor:
    """Log-probabilities [B, R] of the clean answer read in the noisy one."""
    P, R = PROMPT_TOKENS, rows.clean_BR.shape[1]
    ids = torch.cat([rows.prompt_BP, rows.clean_BR, rows.noisy_BR], dim=1)
    positions = torch.cat([torch.arange(P + R), torch.arange(P, P + R)])[None]
    with job.autocast():
        output = model.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits = model.lm_head(output.last_hidden_state)
    logits = torch.cat([logits[:, :P], logits[:, P + R :]], dim=1).float()
    labels = torch.cat([rows.prompt_BP, rows.clean_BR], dim=1)
    return logits.log_softmax(-1).gather(-1, labels[..., None])[:, P:, 0]


def reference_update(model: DiffusionLM, job: Job) -> float:
    """Gradients of one update in the reference's formulation; returns the loss."""
    rows = padded_rows(job.rollouts, job.longest)
    batches = list(rows.split(job.rows_in_flight))
    mask, advantages = reference_mask(rows.clean_BR.shape[1]), torch.tensor(job.advantages)
    with torch.no_grad():
        olds = [reference_log_probs(model, batch, mask, job)[batch.trained_BR] for batch in batches]
    total = 0.0
    for batch, old in zip(batches, olds, strict=True):
        logp = reference_log_probs(model, batch, mask, job)[batch.trained_BR]
        advantage = advantages[batch.response_B].repeat_interleave(batch.trained_BR.sum(-1))
        weight = torch.full_like(logp, 1.0 / (len(rows.response_B) * job.longest))
        loss, _ = clipped_surrogate(TokenBatch.of(logp, old, advantage, weight), PARAMS)
        loss.backward()
        total += loss.item()
    return total


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
UPDATES: dict[str, Callable[[DiffusionLM, Job], float]] = {"ours": our_update, "reference": reference_update}


def resident_bytes(peak: bool) -> int:
    """This process's resident size, now or at its peak (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Result:
    loss: float
    seconds: float
    peak_bytes: int


def prepared_model(variant: str, dtype: torch.dtype = torch.float32) -> DiffusionLM:
    """dtype bfloat16: ours works in bf16 over fp32 masters; the reference's fp32 weights run under autocast."""
    model = random_model().train()
    if variant == "reference":
        model.hf_config._attn_implementation = "sdpa"
    elif dtype == torch.bfloat16:
        Masters(model, make_optimizer(model, OptimizerSettings()))
    return model


def worker(connection: Connection, variant: str, threads: int, clock: str, dtype: torch.dtype) -> None:
    """Runs an update for every job received, until None; replies with a `Result` whose peak is that of its whole
    life."""
    torch.set_num_threads(threads)
    model = prepared_model(variant, dtype)
    loaded = resident_bytes(peak=False)
    while (job := connection.recv()) is not None:
        start = CLOCKS[clock]()
        loss = UPDATES[variant](model, job)
        seconds = CLOCKS[clock]() - start
        model.zero_grad(set_to_none=True)
        connection.send(Result(loss, seconds, resident_bytes(peak=True) - loaded))


class Contender:
    """One variant in a process of its own."""

    def __init__(self, variant: str, args: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=worker, args=(theirs, variant, args.threads, args.clock, getattr(torch, args.dtype)), daemon=True
        )
        self.process.start()
        theirs.close()

    def run(self, job: Job) -> Result:
        self.connection.send(job)
        return self.connection.recv()

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def check(job: Job) -> None:
    """Both variants give the same loss and gradients; run in fp32."""
    ours, reference = prepared_model("ours"), prepared_model("reference")
    losses = our_update(ours, job), reference_update(reference, job)
    if not math.isclose(*losses, rel_tol=1e-4):
        raise SystemExit(f"losses differ: {losses}")
    gaps = {}
    for (name, p), q in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        gaps[name] = float((p.grad - q.grad).norm() / q.grad.norm())
    worst = max(gaps, key=lambda name: gaps[name])
    if not gaps[worst] < 1e-4:
        raise SystemExit(f"gradients of {worst} differ by {gaps[worst]:.1e} of their norm")
    print(f"same loss ({losses[0]:.6f}) and gradients (largest difference: {gaps[worst]:.0e} of a tensor's norm)")


def make_job(model: DiffusionLM, lengths: Sequence[int], dtype: torch.dtype) -> Job:
    rollouts = [made_up_rollout(number, length) for number, length in enumerate(lengths)]
    advantages = np.random.default_rng(len(lengths)).standard_normal(len(lengths)).tolist()
    return with_log_probs(model, Job(rollouts, advantages, dtype))


def compare(contenders: dict[str, Contender], job: Job, rounds: int) -> dict[str, list[Result]]:
    """Results of `rounds` turns each; both must see the same loss."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            results[name].append(contender.run(job))
    losses = [turns[0].loss for turns in results.values()]
    tolerance = 1e-4 if job.dtype == torch.float32 else 5e-2
    if not math.isclose(*losses, rel_tol=tolerance):
        raise SystemExit(f"losses differ: {losses}")
    return results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="threads of both (default: cores)")
    parser.add_argument("--rounds", type=int, default=2, help="timed updates of each (default 2)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or processor time")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: the reference under autocast"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    print(
        f"processor: {processor()}; {args.threads} threads; torch {torch.__version__}; {args.dtype}; {args.clock} clock"
    )
    check(make_job(prepared_model("ours"), (60, 37), torch.float32))
    model = prepared_model("ours", dtype)
    spread, equal, warm_up = (make_job(model, lengths, dtype) for lengths in (SPREAD, EQUAL, (60,)))
    contenders = {name: Contender(name, args) for name in UPDATES}
    compare(contenders, warm_up, 1)
    timed = {"spread": compare(contenders, spread, args.rounds), "equal": compare(contenders, equal, args.rounds)}
    everything = replace(spread, responses_in_flight=len(SPREAD), rows_in_flight=len(SPREAD) * len(STEPS_SHARE))
    whole = compare(contenders, everything, 1)
    for contender in contenders.values():
        contender.close()
    report(args, spread, timed, whole)


def report(
    args: argparse.Namespace, spread: Job, timed: dict[str, dict[str, list[Result]]], whole: dict[str, list[Result]]
) -> None:
    rows = padded_rows(spread.rollouts, spread.longest)
    steps = sum(rollout.num_steps for rollout in spread.rollouts) / sum(-(-length // BLOCK) for length in SPREAD)
    seconds = {
        case: {name: statistics.mean(turn.seconds for turn in turns) for name, turns in results.items()}
        for case, results in timed.items()
    }
    small = {name: turns[-1].peak_bytes / GIB for name, turns in timed["spread"].items()}
    large = {name: turns[-1].peak_bytes / GIB for name, turns in whole.items()}
    load = os.getloadavg()[0]
    busy = f"; the machine was busy (load {load:.1f})" if load > args.threads + 0.5 else ""
    print(f"answers of {SPREAD} tokens, then {EQUAL}; K = {steps:.2f}; {len(rows.response_B)} reference rows{busy}")
    print(f"{'':12}{'update, spread':>16}{'equal lengths':>16}{'peak, whole':>14}{'small micro-batch':>20}")
    for name in UPDATES:
        print(
            f"{name:12}{seconds['spread'][name]:14.2f} s{seconds['equal'][name]:14.2f} s"
            f"{large[name]:10.2f} GiB{small[name]:16.2f} GiB"
        )
    result = {
        "speedup": round(seconds["spread"]["reference"] / seconds["spread"]["ours"], 2),
        "speedup_equal_lengths": round(seconds["equal"]["reference"] / seconds["equal"]["ours"], 2),
        "memory_ratio": round(large["ours"] / large["reference"], 3),
        "memory_ratio_small": round(small["ours"] / small["reference"], 3),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": args.threads,
        "clock": args.clock,
        "dtype": args.dtype,
        "load": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
