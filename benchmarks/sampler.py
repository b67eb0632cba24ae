"""Speed of sampling: slots, fused commits and continuous batching against the usual loop, one sequence at a time.

    python benchmarks/sampler.py [--threads 2] [--rounds 4] [--temperature 0] [--clock wall]

A random SDAR of 64M parameters (10 layers, hidden 512, vocabulary 32k) with a sharpened head answers 32 prompts of 64
tokens with 64 tokens each, blocks of 4, dynamic unmasking at 0.9. The loop that it is compared with is what public
generate scripts do, written well: a key-value cache, a forward per denoising step, one more to commit the block, logits
at every position that is run. Both run in turns: in each round the loop answers its share of the prompts, ours all of
them, and means are compared. At temperature 0 both must give the same tokens. On a busy machine use `--threads 1
--clock cpu`: processor time instead of wall time.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, Qwen3ForCausalLM

from models import DiffusionLM, load_model
from models.attention import block_causal_mask
from sample import Sampler, SamplingConfig
from sample.denoiser import Denoiser
from sample.strategies import best

Clock = Callable[[], float]
BLOCK, THRESHOLD, PROMPT_TOKENS, NEW_TOKENS, MASK_ID = 4, 0.9, 64, 64, 1
SHARPNESS = 64.0
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")
CONFIG = {
    "model_type": "sdar",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "block_size": BLOCK,
    "mask_token_id": MASK_ID,
    "eos_token_id": 2,
}


@dataclass
class Side:
    """What one contender did over all rounds; `rate` is the best matrix product seen beside it, flop per second."""

    name: str
    answer: Callable[[list[list[int]]], list[list[int]]]
    work: "Work"
    dtype: torch.dtype
    answers: list[list[int]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    rate: float = 0.0

    def turn(self, prompts: list[list[int]], clock: Clock) -> None:
        with self.work:
            start = clock()
            self.answers += self.answer(prompts)
            self.seconds += clock() - start
        self.tokens += len(prompts) * NEW_TOKENS
        self.rate = max(self.rate, matrix_rate(self.dtype, clock))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def matrix_share(self) -> float:
        return self.work.flops / self.seconds / self.rate


def random_model(dtype: torch.dtype, sharpness: float = SHARPNESS) -> DiffusionLM:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        model = load_model(folder, random_init_seed=0)
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(sharpness)
    return model.copy_as(dtype)


def loop_network(model: DiffusionLM) -> Any:
    """transformers' own model with its usual attention, over the same weights in memory."""
    with init_empty_weights(include_buffers=False):
        network = Qwen3ForCausalLM._from_config(copy.deepcopy(model.hf_config), attn_implementation="sdpa").eval()
    network.load_state_dict(model.state_dict(), assign=True)
    return network.to(model.device)


@torch.inference_mode()
def cached_loop(network: Any, prompt: list[int], temperature: float) -> list[int]:
    """One sequence: prefill, then per block its denoising forwards and one that keeps its keys and values."""
    cache = DynamicCache(config=network.config)
    L = len(prompt)
    mask = block_causal_mask(L, BLOCK)[None, None]
    network(input_ids=torch.tensor([prompt]), attention_mask=mask, past_key_values=cache, use_cache=True)
    answer: list[int] = []
    for start in range(L, L + NEW_TOKENS, BLOCK):
        block = torch.full((1, BLOCK), MASK_ID)
        positions = torch.arange(start, start + BLOCK)[None]

        def forward(ids: Tensor, positions: Tensor = positions) -> Tensor:
            return network(
                input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, is_causal=False
            ).logits

        while (masked := block == MASK_ID).any():
            logits = forward(block).float()
            cache.crop(-BLOCK)
            probability = logits.softmax(-1)
            logits[..., MASK_ID] = -torch.inf
            if temperature == 0.0:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial((logits[0] / temperature).softmax(-1), 1).T
            score = probability.gather(-1, token[..., None])[..., 0]
            chosen = masked & (score > THRESHOLD)
            if not chosen.any():
                chosen = best(score, masked, torch.ones(1))
            block = torch.where(chosen, token, block)
        forward(block)
        answer += block[0].tolist()
    return answer


class Work:
    """Counts forwards of a body, positions through body and head, and the matrix work that they are."""

    def __init__(self, body: Any, head: Any):
        self.body, self.head = body, head
        self.forwards = self.body_positions = self.head_positions = 0
        self.head_size = head.weight.numel()
        self.body_size = sum(p.numel() for p in body.layers.parameters())

    def __enter__(self) -> "Work":
        self.hooks = [
            self.body.register_forward_pre_hook(self._body, with_kwargs=True),
            self.head.register_forward_pre_hook(self._head),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _body(self, module: Any, args: Any, kwargs: Any) -> None:
        self.forwards += 1
        self.body_positions += kwargs["input_ids"].numel()

    def _head(self, module: Any, args: Any) -> None:
        self.head_positions += args[0].shape[:-1].numel()

    @property
    def flops(self) -> float:
        return 2.0 * (self.body_positions * self.body_size + self.head_positions * self.head_size)


class OutsideOps(TorchDispatchMode):
    """Counts aten operations outside the model's body and head."""

    def __init__(self, model: DiffusionLM):
        super().__init__()
        self.count = self.steps = self.inside = 0
        for module in (model.model, model.lm_head):
            module.register_forward_pre_hook(lambda *_: self._enter(1))
            module.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, by: int) -> None:
        self.inside += by

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not self.inside
        return func(*args, **(kwargs or {}))


