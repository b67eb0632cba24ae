"""Denoising steps of real sizes: milliseconds, tokens per second, share of the roofline measured in the same run."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_steps.record import Figure, Found, Setup, Step
from benchmarks.sampler import NEW_TOKENS, cached_loop, loop_network
from models import DiffusionLM
from sample import Sampler, SamplingConfig
from sample.graphs import Steps
from sample.slots import StepState
from sample.spans import Bounds
from train.memory.sizes import Network

POLLS = 8
STEPS_PER_BLOCK = 2
LARGER_BLOCKS = ((64, 8), (16, 16), (16, 32))
"""Slots and the tokens of a block."""
LADDER = ("eager", "graph", "flex", "fused", "budget")
"""What was added one after another: captured steps, FlexAttention, compiled layers, room for fewer commit spans."""


@contextmanager
def _up_to(rung: str) -> Iterator[dict[str, Any]]:
    """The sampler with what LADDER has up to this rung; settings of it."""
    height = LADDER.index(rung)
    with ExitStack() as stack:
        if height < LADDER.index("fused"):
            stack.enter_context(mock.patch("sample.sampler.suits", lambda device: False))
        if height < LADDER.index("budget"):
            stack.enter_context(mock.patch("sample.graphs.COMMIT_SHARES", (1.0,)))
        attention = "auto" if height >= LADDER.index("flex") else "sdpa"
        yield {"graphs": "off" if rung == "eager" else "auto", "attention": attention}


@dataclass(frozen=True)
class Case:
    """slots at once, tokens before the first block, tokens of a block."""

    slots: int
    context: int = 2048
    block: int = 4


class StepClock:
    """Seconds of each denoising step and the slots that it ran, while the block of `running` runs."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.steps: list[tuple[float, int]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        plain, clock = Steps.run, self

        def timed(steps: Steps, state: StepState, bounds: Bounds, count: int) -> None:
            clock.setup.synchronise()
            start = time.perf_counter()
            plain(steps, state, bounds, count)
            clock.setup.synchronise()
            clock.steps.append(((time.perf_counter() - start) / count, int(state.live.sum())))

        with mock.patch.object(Steps, "run", timed):
            yield

    def median(self, slots: int) -> float:
        """Of the steps with so many live slots, without the first three looks, which make and warm everything."""
        full = [seconds for seconds, live in self.steps if live == slots] or [seconds for seconds, _ in self.steps]
        return statistics.median(full[3:] or full)


def step_seconds(setup: Setup, model: DiffusionLM, case: Case, **options: Any) -> float:
    """Of a denoising step in which every slot is at work: siblings of one prompt, two steps a block."""
    context, blocks = setup.choose((case.context, POLLS * 4), (12, 8))
    config = SamplingConfig(
        strategy="low_confidence_static",
        steps_per_block=STEPS_PER_BLOCK,
        block_size=case.block,
        max_new_tokens=blocks * case.block,
        temperature=1.0,
        stop_ids=(),
        max_slots=case.slots,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 60, (context,), generator=generator).tolist()
    sampler, clock = Sampler(model, config), StepClock(setup)
    with clock.running():
        sampler.generate([prompt], n=case.slots)
    return clock.median(case.slots)


def floor_seconds(setup: Setup, model: DiffusionLM, case: Case) -> float:
    """The least that a step can take: weights read once, or the products of the positions that it needs, and every key
    and value read once. A block's commit rides in one of its steps."""
    net, width = Network.of(model, model.hf_config), model.dtype.itemsize
    copy, products = (setup.ceilings.get(name, 1.0) for name in ("copy_gb_s", "matmul_tf_s"))
    body_rows, head_rows = case.slots * case.block * (1 + 1 / STEPS_PER_BLOCK), case.slots * case.block
    seconds = 0.0
    for elements, rows in ((net.body, body_rows), (net.vocab * net.hidden, head_rows)):
        seconds += max(width * elements / copy / 1e9, 2 * rows * elements / products / 1e12)
    return seconds + width * net.key_value_elements * case.slots * case.context / copy / 1e9


def _measured(setup: Setup, model: DiffusionLM, name: str, case: Case, **options: Any) -> Found:
    seconds = step_seconds(setup, model, case, **options)
    yield f"{name}_ms", 1e3 * seconds
    yield f"{name}_tok_s", case.slots * case.block / STEPS_PER_BLOCK / seconds
    yield f"{name}_roofline", floor_seconds(setup, model, case) / seconds


