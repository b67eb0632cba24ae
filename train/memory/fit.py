"""What a config leaves to the machine: slots, and tokens of a micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs import naming
from configs.schema import Config
from models.attention import attention_kind, attention_name
from runtime import ranks
from train.memory import plan
from train.memory.inputs import Inputs
from train.memory.plan import Size
from train.setup.models import RunModels
from train.setup.process import pick_device


@dataclass(frozen=True)
class Fit:
    """A config with every size filled in. sizes: "slots", "evaluation slots", "micro-batch" -> size, as far as the run
    has them. attention: the sampler's, for people. keeps_slots: the rollout's slots stay in memory during the
    updates."""

    config: Config
    sizes: Mapping[str, Size]
    attention: str
    keeps_slots: bool = False

    @staticmethod
    def of(config: Config, models: RunModels, response_tokens: int | None = None) -> "Fit":
        """All ranks call it and get rank 0's: ranks must agree on micro-batches. response_tokens: of the longest
        response of an SFT. ValueError where a config asks for an attention that cannot run here."""
        attention = _attention(config, models)
        sizes, keeps_slots = ranks.on_main(_sizes, config, models, response_tokens)
        rollout, evaluation, training = config.rollout, config.evaluation, config.training
        if "slots" in sizes:
            rollout = replace(rollout, max_slots=sizes["slots"].number)
        if "evaluation slots" in sizes:
            evaluation = replace(evaluation, max_slots=sizes["evaluation slots"].number)
        if "micro-batch" in sizes:
            training = replace(training, max_tokens_per_microbatch=sizes["micro-batch"].number)
        return Fit(
            replace(config, rollout=rollout, evaluation=evaluation, training=training), sizes, attention, keeps_slots
        )

    def rows(self) -> dict[str, str]:
        """Of a banner: the sizes with what limits them, and the attention in use."""
        units = {"slots": "", "evaluation slots": "", "micro-batch": " tokens"}
        rows = {name: f"{size.number:,}{units[name]} ({size.limit})" for name, size in self.sizes.items()}
        return rows | {"attention": self.attention}


def _attention(config: Config, models: RunModels) -> str:
    """Of the rollouts; a training run's, which has none to choose, is the device's."""
    device = pick_device(config.model.device)
    kinds = [attention_kind("auto", device)]
    decodes = {"sft": (), "eval": (config.rollout,), "rl": (config.evaluation, config.rollout)}[models.kind]
    for decode in decodes:
        with naming(decode.key("attention")):
            kinds.append(attention_kind(decode.attention, device))
    return attention_name(kinds[-1], device)


def _sizes(config: Config, models: RunModels, response_tokens: int | None) -> tuple[dict[str, Size], bool]:
    inputs, kind = Inputs.of(config, models, response_tokens=response_tokens), models.kind
    found: dict[str, Size] = {}
    if kind != "sft":
        found["slots"] = plan.chosen_slots(inputs, config.rollout)
    if kind == "rl" and config.evaluation.eval_dataset:
        found["evaluation slots"] = plan.chosen_slots(inputs, config.evaluation)
    if kind != "eval":
        found["micro-batch"] = plan.chosen_tokens(inputs)
    return found, plan.keeps_slots(inputs)
