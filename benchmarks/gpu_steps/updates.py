"""Updates and a whole RL step of real sizes: seconds, memory, and model flops as a share of the card's."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from benchmarks.gpu_steps.record import Figure, Found, Setup, Step, spans
from benchmarks.update import made_up_rollout
from configs.schema import TrainingConfig
from models import DiffusionLM
from sample import Rollout, Sampler, SamplingConfig
from train.algorithm.advantages import group_advantages
from train.algorithm.packing import MicroBatch, pack
from train.algorithm.replay import TrainingSample
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.optimizer import OptimizerSettings, UpdateSettings
from train.learner.policy import Policy
from train.learner.updater import Updater
from train.memory.sizes import Network

T = TypeVar("T")

TRAINING = TrainingConfig(rows_per_update=10**9, mixed_precision="bf16", beta=0.0)
PHASES = ("rollout", "reward", "replay", "update", "sync")
PROMPT, ANSWER, LONG_ANSWER = 200, 2000, 16000
H200_GIB = 100.0


def answers(setup: Setup, count: int, tokens: int) -> list[Rollout]:
    """Made-up answers of so many tokens to prompts of 200, decoded in 2.1 steps a block."""
    prompt, tokens, vocabulary = setup.choose((PROMPT, tokens, 150000), (8, 16, 60))
    return [made_up_rollout(number, tokens, prompt, vocabulary) for number in range(count)]


def useful_flops(model: DiffusionLM, samples: Sequence[TrainingSample]) -> float:
    """Of forward and backward passes over these samples: weights, logits of trained tokens, and attention of every
    token to those before it. What checkpointing computes again is not counted."""
    net = Network.of(model, model.hf_config)
    micro = pack(samples, range(len(samples)), torch.device("cpu"))
    products = 2 * net.body * micro.ids.numel() + 2 * net.vocab * net.hidden * len(micro.targets)
    pairs = float(micro.positions.sum() + micro.positions.numel())
    return 3.0 * (products + 4 * net.layers * net.heads * net.head_size * pairs)


def policy_of(setup: Setup, size: str) -> Policy:
    """A model of real sizes under AdamW with fp32 masters, layers computed again in the backward pass."""
    model = setup.model(size, torch.float32)
    model.enable_gradient_checkpointing()
    tokens = setup.choose(UpdateSettings.max_tokens, 64)
    updater = Updater(
        model, make_accelerator("bf16", setup.device), OptimizerSettings(), UpdateSettings(max_tokens=tokens)
    )
    sampling = SamplingConfig(block_size=4, max_new_tokens=setup.choose(256, 8)).for_model(model)
    return Policy(updater, Replay.of(model, sampling, TRAINING))


@contextmanager
def _cudnn(allowed: bool) -> Iterator[None]:
    """Masked attention through cuDNN, which this project keeps off."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _update(setup: Setup, policy: Policy, rollouts: Sequence[Rollout], name: str) -> Found:
    batch = policy.batch(rollouts, [(-1.0) ** i for i in range(len(rollouts))])
    seconds = setup.seconds(lambda: policy.train(batch, 1), 1)
    assert isinstance(policy.updater.model, DiffusionLM)
    flops = useful_flops(policy.updater.model, batch.samples)
    yield f"{name}_seconds", seconds
    yield f"{name}_mfu", flops / seconds / 1e12 / setup.ceilings.get("matmul_tf_s", 1.0)
    yield f"{name}_gib", setup.peak_gib()


def full_update(setup: Setup) -> Found:
    """1.7B with its optimizer: eight answers, attending by FlexAttention, by spans and by spans through cuDNN, and one
    answer of 16k tokens."""
    policy = policy_of(setup, "1.7B")
    rollouts = answers(setup, setup.choose(8, 2), ANSWER)
    yield from _update(setup, policy, rollouts, "1.7B")
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    with spans():
        yield "1.7B_spans_seconds", setup.seconds(lambda: policy.train(batch, 1), 1)
        with _cudnn(True):
            yield "1.7B_cudnn_seconds", setup.seconds(lambda: policy.train(batch, 1), 1)
    yield from _update(setup, policy, answers(setup, 1, LONG_ANSWER), "1.7B_16k")