def outside_ops_per_step(prompts: list[list[int]], config: SamplingConfig) -> float:
    model = random_model(torch.float32)
    counter, plain_step = OutsideOps(model), Denoiser.step

    def counted(denoiser: Denoiser, *args: Any) -> None:
        counter.steps += 1
        with counter:
            plain_step(denoiser, *args)

    with mock.patch.object(Denoiser, "step", counted):
        Sampler(model, config).generate(prompts)
    return counter.count / counter.steps


def matrix_rate(dtype: torch.dtype, clock: Clock) -> float:
    """Flop per second of a large matrix product, the best of several."""
    a, b = torch.randn(768, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    seconds = []
    for _ in range(8):
        start = clock()
        torch.nn.functional.linear(a, b)
        seconds.append(clock() - start)
    return 2.0 * 768 * 1024 * 1024 / min(seconds)


def processor() -> list[str]:
    """The vector extensions of this processor that matter here."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    return [name for name in ("avx2", "avx512f", *BFLOAT16_UNITS) if name in flags]


def has_bfloat16() -> bool:
    return bool(set(BFLOAT16_UNITS) & set(processor()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of both (default: cores)"
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds (default 4)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts (default 32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 = greedy, the default")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="wall time, or processor time")
    parser.add_argument(
        "--skip-bf16", action="store_true", help="leave out bf16, which is slow on processors without it"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        3, int(str(CONFIG["vocab_size"])), (args.prompts, PROMPT_TOKENS), generator=generator
    ).tolist()
    config = SamplingConfig(
        max_new_tokens=NEW_TOKENS,
        threshold=THRESHOLD,
        temperature=args.temperature,
        stop_ids=[],
        max_slots=args.prompts,
    )
    dtypes = [torch.float32] if args.skip_bf16 else [torch.float32, torch.bfloat16]
    samplers = {dtype: Sampler(random_model(dtype), config) for dtype in dtypes}
    network = loop_network(samplers[torch.float32].model)

    def loop_answers(prompts: list[list[int]]) -> list[list[int]]:
        return [cached_loop(network, prompt, args.temperature) for prompt in prompts]

    loop = Side("loop, float32", loop_answers, Work(network.model, network.lm_head), torch.float32)
    ours = [our_side(sampler) for sampler in samplers.values()]
    for side in (loop, *ours):
        side.answer(prompts[:1])
    for i in range(args.rounds):
        loop.turn(prompts[len(prompts) * i // args.rounds : len(prompts) * (i + 1) // args.rounds], clock)
        for side in ours:
            if i == 0 or side.dtype == torch.float32 or has_bfloat16():
                side.turn(prompts, clock)
    report(args, prompts, samplers[torch.float32], loop, ours)


def our_side(sampler: Sampler) -> Side:
    def answer(prompts: list[list[int]]) -> list[list[int]]:
        return [rollout.token_ids for rollout in sampler.generate(prompts)]

    model = sampler.model
    return Side(
        f"ours, {str(model.dtype).removeprefix('torch.')}", answer, Work(model.model, model.lm_head), model.dtype
    )


def report(args: argparse.Namespace, prompts: list[list[int]], sampler: Sampler, loop: Side, ours: list[Side]) -> None:
    rollouts = sampler.generate(prompts)
    blocks = NEW_TOKENS // BLOCK
    with Work(sampler.model.model, sampler.model.lm_head) as alone:
        (first,) = sampler.generate(prompts[:1])
    result = {
        "processor": " ".join(processor()),
        "bf16_units": has_bfloat16(),
        "threads": args.threads,
        "clock": args.clock,
        "steps_per_block": round(sum(r.num_steps for r in rollouts) / len(rollouts) / blocks, 3),
        "forwards_per_block_beyond_steps": (alone.forwards - 1 - first.num_steps) / blocks,
        "aten_ops_per_step": round(outside_ops_per_step(prompts[:4], sampler.config), 1),
        "loop_tokens_per_second": round(loop.tokens_per_second, 2),
    }
    print(f"processor: {result['processor']}; {args.threads} threads; torch {torch.__version__}")
    if not has_bfloat16():
        print("this processor has neither avx512_bf16 nor amx: bfloat16 is emulated, and timed in one round only")
    print(f"{args.clock} clock; load of the machine {os.getloadavg()[0]:.1f}")
    if args.temperature == 0.0:
        print(f"same tokens as the loop: {sum(map(eq, loop.answers, ours[0].answers))} of {len(loop.answers)} answers")
    extra = result["forwards_per_block_beyond_steps"]
    print(f"denoising steps a block (K): {result['steps_per_block']}; forwards a block, prefill aside: K + {extra:g}")
    print(f"aten operations a step outside the model: {result['aten_ops_per_step']}")
    print(f"{'':20}{'tok/s':>10}{'speed-up':>10}{'matrix rate GF/s':>18}{'share of it':>13}")
    for side in (loop, *ours):
        speedup = side.tokens_per_second / loop.tokens_per_second
        rate, share = side.rate / 1e9, side.matrix_share
        print(f"{side.name:20}{side.tokens_per_second:10.1f}{speedup:10.2f}{rate:18.0f}{share:13.0%}")
    for side, suffix in zip(ours, ("", "_bf16"), strict=False):
        result[f"speedup{suffix}"] = round(side.tokens_per_second / loop.tokens_per_second, 2)
        result[f"tokens_per_second{suffix}"] = round(side.tokens_per_second, 1)
        result[f"matrix_share{suffix}"] = round(side.matrix_share, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
