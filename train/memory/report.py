"""Whether a config fits the memory that there is: said in a dry run by part, and in a warning with the fix."""

import logging
from collections.abc import Mapping
from pathlib import Path

from configs.schema import Config
from train.memory.plan import Budget, host_memory_bytes

logger = logging.getLogger(__name__)


def check_memory(config: Config, folder: Path, kind: str = "rl", answer_tokens: int | None = None) -> None:
    """Warns, with the fix, of phases that do not fit; a dry run prints all parts."""
    budget = Budget(config, folder, kind, answer_tokens=answer_tokens)
    if config.dry_run:
        print("\n".join(memory_lines(budget)))
    usable = f"{_gib(budget.usable)} of {_gib(budget.machine.memory_bytes)} GiB are usable"
    if sum(budget.always.values()) > budget.usable:
        need = _gib(sum(budget.always.values()))
        logger.warning("memory: what stays on each device is about %s GiB, %s: %s", need, usable, _less(budget))
        return
    for name in budget.too_large():
        need = _gib(budget.total(budget.phases()[name]))
        logger.warning("memory: %s takes about %s GiB on each device, %s: %s", name, need, usable, _fix(budget, name))


def memory_lines(budget: Budget) -> list[str]:
    """All parts in GiB, as a dry run prints them."""
    engine = budget.engine if budget.stage and budget.processes > 1 else "each holds all"
    where = "GPU" if budget.machine.kind == "cuda" else "CPU"
    whole = f"{budget.processes} processes, {engine}" if budget.processes > 1 else "one process"
    kept = budget.always
    lines = [
        f"  memory  GiB a process ({whole}); {_gib(budget.usable)} usable of {_gib(budget.machine.memory_bytes)} on a "
        f"{where}",
        f"    always      {_gib(sum(kept.values()))} = {_named(kept)}",
    ]
    for name, parts in budget.phases().items():
        over = "" if budget.total(parts) <= budget.usable else "  DOES NOT FIT"
        lines.append(f"    {name:<12}{_gib(budget.total(parts))} = always, {_named(parts)}{over}")
    if budget.row is not None:
        tokens, row = budget.largest_tokens(), f"the longest response is {budget.row.num_tokens:,}"
        said = f"{tokens:,} tokens a micro-batch" if tokens else "no micro-batch fits"
        lines.append(f"    largest     {said} (training.max_tokens_per_microbatch; {row})")
    if budget.kind != "sft":
        slots = budget.largest_slots()
        most = "; all answers of a step" if slots == budget.most_slots else ""
        found = f"{slots:,} slots" if slots else "no slot fits"
        lines.append(f"    largest     {found} ({budget.config.rollout.key('max_slots')}{most})")
    host = budget.host()
    if host:
        lines.append(
            f"    host        {_gib(sum(host.values()))} = {_named(host)}; {_gib(host_memory_bytes())} free here"
        )
    return lines


def _fix(budget: Budget, phase: str) -> str:
    """What to set so that a phase fits."""
    training = budget.config.training
    if phase == "evaluation":
        evaluation = budget.config.evaluation
        return f"lower {evaluation.key('max_slots')} or {evaluation.key('max_new_tokens')}."
    if "update" in phase and (tokens := budget.largest_tokens()):
        return f"set training.max_tokens_per_microbatch={tokens}."
    if "update" in phase and not training.gradient_checkpointing_enable:
        return "set training.gradient_checkpointing_enable=true."
    if phase == "sampling" and (slots := budget.largest_slots()):
        return f"set {budget.config.rollout.key('max_slots')}={slots}."
    return _less(budget)


def _less(budget: Budget) -> str:
    """What makes less of it stay on a device."""
    ways = []
    if budget.kind != "eval" and budget.adapters is None:
        ways.append("lora.rank=16")
        if budget.processes > 1 and budget.stage < 3:
            ways.append("ZeRO-3 or FSDP2 (experiment.deepspeed_file)")
    return f"try {' or '.join([*ways, 'larger devices'])}."


def _gib(size: float) -> str:
    gib = size / 2**30
    return f"{gib:.2f}" if gib >= 0.1 or not gib else f"{gib:.1g}"


def _named(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
