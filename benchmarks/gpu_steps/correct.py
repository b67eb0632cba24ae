"""What must be right on a device before its speed counts, against the reference, the CPU or the eager path."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.counters import off_share, sampler_less_trainer
from benchmarks.gpu_steps.record import Figure, Found, Setup, Step, spans
from benchmarks.sampler import random_model
from models import load_model
from models.tiny import random_prompts, tiny_model
from sample import Rollout, Sampler, SamplingConfig
from train.algorithm.packing import pack
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.updater import Updater

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
FAMILIES = ("sdar", "dream", "llada", "sdar_moe", "llada2", "mmada")
REFERENCES = ("sdar", "sdar_tied", "sdar_moe")
"""SDAR's, whose steps of the same settings are alike."""
MIXTURES = ("sdar_moe", "llada2")
STRATEGIES: dict[str, dict[str, Any]] = {
    "low_confidence_static": {},
    "low_confidence_dynamic": {},
    "sequential": {},
    "entropy_bounded": {"target": "neg_entropy"},
    "random order": {"strategy": "low_confidence_static", "target": "random"},
    "edits": {"strategy": "low_confidence_dynamic", "edit_threshold": 0.2, "remask_threshold": 0.2},
}


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of fp32 are products of fp32, whatever ran before in this process."""
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    try:
        yield
    finally:
        for kind, allowed in zip(kinds, before, strict=True):
            kind.allow_tf32 = allowed


def tokens(setup: Setup) -> Found:
    """Every family samples the CPU's tokens, and the trainer finds the sampler's log-probabilities."""
    with exact_products():
        for family in FAMILIES:
            equal, gap = cpu_and_trainer(setup, family)
            yield f"cpu_tokens_{family}", float(equal)
            yield f"trainer_gap_{family}", gap


def references(setup: Setup) -> Found:
    """Decodes of the original code."""
    with exact_products():
        for name in REFERENCES:
            yield f"reference_{name}", *decodes_as_the_reference(setup, name)


def captures(setup: Setup) -> Found:
    """Captured steps give the bits of eager ones."""
    with exact_products():
        for name in STRATEGIES:
            yield f"graph_{name}", *graph_is_eager(setup, name)
    for family in MIXTURES:  # torch has grouped products of fp32 experts only with the host's help
        yield f"graph_{family}_bf16", *graph_is_eager(setup, "low_confidence_dynamic", family, "bfloat16")


def numerics(setup: Setup) -> Found:
    """Gradients through both kinds of attention; the sampler's bf16 against the trainer's."""
    if setup.device.type == "cuda":  # FlexAttention has no gradient on a CPU
        with exact_products():
            yield "flex_gradients", flex_against_spans(setup)
    gap_N = _bf16_gap(setup)
    yield "bf16_mean_abs", float(np.abs(gap_N).mean())
    yield "bf16_off_share", off_share(gap_N)


def decodes_as_the_reference(setup: Setup, name: str) -> tuple[float, str]:
    """The share of decodes in which the checkpoint tests/golden/`name` gives the tokens and step maps that the original
    code gave; those of the same settings run at once, for each setting is compiled and captured anew."""
    model = load_model(GOLDEN / name, device=setup.device)
    cases = json.loads((GOLDEN / name / "decode.json").read_text())["cases"]
    alike: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        alike.setdefault(repr(_config_of(case)), []).append(case)
    unlike = []
    for together in alike.values():
        sampler = Sampler(model, _config_of(together[0]))
        for case, rollout in zip(together, sampler.generate([case["prompt_ids"] for case in together]), strict=True):
            R = rollout.num_response_tokens
            if rollout.token_ids != case["token_ids"][:R] or rollout.step_map != case["step_map"][:R]:
                unlike.append(case["name"])
    return 1.0 - len(unlike) / len(cases), f"{len(cases)} decodes; unlike: {', '.join(unlike) or 'none'}"


def _config_of(case: Mapping[str, Any]) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=case["gen_length"],
        block_size=case["block_size"],
        steps_per_block=case["steps_per_block"],
        strategy=case["strategy"],
        threshold=case["threshold"] if case["threshold"] is not None else 0.9,
        stop_ids=tuple(case.get("stop_ids") or ()),
    )


def cpu_and_trainer(setup: Setup, family: str) -> tuple[bool, float]:
    """A tiny model in fp32: whether the device samples the CPU's tokens, and the largest difference between the
    sampler's log-probabilities and the trainer's there."""
    settings = SamplingConfig(max_new_tokens=12, block_size=4, steps_per_block=4, temperature=1.0, threshold=0.4)
    prompts = random_prompts([9, 1, 6, 3, 12, 7, 10])
    tokens = []
    for device in (torch.device("cpu"), setup.device):
        model = tiny_model(family).to(device)
        rollouts = Sampler(model, settings).generate(prompts, n=2)
        tokens.append([rollout.token_ids for rollout in rollouts])
    batch = Replay.of(model, settings.for_model(model)).batch(rollouts, [1.0] * len(rollouts))
    updater = Updater(model, make_accelerator("no", setup.device))
    trained = np.concatenate(updater.outputs(batch.samples, range(len(batch.samples))))
    return tokens[0] == tokens[1], float(np.abs(trained - np.concatenate(batch.logp_rollout)).max())


def graph_is_eager(setup: Setup, name: str, family: str = "sdar", dtype: str = "float32") -> tuple[float, str]:
    """Whether captured steps give the bits of the same steps run operation by operation; how many were captured, and
    what differs: operation by operation they run twice, which tells a capture from kernels that round anew each time or
    for each version that was compiled."""
    config = SamplingConfig(
        **{"strategy": name} | STRATEGIES[name],
        **{"max_new_tokens": 24, "block_size": 4, "steps_per_block": 2, "temperature": 1.0, "max_slots": 4},  # type: ignore[arg-type]
    )
    answers, captured = [], 0
    for capturing in (False, False, True):
        sampler = Sampler(tiny_model(family, dtype=dtype).to(setup.device), config)
        if not capturing or setup.device.type == "cpu":
            sampler.capture = _uncaptured
        sampler.steps_between_polls = 8
        answers.append(sampler.generate(random_prompts([9, 1, 6, 3, 12, 7]), n=2))
        captured = sampler.captured_keys
    plain, again, replayed = answers
    remark = f"{captured} steps captured"
    for what, other in (("run twice", again), ("captured", replayed)):
        if (difference := _difference(plain, other)) is not None:
            remark += f"; {what}: {difference}"
    return float(_difference(plain, replayed) is None and captured > 0), remark


def _difference(ones: Sequence[Rollout], others: Sequence[Rollout]) -> str | None:
    """What tells responses apart, None = nothing."""
    pairs = list(zip(ones, others, strict=True))
    if all(_bits(one) == _bits(other) for one, other in pairs):
        return None
    tokens = sum(one.canvas_ids != other.canvas_ids for one, other in pairs)
    steps = sum(one.canvas_step_map != other.canvas_step_map for one, other in pairs)
    gaps = [
        float(np.abs(np.subtract(one.canvas_logprobs, other.canvas_logprobs)).max())
        for one, other in pairs
        if one.canvas_ids == other.canvas_ids
    ]
    gap = max(gaps, default=0.0)
    return f"other tokens in {tokens} of {len(pairs)}, other steps in {steps}, log-probabilities within {gap:.1g}"


def flex_against_spans(setup: Setup) -> float:
    """The largest difference between gradients through FlexAttention and through spans, of a tiny model in fp32, as a
    share of the largest gradient."""
    model = tiny_model("sdar").to(setup.device)
    config = SamplingConfig(max_new_tokens=40, block_size=4, temperature=1.0, threshold=0.4, stop_ids=())
    rollouts = Sampler(model, config).generate(random_prompts([9, 1, 30, 3]), n=2)
    samples = Replay.of(model, config.for_model(model)).batch(rollouts, [1.0] * len(rollouts)).samples
    found = []
    for context in (nullcontext(), spans()):
        with context:
            micro = pack(samples, range(len(samples)), setup.device)
        model.zero_grad()
        model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())


def _uncaptured(step: Callable[[], None]) -> Callable[[], None]:
    """A step's fixed shapes without a capture."""
    return step


