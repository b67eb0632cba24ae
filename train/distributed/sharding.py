"""How ranks divide the work: rollouts from a common queue, training samples by tokens, gradients summed."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from configs.schema import TrainingConfig
from models import Prompt, lora
from models.unread import weight_of
from runtime import ranks, stopping
from sample import Rollout, Sampler
from sample.rollout import Key
from train.algorithm.replay import TrainingSample, by_response

T = TypeVar("T")

BUCKET_ELEMENTS = 2**25
_CHUNKS_PER_RANK = 4


class _Break(Exception):
    """Decoding breaks off here; the ranks agree on it afterwards."""


def sample(
    sampler: Sampler,
    prompts: Sequence[Sequence[int] | Prompt],
    n: int,
    keys: Sequence[Key],
    progress: Callable[[int], None],
) -> list[Rollout]:
    """`sampler.generate` by all ranks together: each takes samples from a common queue when it has room, so that a slow
    rank takes fewer. Every rank gets all rollouts. `keys` are unique; which rank took a sample does not change it.
    Ranks that compute the sampler's model as a team take the same ones.

    progress: called with the number of rollouts that all ranks have finished since its last call. Stopped, and nothing
    kept, when a rank got a signal to stop.
    """
    total, team = len(keys), sampler.model.parallel.team if sampler.model.parallel else None
    leads, samplers = team is None or team.place == 0, ranks.world_size() // (team.size if team else 1)
    assert len(set(keys)) == total
    counts = ranks.SharedCounts("taken", "done")
    size = max(1, min(n, total // (_CHUNKS_PER_RANK * samplers)))
    shown = 0

    def take() -> Sequence[int]:
        last = counts.add("taken", size if leads else 0)
        last = team.gather(last)[0] if team else last
        return range(min(total, last - size), min(total, last))

    def finished(count: int) -> None:
        nonlocal shown
        asked = stopping.is_asked()
        if any(team.gather(asked) if team else [asked]):
            raise _Break
        of_all = counts.add("done", count if leads else 0)
        progress(of_all - shown)
        shown = of_all

    mine: list[Rollout] = []
    with suppress(_Break):
        mine = sampler.generate(prompts, n=n, keys=keys, progress=finished, take=take, limit=-(-total // samplers))
    stopping.check()
    found = itertools.chain.from_iterable(ranks.gather(mine if leads else []))
    by_key = {rollout.key: rollout for rollout in found}
    assert len(by_key) == total, f"{total - len(by_key)} of {total} rollouts are lost"
    progress(total - shown)
    return [by_key[key] for key in keys]


def rows_per_update(training: TrainingConfig) -> int:
    """Rows of an update over all ranks (SFT: samples)."""
    each = training.gradient_accumulation_steps * training.batch_size_lm
    return training.rows_per_update or each * ranks.world_size()


def deal(samples: Sequence[TrainingSample], which: Sequence[int], world: int) -> list[list[int]]:
    """samples[which] sharded over `world` ranks: whole responses, the longest first, each to the rank with the fewest
    tokens so far. A function of the samples alone. Some ranks may get none."""
    which = list(which)
    responses = [[which[i] for i in places] for places in by_response([samples[i] for i in which])]
    tokens = [sum(samples[i].num_tokens for i in response) for response in responses]
    dealt: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for place in sorted(range(len(responses)), key=lambda place: -tokens[place]):
        lightest = loads.index(min(loads))
        dealt[lightest] += responses[place]
        loads[lightest] += tokens[place]
    return dealt


def share(samples: Sequence[TrainingSample], which: Sequence[int]) -> list[int]:
    """This rank's shard of samples[which]."""
    world = ranks.world_size()
    return list(which) if world == 1 else deal(samples, which, world)[ranks.rank()]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Gradients summed over ranks in place. A parameter that no rank has a gradient of keeps none."""
    if ranks.world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    given = ranks.gather([p.grad is not None for p in trained])
    gradients: list[Tensor] = []
    for parameter, *has in zip(trained, *given, strict=True):
        if any(has):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            gradients.append(parameter.grad)
    for bucket in buckets(gradients, Tensor.numel):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def elements(parameter: torch.nn.Parameter) -> int:
    """Numbers in a parameter, over all its shards where it is sharded."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def buckets(items: Iterable[T], elements_of: Callable[[T], int]) -> list[list[T]]:
    """Groups of neighbours, each of at most BUCKET_ELEMENTS or one larger item: one call carries many small ones."""
    found: list[list[T]] = []
    size = 0
    for item in items:
        size += elements_of(item)
        if not found or size > BUCKET_ELEMENTS:
            found.append([])
            size = elements_of(item)
        found[-1].append(item)
    return found


def saved_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Those that a checkpoint of the model holds, by name: all, or the adapters alone."""
    named = list(model.named_parameters())
    adapters = [(name, parameter) for name, parameter in named if lora.is_adapter(name)]
    yield from adapters or named


def require_equal_weights(model: torch.nn.Module, what: str) -> None:
    """RuntimeError where a rank's weights are not rank 0's, compared by sums of their bits, tensor by tensor."""
    if ranks.world_size() > 1:
        ranks.require_alike(f"the {what}'s weights", weights_digest(model))


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """A hash that changes when an update changes the weights: of the sums of bits of each tensor, in pieces that take
    little memory. Sharded weights are left out: no rank has them to compare. Unread ones are read one by one."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        piece.view(integers[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in model.state_dict(keep_vars=True).values()
        if tensor.dim() and not isinstance(tensor, DTensor)
        for piece in weight_of(tensor).flatten().split(BUCKET_ELEMENTS)
    ]
    numbers = torch.stack(sums).tolist() if sums else []
    return hashlib.blake2b(repr(numbers).encode(), digest_size=16).hexdigest()
