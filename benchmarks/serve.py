"""The server under load: tokens a second and waiting times against the number of clients.

    python benchmarks/serve.py [--clients 1 4 16 64] [--requests 4] [--tokens 64] [--slots 32] [--model PATH]

Without --model a random SDAR of 64M parameters (benchmarks/sampler.py) answers; it never stops early, so that every
answer has --tokens tokens. The server is a process of its own, asked over HTTP by as many connections as there are
clients; each streams --requests answers, one after the other, to prompts of 48 to 80 tokens. Printed as JSON lines: the
clients, tokens a second over all of them, seconds to the first text and to the whole answer (median, and the slowest
tenth), and tokens a denoising step. The same prompts through `Sampler.generate` in one call come first: what the server
adds is the difference at many clients.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from benchmarks.sampler import CONFIG, SHARPNESS
from models import DiffusionLM, load_model
from models.tiny import random_prompts
from sample import Sampler, SamplingConfig

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD, VOCABULARY = 0.9, 32000  # CONFIG's


def write_model(folder: Path) -> Path:
    """The random checkpoint, with a tokenizer that names its ids and has none that ends an answer."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": None}))
    tokenizer = Tokenizer(WordLevel({f"{i} ": i for i in range(VOCABULARY)}, unk_token="0 "))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model = load_model(folder, random_init_seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(SHARPNESS)
    model.save(folder)
    return folder


def start(model: Path, slots: int, tokens: int) -> tuple[subprocess.Popen[str], str]:
    """The server, once it answers, and its address."""
    arguments = [f"model={model}", "port=0", "temperature=0", f"max_slots={slots}", f"threshold={THRESHOLD}"]
    arguments += [f"max_new_tokens={tokens}", f"max_sequence_tokens={tokens + 96}", f"max_queue={1 << 16}"]
    process = subprocess.Popen([sys.executable, ROOT / "serve.py", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if " answers at " in line:
            return process, line.split(" answers at ")[1].split("/v1")[0]
    raise SystemExit("the server did not start")


async def client(http: httpx2.AsyncClient, prompts: Sequence[list[int]], tokens: int) -> list[tuple[float, float, int]]:
    """(seconds to the first text, to the end, tokens) of each answer, asked one after the other."""
    found = []
    for prompt in prompts:
        begun, first, count = time.perf_counter(), None, 0
        body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        async with http.stream("POST", "/v1/completions", json=body | {"logprobs": 0}) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if first is None and line.startswith("data: {"):
                    first = time.perf_counter() - begun
                if '"completion_tokens"' in line:
                    count = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
        found.append((first or 0.0, time.perf_counter() - begun, count))
    return found


def slowest_tenth(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.9 * (len(values) - 1))]


async def load(url: str, clients: int, prompts: Sequence[list[int]], tokens: int) -> dict[str, Any]:
    """One row of the curve: the prompts shared out to the clients."""
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=3600, limits=limits) as http:
        begun = time.perf_counter()
        each = await asyncio.gather(*(client(http, prompts[i::clients], tokens) for i in range(clients)))
        seconds = time.perf_counter() - begun
    answers = [answer for of_client in each for answer in of_client]
    first, whole, counts = zip(*answers, strict=True)
    row = {"clients": clients, "answers": len(answers), "tokens_per_second": round(sum(counts) / seconds, 1)}
    for name, values in (("first_text_seconds", first), ("answer_seconds", whole)):
        row |= {name: round(median(values), 3), f"{name}_slowest_tenth": round(slowest_tenth(values), 3)}
    return row


def prompts_of(count: int, model: DiffusionLM) -> list[list[int]]:
    """48 to 80 tokens, none of them the mask or an end."""
    special = {*range(4), model.mask_id, *model.eos_ids}
    most = min(VOCABULARY, model.text_vocab_size)
    return random_prompts([48 + i * 7 % 33 for i in range(count)], vocab_size=most, seed=1, avoid=special)


def alone(model: DiffusionLM, slots: int, prompts: Sequence[list[int]], tokens: int) -> dict[str, Any]:
    """The same prompts in one call of the sampler."""
    sampler = Sampler(model, SamplingConfig(max_new_tokens=tokens, max_slots=slots, threshold=THRESHOLD))
    sampler.generate(prompts[:2])
    begun = time.perf_counter()
    rollouts = sampler.generate(prompts)
    seconds = time.perf_counter() - begun
    total = sum(len(rollout.token_ids) for rollout in rollouts)
    steps = sum(rollout.num_steps for rollout in rollouts)
    return {"sampler_tokens_per_second": round(total / seconds, 1), "tokens_per_step": round(total / steps, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=4, help="answers that each client asks for")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--model", type=Path, help="checkpoint folder; its answers may stop early")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.model or write_model(Path(folder))
        model = load_model(place)
        prompts = prompts_of(max(options.clients) * options.requests, model)
        print(json.dumps(alone(model, options.slots, prompts, options.tokens)), flush=True)
        del model
        process, url = start(place, options.slots, options.tokens)
        try:
            for clients in options.clients:
                row = asyncio.run(load(url, clients, prompts[: clients * options.requests], options.tokens))
                print(json.dumps(row | {"load_average": round(os.getloadavg()[0], 1)}), flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    main()
