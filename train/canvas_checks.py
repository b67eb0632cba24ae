"""What fine-tuning on canvases (DiffusionGemma) can and cannot do, known before a model is loaded."""

import logging

from configs.engine import TITLES
from configs.schema import Config, TrainingConfig
from models.spec import CheckpointSpec
from train.distributed.kind import engine_kind, world_size
from train.setup.doors import method_of
from train.setup.models import adapters_of

logger = logging.getLogger(__name__)

_IDLE = ("normalization", "post_num", "replaced_p", "unmasked_p")


def check_canvases(config: Config, spec: CheckpointSpec) -> None:
    """ValueError where method and model do not belong together, and for what canvases are not trained with; a warning
    of keys without effect."""
    training, family = config.training, spec.family.name
    canvases, given = method_of(training, "sft").canvases, f"training.method={training.method}"
    if spec.family.noise == "mask":
        if canvases:
            raise ValueError(f"{given} is for models whose canvases are random tokens; {family} has masks: semi-ar.")
        return
    if not canvases:
        raise ValueError(f"{given}: {family} has canvases of random tokens and no masks: set training.method=uniform.")
    if training.sft_objective != "nll":
        raise ValueError(f"training.sft_objective={training.sft_objective}: canvases are trained by nll alone.")
    if training.loss_weight != "none":
        raise ValueError(
            f"training.loss_weight={training.loss_weight} is the bound of masks; that of random tokens is flat: none."
        )
    if (adapters := adapters_of(config, spec)) is not None and adapters.dropout:
        raise ValueError(f"lora.dropout={adapters.dropout:g}: adapters of {family} are trained without: set it to 0.")
    if world_size(config) > 1 and (kind := engine_kind(config)) != "ddp":
        raise ValueError(
            f"{family} under {TITLES[kind]}: encoder and decoder have one weight, which this engine is not known to "
            "shard. Take a _ddp file of accelerate_configs/, or leave experiment.deepspeed_file out."
        )
    _warn_of_idle(training)


def _warn_of_idle(training: TrainingConfig) -> None:
    for name in _IDLE:
        if getattr(training, name) != getattr(TrainingConfig(), name):
            logger.warning(
                "training.%s=%s has no effect: canvases are trained whole, each a mean of its own",
                *(name, getattr(training, name)),
            )
