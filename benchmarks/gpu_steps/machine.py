"""Ceilings of the card, attention by itself, and the choice of tokens by itself."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_steps.record import Figure, Found, Setup, Step
from models.compiled import compiled_on
from models.flex import blocks_before, slot_attention
from sample import SamplingConfig
from sample.targets import Coordinates
from sample.unmask import propose

ROWS = (8, 96, 416, 832)
"""Rows of a matrix product in a step: 1, 16, 64 and 128 slots at 4 + 2.5 positions a slot."""
SLOTS = (1, 64, 128)
LARGER_BLOCKS = (8, 16, 32)
CHOICES = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "top-p .95": {"temperature": 1.0, "top_p": 0.95},
}


def ceilings(setup: Setup) -> Found:
    """What no step can exceed: the rate of copies, of a large product, of the products of an 8B step."""
    device = setup.device
    if device.type == "cuda":
        yield "memory_gib", torch.cuda.get_device_properties(device).total_memory / 2**30
    yield "copy_gb_s", _copy_rate(setup) / 1e9
    size = setup.choose(8192, 64)
    square = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    yield "matmul_tf_s", 2 * size**3 / setup.seconds(lambda: square @ square) / 1e12
    D, inner = setup.choose((4096, 12288), (32, 48))
    shapes = [(D, D + 2 * D // 4), (D, D), (D, 2 * inner), (inner, D)]
    weights = [torch.randn(a, b, dtype=torch.bfloat16, device=device) for a, b in shapes]
    for rows in ROWS:
        inputs = [torch.randn(rows, a, dtype=torch.bfloat16, device=device) for a, _ in shapes]

        def layer(inputs: list[Tensor] = inputs) -> None:
            for x, weight in zip(inputs, weights, strict=True):
                torch.mm(x, weight)

        work = sum(2 * rows * a * b for a, b in shapes)
        yield f"layer_{rows}_rows_tf_s", work / setup.seconds(layer, 50) / 1e12
    query, key, bias = _step_attention(setup, 4)
    chosen = SDPBackend(torch._fused_sdp_choice(query, key, key, bias))
    yield "masked_sdpa_backend", float(chosen.value), chosen.name


def _copy_rate(setup: Setup) -> float:
    """Bytes a second, read and written."""
    source = torch.empty(setup.choose(2**31, 2**20), dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / setup.seconds(lambda: target.copy_(source))


def _step_attention(setup: Setup, n: int, block: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of n slots, keys (also taken for values), and the bias that cuts them, as a step of an 8B has them:
    two blocks of positions x 4 heads of a group, 8 key heads, 2,048 keys."""
    T, G, d = setup.choose((2048, 8, 128), (32, 2, 16))
    generator, rows = torch.Generator(setup.device).manual_seed(0), 8 * block
    query, key = (
        torch.randn(n, G, L, d, dtype=torch.bfloat16, device=setup.device, generator=generator) for L in (rows, T)
    )
    bias = torch.zeros(n, 1, rows, T, dtype=torch.bfloat16, device=setup.device)
    bias[..., -5:] = -torch.inf
    return query, key, bias


def attention(setup: Setup) -> Found:
    """A step's attention alone, as a share of the rate of copies; its first call apart. The largest number of slots
    runs on random keys of 2,048 positions, all of which are read. Larger blocks by the sampler's kernel alone."""
    for n in setup.choose(SLOTS, SLOTS[:1]):
        tensors = _step_attention(setup, n)
        for name, attend in _sampler_kernel(setup, *tensors[:2]) + _sdpa_kernels(setup, *tensors):
            yield _share(setup, f"{name}_{n}_share", tensors[1], attend)
    for block in LARGER_BLOCKS:
        query, key, _ = _step_attention(setup, 16, block)
        for name, attend in _sampler_kernel(setup, query, key):
            yield _share(setup, f"{name}_block{block}_share", key, attend)


