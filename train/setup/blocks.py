"""How many tokens a block has, in training, sampling and evaluation: decided once, before a model is loaded."""

import logging
from dataclasses import dataclass
from typing import Literal

from configs.schema import Config, DecodeConfig
from models import DiffusionLM
from models.spec import CheckpointSpec, check_block_size
from train.setup.decodings import decodings

logger = logging.getLogger(__name__)

Kind = Literal["rl", "sft", "eval"]


@dataclass(frozen=True)
class Blocks:
    """Tokens of a block. trained: of the rows that are trained (eval.py: of the checkpoint). sampled, evaluated: of
    every entry of sections rollout and evaluation."""

    trained: int
    sampled: tuple[int, ...]
    evaluated: tuple[int, ...]

    @staticmethod
    def of(config: Config, spec: CheckpointSpec, kind: Kind = "rl") -> "Blocks":
        """Block families train the blocks that they sample; those of full attention are only a schedule. ValueError
        where the two differ in a block family."""
        requested = config.training.block_size
        if kind == "sft":
            check_block_size(spec, requested or spec.schedule_block_size)
            return Blocks(requested or spec.schedule_block_size, (), ())
        sampled = block_sizes(config.rollout, spec, spec.block_size)
        if kind == "eval":
            return Blocks(spec.block_size, sampled, ())
        if spec.family.attention == "full":
            trained = requested or spec.schedule_block_size
        else:
            trained = sampled[0]
            if requested not in (None, trained):
                given = "" if config.rollout.block_size else " (the checkpoint's)"
                raise ValueError(
                    f"training.block_size={requested} and rollout.block_size={trained}{given} differ: blocks must be "
                    "the same in sampling and training. Set both to one value (or leave training.block_size out)."
                )
        return Blocks(trained, sampled, block_sizes(config.evaluation, spec, trained))


def block_sizes(decode: DecodeConfig, spec: CheckpointSpec, own: int) -> tuple[int, ...]:
    """Of every entry of a section. own: where it names none, in a block family. A picture is one block."""
    if decode.output == "image":
        return (decode.max_new_tokens,) * len(decodings(decode))
    requested = [chosen["block_size"] for chosen in decodings(decode)]
    sizes = tuple(spec.family.decoding_block_size(size, own, decode.max_new_tokens) for size in requested)
    for size in sizes:
        check_block_size(spec, size)
    return sizes


def adopt_block_size(model: DiffusionLM, block_size: int) -> None:
    """Makes the trained block size that of the model, which its checkpoints then name."""
    if model.attention == "block" and block_size != model.block_size:
        warn_of_block_size(block_size, model.spec)
        model.block_size = block_size


def warn_of_block_size(block_size: int, spec: CheckpointSpec) -> None:
    if spec.family.attention == "block" and block_size != spec.block_size:
        logger.warning(
            "block size %d is not the checkpoint's %d: quality may suffer until it is trained",
            block_size,
            spec.block_size,
        )