def _bits(rollout: Rollout) -> tuple[object, ...]:
    return rollout.canvas_ids, rollout.canvas_step_map, rollout.canvas_logprobs, rollout.events


def _bf16_gap(setup: Setup) -> np.ndarray:
    if setup.tiny:
        model, prompts = tiny_model("sdar", dtype="bfloat16"), random_prompts([9] * 4)
    else:
        model = random_model(torch.bfloat16, sharpness=16.0)
        prompts = random_prompts([64] * 8, vocab_size=model.text_vocab_size, seed=1)
    return sampler_less_trainer(model.to(setup.device), prompts)


def _passed(name: str) -> Figure:
    return Figure(name, "passed", "1", least=1.0)


def _of_families() -> Iterator[Figure]:
    for family in FAMILIES:
        yield _passed(f"cpu_tokens_{family}")
        yield Figure(f"trainer_gap_{family}", "nats", "1e-5", most=1e-4)


STEPS = (
    Step("tokens", "tokens of the CPU, and the trainer", 110, tokens, tuple(_of_families())),
    Step(
        "references",
        "decodes of the original code",
        60,
        references,
        tuple(_passed(f"reference_{name}") for name in REFERENCES),
    ),
    Step(
        "captures",
        "captured steps against eager ones",
        60,
        captures,
        (
            *(_passed(f"graph_{name}") for name in STRATEGIES),
            *(_passed(f"graph_{family}_bf16") for family in MIXTURES),
        ),
    ),
    Step(
        "numerics",
        "gradients of FlexAttention; bf16 in sampler and trainer",
        40,
        numerics,
        (
            Figure("flex_gradients", "share", "1e-5", most=1e-4),
            Figure("bf16_mean_abs", "nats", "2.5e-3", most=4e-3),
            Figure("bf16_off_share", "share", "0", most=0.0),
        ),
    ),
)
