"""A denoising step captured once a shape and replayed: one launch in place of thousands of small ones.

What a captured step reads and writes is fixed: addresses, shapes, and every number that the host knew. So shapes never
follow data: the slots at work are padded with dead ones to a bucket, a step has room for one of a few numbers of commit
spans, and every slot's length stays on the device.

Shapes: n slots of a step, C commit spans.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

from sample.denoiser import Denoiser
from sample.slots import StepState
from sample.spans import Bounds, CachePolicy

logger = logging.getLogger(__name__)

COMMIT_SHARES = (0.375, 0.625, 1.0)
"""Commit spans of a step, as shares of its slots. K steps a block need 1 / K of them on average."""
_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

Step = Callable[[], None]


class Capture(Protocol):
    """Makes a step replayable. Runs it at least once; RuntimeError where it cannot be captured, or ValueError out of a
    user's strategy."""

    def __call__(self, step: Step) -> Step:
        """What `step` did, again on the same addresses."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory: they are replayed one after another, never at once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Runs the step once on a side stream, so that whatever a first call sets up is not part of the graph."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            step()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=side):
            step()
        return graph.replay


def capture_of(device: torch.device) -> Capture | None:
    """How steps are captured on a device; None where they are not."""
    return CudaCapture(device) if device.type == "cuda" else None


def bucket(slots: int, most: int) -> int:
    """Slots of the step that so many are padded to, `most` at the utmost."""
    return min(most, next((size for size in _BUCKETS if size >= slots), most))


def commit_spans(slots: int) -> list[int]:
    """Numbers of commit spans that a step of so many slots may have room for."""
    return sorted({math.ceil(share * slots) for share in COMMIT_SHARES})


class CommitBudget:
    """Chooses the least room for commit spans that would have served the steps since the last look.

    A block that finds no room waits a step, which changes no result: the longest waiting go first.
    """

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._share = 1.0

    def spans(self, slots: int, live: int) -> int:
        """C for a step of so many slots, of which so many are live."""
        return next(c for c in commit_spans(slots) if c >= min(self._share * live, slots))

    def look(self, begun: Mapping[int, int], waiting: int, steps: int) -> None:
        """begun: request -> blocks that it has begun after its first, of all at work; waiting: those whose block is not
        committed yet; steps: since the last look."""
        decided = sum(blocks - self._begun.get(request, 0) for request, blocks in begun.items())
        late = max(0.0, waiting - decided / steps)  # beside those of the last step
        self._share = (decided + late) / (steps * max(1, len(begun)))
        self._begun = dict(begun)


class Key(NamedTuple):
    """What tells captured steps apart: slots, and what their shapes follow."""

    slots: int
    bounds: Bounds


class Steps:
    """Runs denoising steps over a cache's slots, captured once a key where `capture` is given, else operation by
    operation: the same function either way.

    A step that cannot be captured is named once; from then on all run operation by operation.
    """

    def __init__(self, denoiser: Denoiser, cache: CachePolicy, capture: Capture | None = None):
        self.denoiser, self.cache = denoiser, cache
        self.capture = capture if cache.fixed_shapes else None
        self._captured: dict[Key, Step] = {}

    @property
    def fixed(self) -> bool:
        """Whether shapes must not follow data: they are captured, or attention is compiled for each."""
        return self.capture is not None or (self.cache.fixed_shapes and self.cache.kind == "flex")

    @property
    def keys(self) -> list[Key]:
        """Of the steps that were captured."""
        return list(self._captured)

    def run(self, state: StepState, bounds: Bounds, count: int) -> None:
        """`count` steps of the slots in `state`: the first ones of all (`StepState.rows`)."""
        step = self._step(state, bounds)
        for _ in range(count):
            step()

    def _step(self, state: StepState, bounds: Bounds) -> Step:
        def step() -> None:
            self.denoiser.step(self.cache, state, bounds)

        if self.capture is None:
            return step
        key = Key(len(state.start), bounds)
        if key not in self._captured:
            before = state.clone()  # keys and values are written again as they were
            try:
                self._captured[key] = self.capture(step)
            except (RuntimeError, ValueError) as error:  # ValueError: a user's strategy that reads the host
                self._give_up(key, error)
                return step
            finally:
                state.restore(before)
        return self._captured[key]

    def _give_up(self, key: Key, error: Exception) -> None:
        logger.warning(
            "sampling runs operation by operation: a step of %d slots (strategy %s, target %s) cannot be captured: %s",
            *(key.slots, self.denoiser.config.strategy, self.denoiser.config.target, str(error).splitlines()[0]),
        )
        self.capture = None
        self._captured.clear()
