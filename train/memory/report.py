"""Memory report: prints the plan on a dry run and warns, with a fix, about phases that do not fit."""

import logging
from collections.abc import Mapping

from configs.schema import Config
from runtime.text import print_text
from train.memory import plan
from train.memory.inputs import Inputs
from train.memory.machine import host_memory_bytes
from train.setup.models import RunModels

logger = logging.getLogger(__name__)


def check_memory(config: Config, models: RunModels, response_tokens: int | None = None) -> None:
    """Warns, with the fix, about phases that do not fit; a dry run prints all parts. response_tokens: of the longest
    response of an SFT."""
    inputs = Inputs.of(config, models, response_tokens=response_tokens)
    if config.dry_run:
        print_text("\n".join(memory_lines(inputs)))
    usable = f"{_gib(plan.usable(inputs))} of {_gib(inputs.machine.memory_bytes)} GiB are usable"
    kept = sum(plan.always(inputs).values())
    if kept > plan.usable(inputs):
        logger.warning("memory: what stays on each device is about %s GiB, %s: %s", _gib(kept), usable, _less(inputs))
        return
    phases = plan.phases(inputs)
    for name in plan.too_large(inputs):
        need = _gib(plan.total(inputs, phases[name]))
        logger.warning("memory: %s takes about %s GiB on each device, %s: %s", name, need, usable, _fix(inputs, name))


def memory_lines(inputs: Inputs) -> list[str]:
    """All parts in GiB, as a dry run prints them."""
    engine = inputs.engine if inputs.stage and inputs.processes > 1 else "each holds all"
    where = "GPU" if inputs.machine.kind == "cuda" else "CPU"
    whole = f"{inputs.processes} processes, {engine}" if inputs.processes > 1 else "one process"
    kept, usable, host = plan.always(inputs), plan.usable(inputs), plan.host(inputs)
    lines = [
        f"  memory  GiB a process ({whole}); {_gib(usable)} usable of {_gib(inputs.machine.memory_bytes)} on a {where}",
        f"    always      {_gib(sum(kept.values()))} = {_named(kept)}",
    ]
    for name, parts in plan.phases(inputs).items():
        size = plan.total(inputs, parts)
        lines.append(
            f"    {name:<12}{_gib(size)} = always, {_named(parts)}{'' if size <= usable else '  DOES NOT FIT'}"
        )
    lines += _largest_lines(inputs)
    if host:
        free = _gib(host_memory_bytes())
        lines.append(f"    host        {_gib(sum(host.values()))} = {_named(host)}; {free} free here")
    return lines


def _largest_lines(inputs: Inputs) -> list[str]:
    lines = []
    if inputs.samples:
        tokens, longest = plan.largest_tokens(inputs), max(sample.num_tokens for sample in inputs.samples)
        found = f"{tokens:,} tokens a micro-batch" if tokens else "no micro-batch fits"
        key = "training.max_tokens_per_microbatch"
        lines.append(f"    largest     {found} ({key}; the longest response with its prompt is {longest:,})")
    if inputs.models.kind != "sft":
        slots = plan.largest_slots(inputs)
        found = f"{slots:,} slots" if slots else "no slot fits"
        most = "; all responses of a step" if slots == inputs.responses(inputs.config.rollout) else ""
        lines.append(f"    largest     {found} ({inputs.config.rollout.key('max_slots')}{most})")
    return lines


def _fix(inputs: Inputs, phase: str) -> str:
    """What to set so that a phase fits."""
    training, rollout, evaluation = inputs.config.training, inputs.config.rollout, inputs.config.evaluation
    if phase == "evaluation":
        return f"lower {evaluation.key('max_slots')} or {evaluation.key('max_new_tokens')}."
    if "update" in phase and (tokens := plan.largest_tokens(inputs)):
        return f"set training.max_tokens_per_microbatch={tokens}."
    if "update" in phase and not training.gradient_checkpointing_enable:
        return "set training.gradient_checkpointing_enable=true."
    if phase == "sampling" and (slots := plan.largest_slots(inputs)):
        return f"set {rollout.key('max_slots')}={slots}."
    return _less(inputs)


def _less(inputs: Inputs) -> str:
    """What makes less of it stay on a device."""
    ways = []
    if inputs.models.kind != "eval" and inputs.adapters is None:
        ways.append("lora.rank=16")
        if inputs.processes > 1 and inputs.stage < 3:
            ways.append("ZeRO-3 or FSDP2 (experiment.deepspeed_file)")
    return f"try {' or '.join([*ways, 'larger devices'])}."


def _gib(size: float) -> str:
    gib = size / 2**30
    return f"{gib:.2f}" if gib >= 0.1 or not gib else f"{gib:.1g}"


def _named(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
