"""Entry of every command: reads the config, starts the ranks, turns exceptions into messages and exit codes."""

import logging
import os
import signal
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from configs import load_config
from configs.commands import TITLES, Command
from configs.schema import Config
from reward.base import RewardError
from runtime.pipes import on_broken_pipe, quiet_pipes
from runtime.text import print_error, print_traceback

if TYPE_CHECKING:
    from configs.engine import EngineFile
    from runtime.nodes import Node


COMMANDS: dict[str, Command] = {"train.rl": "rl", "train.sft": "sft", "train.evaluation": "eval"}


_ON_SEVERAL: dict[Command, str] = {
    "rl": "Type multinode_rl.py with the same arguments",
    "eval": "Type multinode_eval.py with the same arguments",
    "sft": "Start it with accelerate launch on each machine (docs/distributed.md)",
}
"""How a command runs on several machines."""


class _WarningLine(logging.Handler):
    """`warning: text` on stderr, each text once, from rank 0 alone: what concerns all is the same everywhere."""

    def __init__(self, level: int):
        super().__init__(level)
        self.printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.printed and os.environ.get("RANK", "0") == "0":
            self.printed.add(text)
            print_error(text, "warning: ")


def main(module: str, usage: str, *, nodes: bool = False) -> None:
    """Reads the config that is typed and calls `run` of a module with it: here, or once in each process that the job
    needs (with `nodes` on every machine that the environment names). A launcher does not import the module.

    ValueErrors, those of the operating system, of rewards that keep failing and of diverged training are messages for
    users: printed without a traceback, exit status 2 (DEBUG=1 shows all).
    """
    quiet_pipes()
    sys.excepthook = print_traceback
    logging.getLogger().addHandler(_WarningLine(logging.WARNING))
    warnings.showwarning = lambda message, *place, **more: logging.getLogger(__name__).warning("%s", message)
    try:
        config = load_config(sys.argv[1:], usage, COMMANDS[module])
    except ValueError as error:
        print_error(str(error))
        sys.exit(2)
    _start(module, config, nodes)


def _start(module: str, config: Config, nodes: bool) -> None:
    # After the command line has been checked. None of these imports torch: a launcher starts its ranks at once.
    from runtime import child, heartbeat, launch, ranks, stopping
    from runtime.rendezvous import RendezvousConfig
    from runtime.run_folder import run_path
    from train.learner.divergence import NotFinite

    child.follow_launcher()
    stopping.listen()
    on_broken_pipe(lambda: stopping.ask(signal.SIGPIPE))
    try:
        processes, node = placement(config, nodes, COMMANDS[module])
        experiment = config.experiment
        if processes * node.count > 1 and not child.is_launched() and not config.dry_run:
            settings = RendezvousConfig(
                experiment.launcher, experiment.join_seconds, experiment.ssh, experiment.ssh_user
            )
            sys.exit(launch.launch(processes, node, settings, run_path(config), experiment.resume))
        if config.dry_run:
            experiment = replace(experiment, processes=processes, num_node=node.count)
            config = replace(config, experiment=experiment)
        import_module(module).run(config)
    except (ValueError, OSError, NotFinite, RewardError) as error:
        if os.environ.get("DEBUG"):
            raise
        print_error(str(error))
        sys.exit(2)
    except stopping.Stopped as stop:
        if ranks.is_main() and stop.number != signal.SIGPIPE:  # whoever read the output has left
            resumes = stop.resumes or heartbeat.where_to_resume(run_path(config), config.experiment.resume)
            print(f"{stop}. {resumes}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except child.FailedElsewhere as error:
        if os.environ.get("DEBUG"):
            raise
        seen = heartbeat.last_seen(run_path(config), error.missing)
        print_error(f"{error}{f' (last sign of life: {seen})' if seen else ''}", f"rank {ranks.rank()} stops: ")
        sys.exit(child.STOPPED_ELSEWHERE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        ranks.leave()


def placement(config: Config, nodes: bool, command: Command = "rl") -> "tuple[int, Node]":
    """Processes of this machine, and which of the job's machines it is. ValueError where config and environment
    disagree."""
    from configs.engine import engine_file
    from runtime import child

    file, launched = engine_file(config.experiment.deepspeed_file), child.is_launched()
    if config.dry_run and config.experiment.gpu_memory_gib:
        return _planned(config, file)
    node = _node_of(config, nodes, launched, command)
    if file is not None:
        _require_as_filed(file, config.experiment.processes, None if launched else node.count)
    return _processes_of(config, file, launched), node


def _planned(config: Config, file: "EngineFile | None") -> "tuple[int, Node]":
    """A plan for machines that this one is not."""
    from runtime.nodes import Node

    if file is not None:
        return file.processes_per_node, Node(count=file.nodes)
    return config.experiment.processes or 1, Node(count=config.experiment.num_node or 1)


def _node_of(config: Config, nodes: bool, launched: bool, command: Command) -> "Node":
    from runtime.nodes import Node, this_node

    requested, node = config.experiment.num_node, this_node(os.environ) if nodes and not launched else Node()
    if nodes and not launched and requested not in (None, node.count):
        raise ValueError(
            f"experiment.num_node={requested}, but the environment names {node.count} nodes: leave it out, or start "
            "the job on that many."
        )
    if not nodes and not launched and requested not in (None, 1):
        raise ValueError(
            f"experiment.num_node={requested}: {TITLES[command]} runs on one machine. {_ON_SEVERAL[command]}, or set "
            "experiment.num_node=1 to run on this one."
        )
    return node


def _processes_of(config: Config, file: "EngineFile | None", launched: bool) -> int:
    """Of this machine: as configured, as the engine file has it where there are GPUs for it, or one for each GPU."""
    from runtime.devices import gpu_count

    requested, gpus = config.experiment.processes, gpu_count() if config.model.device != "cpu" else 0
    processes = requested or (file.processes_per_node if file else max(1, gpus))
    if file is not None and not file.cpu and not requested and gpus < processes:
        processes = max(1, gpus)
        if not launched:
            logging.getLogger(__name__).warning(
                "experiment.deepspeed_file=%s is for %d GPUs a node and this machine has %d: %s, and an update has as "
                "many times fewer rows (training.rows_per_update sets them)",
                *(file.name, file.processes_per_node, gpus, f"{processes} processes" if gpus > 1 else "one process"),
            )
    if processes > gpus > 0:
        raise ValueError(f"experiment.processes={processes}, but this machine has {gpus} GPUs: one process each.")
    return processes


def _require_as_filed(file: "EngineFile", processes: int, nodes: int | None) -> None:
    """ValueError where experiment.deepspeed_file names other nodes or processes than there are; `nodes`: None where
    a launcher has started this process."""
    from configs.engine import names_like
    from runtime.child import STORE_VARIABLE

    named = f"experiment.deepspeed_file={file.name}"
    other_launcher = nodes is None and STORE_VARIABLE not in os.environ
    if other_launcher and int(os.environ.get("WORLD_SIZE", file.processes)) != file.processes:
        raise ValueError(
            f"{named} is for {file.processes} processes; {os.environ['WORLD_SIZE']} were started: name another file of "
            "accelerate_configs/, or none (null)."
        )
    if nodes not in (None, file.nodes):
        others = " or ".join(names_like(file, nodes)) or "experiment.processes in place of a file"
        raise ValueError(f"{named} is for {file.nodes} nodes, this job has {nodes}: take {others}.")
    if processes not in (0, file.processes_per_node):
        raise ValueError(f"{named} and experiment.processes={processes} disagree: leave experiment.processes out.")
