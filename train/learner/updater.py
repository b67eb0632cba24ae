"""Gradient updates: exact accumulation over micro-batches and ranks, and the guard against non-finite numbers."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models import DiffusionLM, lora
from models.experts import ExpertLoad, balance, replaying
from runtime import ranks, stopping
from train.algorithm.objectives import NOTHING, Metrics, Needs
from train.algorithm.packing import MicroBatch, pack, within_budget
from train.algorithm.replay import TrainingSample
from train.distributed.accelerator import make_engine
from train.distributed.engine import RunAccelerator
from train.distributed.sharding import require_equal_weights, share
from train.learner.average import Average
from train.learner.divergence import NotFinite
from train.learner.optimizer import OptimizerSettings, UpdateSettings, make_optimizer

logger = logging.getLogger(__name__)

Summand = TypeVar("Summand", float, Tensor)
Loss = Callable[[Tensor, MicroBatch], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class UpdateResult:
    """One update. taken: False where loss or gradient were not finite and the weights stayed; loss and sums (of the
    metrics that the loss function returns), micro_batches and packed_tokens are over all ranks, and so are experts,
    the tokens of each expert by router; grad_norm: before clipping; seconds: that it took."""

    taken: bool
    loss: float
    grad_norm: float
    sums: Mapping[str, float] = field(default_factory=dict)
    micro_batches: int = 0
    packed_tokens: int = 0
    experts: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class StepTotals:
    """The updates of one step, added up."""

    results: Sequence[UpdateResult] = ()

    @property
    def taken(self) -> list[UpdateResult]:
        return [result for result in self.results if result.taken]

    @property
    def updates(self) -> int:
        return len(self.taken)

    @property
    def skipped(self) -> int:
        return len(self.results) - self.updates

    @property
    def micro_batches(self) -> int:
        return sum(result.micro_batches for result in self.results)

    @property
    def packed_tokens(self) -> int:
        return sum(result.packed_tokens for result in self.results)

    @property
    def speed(self) -> dict[str, float]:
        """Metric: packed tokens of all ranks in a second of updates; none where there were none."""
        seconds = sum((result.seconds for result in self.results), 0.0)
        return {"update_tokens_per_second": self.packed_tokens / seconds} if seconds else {}

    @property
    def mean_loss(self) -> float:
        return sum((result.loss for result in self.taken), 0.0) / max(1, self.updates) + self._unknown

    @property
    def mean_grad_norm(self) -> float:
        return (float(np.mean([result.grad_norm for result in self.taken])) if self.taken else 0.0) + self._unknown

    @property
    def _unknown(self) -> float:
        """NaN where every update was skipped, so that no mean of theirs is a number; else 0."""
        return math.nan if self.results and not self.taken else 0.0

    @property
    def expert_balance(self) -> dict[str, float]:
        """How evenly a mixture's layers shared out the tokens (`models.experts.balance`); empty for a dense network."""
        return balance(_summed(result.experts for result in self.results))

    @property
    def names(self) -> list[str]:
        """Of the sums, in the order in which they came."""
        return list(dict.fromkeys(name for result in self.results for name in result.sums))

    def total(self, name: str) -> float:
        """A sum over the updates that were taken; 0 where none has it."""
        return sum((result.sums.get(name, 0.0) for result in self.taken), 0.0)

    def mean(self, name: str) -> float:
        """A sum as its mean over the updates that were taken."""
        return self.total(name) / max(1, self.updates) + self._unknown

    def per_token(self, name: str) -> float:
        return self.total(name) / max(1.0, self.total("tokens")) + self._unknown


@dataclass(frozen=True)
class _Passes:
    """What one rank's forward and backward passes of an update add up to."""

    loss: float
    sums: dict[str, float]
    micro_batches: int
    packed_tokens: int
    experts: dict[str, Tensor]


def _summed(parts: Iterable[Mapping[str, Summand]]) -> dict[str, Summand]:
    total: dict[str, Summand] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


@torch.no_grad()
def outputs(
    model: torch.nn.Module,
    samples: Sequence[TrainingSample],
    which: Sequence[int],
    max_tokens: int,
    device: torch.device,
    lockstep: bool = False,
    entropy: bool = False,
    replays_routing: bool = False,
) -> list[NDArray[np.float32]]:
    """A model's numbers [N] (entropy: [2, N], as `_forward`) for each sample's trained tokens under its weights as they
    are; empty for samples that are not in `which`. The ranks shard the samples, and each gets all numbers. lockstep:
    all run as many forwards. replays_routing: by the samples' experts, where they have any."""
    found: dict[int, NDArray[np.float32]] = {}
    for group, is_padding in _sharded_groups(samples, which, max_tokens, lockstep):
        batch = pack(samples, group, device)
        with replaying(model, batch.experts if replays_routing else None):
            output_N = _forward(model, batch, entropy).cpu().numpy()
        if is_padding:
            continue
        for place, i in enumerate(batch.samples):
            found[i] = output_N[..., batch.sample_of_N == place]
    everywhere = {i: output_N for part in ranks.gather(found) for i, output_N in part.items()}
    return [everywhere.get(i, np.empty(0, np.float32)) for i in range(len(samples))]