def _share(setup: Setup, figure: str, key: Tensor, attend: Callable[[], Tensor]) -> tuple[str, float, str]:
    """Of the rate of copies at which keys and as many values are read."""
    start = time.perf_counter()
    try:
        attend()
    except RuntimeError as error:  # not every kernel takes every shape on every card
        return figure, 0.0, f"cannot run: {str(error).splitlines()[0][:80]}"
    setup.synchronise()
    first = time.perf_counter() - start
    rate = 2 * key.numel() * key.element_size() / setup.seconds(attend, 30) / 1e9
    return figure, rate / setup.ceilings.get("copy_gb_s", rate), f"first call {first:.2f} s"


Kernels = list[tuple[str, Callable[[], Tensor]]]


def _sampler_kernel(setup: Setup, query: Tensor, key: Tensor) -> Kernels:
    if setup.device.type != "cuda":
        return []
    n, G, rows, d = query.shape
    seen_nQ = torch.full((n, rows // 4), key.shape[2] - 5, dtype=torch.int32, device=setup.device)
    blocks, spread = blocks_before(seen_nQ, key.shape[2]), query.reshape(n, 4 * G, rows // 4, d)
    return [("flex", lambda: slot_attention(spread, key, key, seen_nQ, blocks, d**-0.5, recurs=True))]


def _sdpa_kernels(setup: Setup, query: Tensor, key: Tensor, bias: Tensor) -> Kernels:
    def sdpa(backend: SDPBackend) -> Callable[[], Tensor]:
        def attend() -> Tensor:
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(query, key, key, attn_mask=bias)

        return attend

    kernels = {"math": SDPBackend.MATH}
    if setup.device.type == "cuda":
        kernels |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return [(name, sdpa(backend)) for name, backend in kernels.items()]


def choices(setup: Setup) -> Found:
    """The choice of a token at 256 positions over the vocabulary, by filter."""
    N, V = setup.choose((256, 151936), (4, 64))
    generator = torch.Generator(setup.device).manual_seed(0)
    logits_NV = torch.randn(N, V, device=setup.device, generator=generator) * 4.0
    place_N = torch.arange(N, device=setup.device)
    where = Coordinates(place_N, place_N, place_N)
    choose_tokens = compiled_on(setup.device, propose)
    for name, chosen in CHOICES.items():
        rules = SamplingConfig(**chosen).rules()  # type: ignore[arg-type]

        def choose(rules: object = rules) -> None:
            choose_tokens(logits_NV.clone(), where, rules, 1)  # type: ignore[arg-type]

        yield f"{name}_ms", 1e3 * setup.seconds(choose)


STEPS = (
    Step(
        "machine",
        "ceilings of the card",
        20,
        ceilings,
        (
            Figure("memory_gib", "GiB"),
            Figure("copy_gb_s", "GB/s", "3,000 (H100), 4,300 (H200)"),
            Figure("matmul_tf_s", "TF/s", "798 (H100), 788 (H200)"),
            *(Figure(f"layer_{rows}_rows_tf_s", "TF/s", "80-85% of the roofline") for rows in ROWS),
            Figure("masked_sdpa_backend", "number", "efficient (cuDNN is off)"),
        ),
    ),
    Step(
        "attention",
        "attention of a step alone: share of the copy rate",
        50,
        attention,
        tuple(
            Figure(f"{name}_{n}_share", "share", predicted)
            for n in SLOTS
            for name, predicted in (("flex", "0.8"), ("math", ""), ("efficient", "0.4 at 1 slot"), ("cudnn", ""))
        )
        + tuple(Figure(f"flex_block{block}_share", "share") for block in LARGER_BLOCKS),
    ),
    Step(
        "choice",
        "choice of 256 tokens over 151,936",
        30,
        choices,
        tuple(
            Figure(f"{name}_ms", "ms", predicted)
            for name, predicted in zip(CHOICES, ("0.4", "0.4", "1", "3 with a sort, 1.5 without"), strict=True)
        ),
    ),
)
