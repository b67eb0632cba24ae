"""What a step of benchmarks/gpu.py is to measure, and what it has to go by."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from models import DiffusionLM
from models.checkpoint import empty_network
from models.spec import CheckpointSpec
from models.tiny import TINY_CONFIGS

GIB = 2**30
SDAR: dict[str, dict[str, int]] = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""Sizes of the SDAR checkpoints in their config.json."""


@dataclass(frozen=True)
class Figure:
    """One number to be measured. predicted: what was computed before any GPU was at hand, as text; least, most: what is
    asked for, None = nothing."""

    name: str
    unit: str
    predicted: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        """What is asked for, for people."""
        bounds = ((">=", self.least), ("<=", self.most))
        return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def missed_by(self, value: float) -> bool:
        """Whether a measured value is not what is asked for, as nan never is."""
        enough = self.least is None or value >= self.least
        return not (enough and (self.most is None or value <= self.most))


Found = Iterator[tuple[str, float] | tuple[str, float, str]]
"""Names of figures with what was measured and, where it helps, a remark. A check has 1 for passed, 0 for failed."""


@dataclass(frozen=True)
class Setup:
    """device: of the step. tiny: a rehearsal, in which every size is the smallest that runs the same code. ceilings:
    what step `machine` has measured of this card."""

    device: torch.device
    tiny: bool = False
    ceilings: Mapping[str, float] = field(default_factory=dict)

    def choose(self, real: Any, tiny: Any) -> Any:
        """One of two sizes: of a real run, of a rehearsal."""
        return tiny if self.tiny else real

    def synchronise(self) -> None:
        """Waits until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Mean time of a call after one that is not counted."""
        work()
        self.synchronise()
        repeats = self.choose(repeats, 1)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronise()
        return (time.perf_counter() - start) / repeats

    def peak_gib(self) -> float:
        """The most memory that tensors of this process have taken on a GPU."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    def model(self, size: str, dtype: torch.dtype = torch.bfloat16) -> DiffusionLM:
        """A random SDAR of the sizes of a real one, made on the device: drawing 8B on the host takes minutes."""
        raw: dict[str, Any] = TINY_CONFIGS["sdar"]
        if not self.tiny:
            more = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "mask_token_id": 151669}
            raw = raw | SDAR[size] | more | {"max_position_embeddings": 32768}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(raw))
            spec = CheckpointSpec.read(folder)
        network = empty_network(spec.family, spec.raw)
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                weight = torch.empty_like(parameter, dtype=dtype, device=self.device)
                weight.normal_(0.0, 0.02) if weight.dim() > 1 else weight.fill_(1.0)
                setattr(module, name, nn.Parameter(weight))
        return DiffusionLM(network, spec, {}, None).to(device=self.device).eval()


@contextmanager
def spans() -> Iterator[None]:
    """Packed rows attend span by span under masks, as on a CPU."""
    with mock.patch("train.algorithm.packing.attention_kind", lambda requested, device: "sdpa"):
        yield


@dataclass(frozen=True)
class Step:
    """A step of the benchmark: what it measures, and how long it is expected to take on an H100."""

    name: str
    title: str
    seconds: float
    run: Callable[[Setup], Found]
    figures: tuple[Figure, ...]