def large_update(setup: Setup) -> Found:
    """8B, forward and backward alone, one answer; 4B with its optimizer where the card has room for it."""
    model = setup.model("8B")
    model.enable_gradient_checkpointing()
    model.train()
    (rollout,) = answers(setup, 1, ANSWER)
    sampling = SamplingConfig(block_size=4, max_new_tokens=ANSWER).for_model(model)
    samples = Replay.of(model, sampling, TRAINING).batch([rollout], [1.0]).samples
    micro = pack(samples, range(len(samples)), setup.device)

    seconds = setup.seconds(partial(_passes, model, micro), 1)
    yield "8B_passes_seconds", seconds
    flops = useful_flops(model, samples)
    yield "8B_passes_mfu", flops / seconds / 1e12 / setup.ceilings.get("matmul_tf_s", 1.0)
    yield "8B_passes_gib", setup.peak_gib()
    del model, micro
    if setup.tiny or setup.ceilings.get("memory_gib", 0.0) > H200_GIB:
        yield from _update(setup, policy_of(setup, "4B"), answers(setup, 2, ANSWER), "4B")


def _passes(model: DiffusionLM, micro: MicroBatch) -> None:
    model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets).mean().backward()
    model.zero_grad(set_to_none=True)


def rl_step(setup: Setup) -> Found:
    """One RL step of 1.7B by phase, after one that is not counted: 8 prompts x 16 answers of 256 tokens."""
    policy = policy_of(setup, "1.7B")
    model = policy.updater.model
    assert isinstance(model, DiffusionLM)
    prompts, group, tokens = setup.choose((8, 16, 256), (2, 2, 8))
    config = SamplingConfig(
        block_size=4, max_new_tokens=tokens, temperature=1.0, stop_ids=(), max_slots=prompts * group
    )
    sampler = Sampler(model, config)
    generator = torch.Generator().manual_seed(0)
    questions = torch.randint(3, 60, (prompts, setup.choose(PROMPT, 8)), generator=generator).tolist()
    for step in (1, 2):
        seconds = _phases(setup, policy, sampler, questions, group, step)
    whole = sum(seconds.values())
    yield "rl_step_seconds", whole
    for name, spent in seconds.items():
        yield f"rl_step_{name}_share", spent / whole
    yield "rl_step_rest_share", (seconds["replay"] + seconds["sync"]) / whole


def _phases(
    setup: Setup, policy: Policy, sampler: Sampler, questions: list[list[int]], group: int, step: int
) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = work()
        setup.synchronise()
        seconds[name] = time.perf_counter() - start
        return done

    keys = [(step, i, j) for i in range(len(questions)) for j in range(group)]
    rollouts = timed("rollout", lambda: sampler.generate(questions, n=group, keys=keys))
    rewards = timed("reward", lambda: [float(sum(r.token_ids) % 7) for r in rollouts])
    credit = group_advantages(rewards, group)
    batch = timed("replay", lambda: policy.batch(rollouts, credit.values, credit.kind))
    timed("update", lambda: policy.train(batch, step))
    timed("sync", lambda: sampler.update_weights(policy.updater.engine.weights()))
    return seconds


def _figures(name: str, seconds: str, mfu: str, least: float | None = None, gib: str = "") -> tuple[Figure, ...]:
    return (
        Figure(f"{name}_seconds", "s", seconds),
        Figure(f"{name}_mfu", "share", mfu, least=least),
        Figure(f"{name}_gib", "GiB", gib),
    )


STEPS = (
    Step(
        "update_small",
        "update of 1.7B with AdamW, answers of (200, 2000), checkpointing",
        60,
        full_update,
        (
            *_figures("1.7B", "", "", gib="41"),
            Figure("1.7B_spans_seconds", "s", "FlexAttention saves a third of its attention"),
            Figure("1.7B_cudnn_seconds", "s", "longer by its plans, 22 ms each"),
            *_figures("1.7B_16k", "", ""),
        ),
    ),
    Step(
        "update_large",
        "8B forward and backward of one answer; 4B with AdamW on an H200",
        45,
        large_update,
        (*_figures("8B_passes", "0.77", "0.43", least=0.38), *_figures("4B", "", "", gib="88-90")),
    ),
    Step(
        "rl_step",
        "one RL step of 1.7B: 8 prompts x 16 answers of 256 tokens",
        75,
        rl_step,
        (
            Figure("rl_step_seconds", "s"),
            *(Figure(f"rl_step_{name}_share", "share") for name in PHASES),
            Figure("rl_step_rest_share", "share", "0.05", most=0.05),
        ),
    ),
)