def largest(setup: Setup) -> Found:
    """8B at four widths, in 16k of context and in larger blocks, and what each rung of the ladder brought."""
    model = setup.model("8B")
    slots = setup.choose((1, 16, 64, 128), (1, 2))
    found: dict[int, dict[str, float]] = {n: {} for n in slots[::2]}
    for rung in LADDER:
        for n, seconds in found.items():
            with _up_to(rung) as options:
                seconds[rung] = step_seconds(setup, model, Case(n), **options)
            yield f"8B_B{n}_{rung}_ms", 1e3 * seconds[rung]
    yield "8B_B1_graph_speedup", found[1]["eager"] / found[1]["graph"]
    for n in slots:
        yield from _measured(setup, model, f"8B_B{n}", Case(n))
    yield from _measured(setup, model, "8B_B8_16k", Case(setup.choose(8, 1), 16384))
    for n, block in LARGER_BLOCKS:
        yield from _measured(setup, model, f"8B_B{n}_block{block}", Case(setup.choose(n, 1), block=block))


def smaller(setup: Setup) -> Found:
    """1.7B and 4B at three widths."""
    for size in ("1.7B", "4B"):
        model = setup.model(size)
        for n in setup.choose((1, 64, 128), (1,)):
            yield from _measured(setup, model, f"{size}_B{n}", Case(n))
        del model


def loops(setup: Setup) -> Found:
    """Prompts one by one through transformers' cached loop, against the sampler alone and with 64 slots; four steps a
    block on either side."""
    model = setup.model("8B")
    network = loop_network(model)
    prompt, count = list(range(3, 3 + setup.choose(64, 9))), setup.choose(64, 2)
    with torch.device(setup.device):
        looped = setup.seconds(lambda: cached_loop(network, prompt, 0.0), 2)
    settings = SamplingConfig(block_size=4, steps_per_block=4, strategy="low_confidence_static", stop_ids=())
    config = {"max_new_tokens": NEW_TOKENS, "max_slots": count}
    sampler = Sampler(model, SamplingConfig(**(vars(settings) | config)))
    alone = setup.seconds(lambda: sampler.generate([prompt]), 2)
    together = setup.seconds(lambda: sampler.generate([prompt], n=count), 2)
    yield "loop_tok_s", NEW_TOKENS / looped
    yield "alone_speedup", looped / alone
    yield "together_speedup", count * looped / together


def _figures(name: str, floor_ms: str, tokens: str = "", least: float | None = None) -> tuple[Figure, ...]:
    return (
        Figure(f"{name}_ms", "ms a step", floor_ms),
        Figure(f"{name}_tok_s", "tokens/s", tokens),
        Figure(f"{name}_roofline", "share", least=least),
    )


STEPS = (
    Step(
        "sampler_8b",
        "sampler, 8B, two steps a block, context 2,048",
        110,
        largest,
        (
            *_figures("8B_B1", "7.0 (floor 5.15 on an H100)", "286", 0.6),
            *_figures("8B_B16", ""),
            *_figures("8B_B64", "19.5 (floor 13.5)", "6,560", 0.6),
            *_figures("8B_B128", "(floor 27.0)", "", 0.6),
            *_figures("8B_B8_16k", ""),
            *(figure for n, block in LARGER_BLOCKS for figure in _figures(f"8B_B{n}_block{block}", "")),
            *(
                Figure(f"8B_B{n}_{rung}_ms", "ms a step", predicted)
                for n, column in ((1, ("22-30", "9.9", "9.7", "7.1", "7.0")), (64, ("30", "28", "25", "21", "19.5")))
                for rung, predicted in zip(LADDER, column, strict=True)
            ),
            Figure("8B_B1_graph_speedup", "ratio", "2.5", least=2.5),
        ),
    ),
    Step(
        "sampler_small",
        "sampler, 1.7B and 4B",
        70,
        smaller,
        (
            *_figures("1.7B_B1", "(floor 1.2)", "(floor 1,631)"),
            *_figures("1.7B_B64", "(floor 6.6)", "(floor 19.5k)", 0.55),
            *_figures("1.7B_B128", ""),
            *_figures("4B_B1", "(floor 2.8)", "(floor 719)"),
            *_figures("4B_B64", "(floor 10.2)", "(floor 12.6k; 15.5k on an H200)", 0.6),
            *_figures("4B_B128", "", "9.3k on an H200"),
        ),
    ),
    Step(
        "loops",
        "against transformers' cached loop, 8B, one token a step",
        15,
        loops,
        (
            Figure("loop_tok_s", "tokens/s"),
            Figure("alone_speedup", "ratio"),
            Figure("together_speedup", "ratio"),
        ),
    ),
)