def _sharded_groups(
    samples: Sequence[TrainingSample],
    which: Sequence[int],
    max_tokens: int,
    lockstep: bool,
    whole_responses: bool = False,
) -> list[tuple[list[int], bool]]:
    """The samples of each of this rank's micro-batches of samples[which], and whether it is padding: `lockstep` pads
    with the shortest sample, so that all ranks run the same number. whole_responses: as `within_budget`."""
    mine = within_budget(samples, share(samples, which), max_tokens, whole_responses)
    missing = max(ranks.gather(len(mine))) - len(mine) if lockstep else 0
    shortest = [min(which, key=lambda i: samples[i].num_tokens)] if missing else []
    return [(group, False) for group in mine] + [(shortest, True)] * missing


def _forward(model: torch.nn.Module, batch: MicroBatch, entropy: bool = False) -> Tensor:
    """The model's numbers of a micro-batch's trained tokens [N]; with entropy [2, N], the entropies second."""
    given = batch.ids, batch.positions, batch.layout, batch.index, batch.targets
    more = {"entropy": True} if entropy else {}
    return model(*given, **more, **({"pictures": batch.pictures} if batch.pictures else {}))


def count_rows(samples: Sequence[TrainingSample], which: Iterable[int]) -> int:
    """Rows of samples[which] as dLLM-RL counts them: one a response and round."""
    return sum(samples[i].num_rounds for i in which)


class Updater:
    """Owns a model's optimizer state for a whole run. The model maps a micro-batch's ids, positions, layout, index,
    targets and pictures to one number a trained token [N]: a log-probability (DiffusionLM) or a value (ValueModel).

    A non-finite loss or gradient never reaches the weights: the update is skipped, counted and named; `max_skipped`
    in a row stop the run (NotFinite). Ranks shard the samples of an update and sum their gradients, so that weights
    stay equal and the number of ranks does not enter; a rank may be left without samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        accelerator: RunAccelerator,
        optimizer: OptimizerSettings | None = None,
        settings: UpdateSettings | None = None,
    ):
        optimizer, self.settings = optimizer or OptimizerSettings(), settings or UpdateSettings()
        self.accelerator, self.peak_rate = accelerator, optimizer.learning_rate
        require_equal_weights(model, type(model).__name__)
        self.engine = make_engine(model, make_optimizer(model, optimizer), accelerator, self.settings.max_grad_norm)
        self.model = self.engine.model
        self.replays_routing = isinstance(model, DiffusionLM)  # a value model has routers of its own
        self.average: Average | None = None
        if self.settings.ema_decay and ranks.is_main():
            assert isinstance(model, DiffusionLM)
            with self.engine.whole_on_main():
                self.average = Average(model, self.settings.ema_decay)
        self.updates = self.skipped_in_a_row = 0
        self.rate = self.peak_rate

    @property
    def half(self) -> bool:
        """Whether the model works in bf16 over fp32 masters."""
        return self.accelerator.half

    def set_rate(self, scale: float) -> None:
        self.rate = self.peak_rate * scale
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.rate

    def update(
        self,
        samples: Sequence[TrainingSample],
        which: Sequence[int],
        loss_of: Loss,
        progress: Callable[[int], None] | None = None,
        needs: Needs = NOTHING,
        may_stop: bool = False,
    ) -> UpdateResult:
        """One optimizer step on samples[which]; loss_of maps (the model's numbers [N], or [2, N] where it needs
        entropies, micro-batch) to (its share of the loss, sums); progress gets the number of rows as they are done.

        may_stop: a request to stop gives the update up before the next micro-batch: Stopped, on every rank, with
        weights and optimizer as they were. Under engines whose ranks run in lockstep the update is finished."""
        started = perf_counter()
        self.model.train()
        gives_up = may_stop and not self.engine.lockstep
        found = ranks.gather(self._passes(samples, which, loss_of, progress or (lambda rows: None), needs, gives_up))
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            self.model.zero_grad(set_to_none=True)
            stopping.check()
        loss = sum((part.loss for part in parts), 0.0)
        step = self.engine.step(loss)
        result = UpdateResult(
            step.taken,
            loss,
            step.norm,
            _summed(part.sums for part in parts),
            sum(part.micro_batches for part in parts),
            sum(part.packed_tokens for part in parts),
            _summed(part.experts for part in parts),
            perf_counter() - started,
        )
        if result.taken:
            self.skipped_in_a_row = 0
            self._take_into_average()
        else:
            self.count_skipped(samples, which, result)
        self.updates += 1
        return result

    def _take_into_average(self) -> None:
        if self.average is not None:
            with self.engine.whole_on_main():
                self.average.update()

    def _passes(
        self,
        samples: Sequence[TrainingSample],
        which: Sequence[int],
        loss_of: Loss,
        progress: Callable[[int], None],
        needs: Needs,
        gives_up: bool,
    ) -> _Passes | None:
        """Forward and backward over this rank's micro-batches of samples[which]. gives_up: None once this rank is asked
        to stop before the last of them."""
        device, packed_tokens, mine = self.accelerator.device, 0, []
        limit, lockstep = self.settings.max_tokens, self.engine.lockstep
        groups = _sharded_groups(samples, which, limit, lockstep, needs.whole_responses)
        totals: dict[str, Tensor] = {}
        loss_sum, load = torch.zeros((), device=device), ExpertLoad(self.model)
        for place, (group, is_padding) in enumerate(groups):
            if gives_up and stopping.is_asked():
                return None
            batch, last = pack(samples, group, device), place == len(groups) - 1
            if is_padding:
                self.engine.backward(0.0 * _forward(self.model, batch, needs.entropy).sum(), last)
                continue
            experts = batch.experts if self.replays_routing else None
            with self._dropping(samples, batch), replaying(self.model, experts), load.counting(batch.num_tokens):
                loss, metrics = loss_of(_forward(self.model, batch, needs.entropy), batch)
                self.engine.backward(loss, last)
            loss_sum += loss.detach()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double()
            mine.append(group)
            packed_tokens += batch.ids.numel()
            progress(count_rows(samples, group))
        progress(count_rows(samples, which) - sum(count_rows(samples, group) for group in mine))
        sums = {name: float(value) for name, value in totals.items()}
        return _Passes(float(loss_sum), sums, len(mine), packed_tokens, load.take())

    def outputs(
        self, samples: Sequence[TrainingSample], which: Sequence[int], entropy: bool = False
    ) -> list[NDArray[np.float32]]:
        """`outputs` of this updater's model, in the trainer's numerics."""
        self.model.eval()
        limit, lockstep = self.settings.max_tokens, self.engine.lockstep
        more = lockstep, entropy, self.replays_routing
        return outputs(self.model, samples, which, limit, self.accelerator.device, *more)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.engine.state_dict(),
            "updates": self.updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            **({"average": self.average.state_dict()} if self.average is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.engine.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])

    def _dropping(self, samples: Sequence[TrainingSample], batch: MicroBatch) -> AbstractContextManager[None]:
        """The adapters' dropout, by seeds from (seed, update, place of the sample, place of the token in it): neither
        packing nor sharding enters."""
        if not lora.dropouts(self.model):
            return nullcontext()
        seeds = [
            np.random.default_rng([self.settings.seed, self.updates, i]).integers(2**63, size=samples[i].num_tokens)
            for i in batch.samples
        ]
        seed_T = F.pad(torch.from_numpy(np.concatenate(seeds)), (0, batch.ids.numel() - sum(map(len, seeds))))
        return lora.dropping(self.model, seed_T[None].to(self.accelerator.device))

    def count_skipped(self, samples: Sequence[TrainingSample], which: Sequence[int], result: UpdateResult) -> None:
        """Counts and names an update on samples[which] that was not taken; NotFinite where it is one too many in a
        row."""
        self.skipped_in_a_row += 1
        loss, norm = result.loss, result.grad_norm
        names = ", ".join(str(samples[i].key) for i in list(which)[:4]) + (", ..." if len(which) > 4 else "")
        logger.warning("update skipped: loss %g, gradient norm %g; samples %s", loss, norm, names)
        if self.skipped_in_a_row >= self.settings.max_skipped:
            raise NotFinite(
                f"{self.skipped_in_a_row} updates in a row were not finite (last: loss {loss:g}, gradient norm "
                f"{norm:g}, samples {names}). The weights were not touched by them. "
                "Lower optimizer.params.learning_rate or set training.mixed_precision=no; an objective of your own "
                "(training.objective) may have a gradient that is not finite."
            )
