"""The machines of a job: how many there are, and which one this is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One machine of `count`. host, port: where node 0 listens for the others; hosts: of all nodes, where known."""

    count: int = 1
    index: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    hosts: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name(self.index)

    def name(self, index: int) -> str:
        return f"node {index} ({self.hosts[index]})" if self.hosts else f"node {index}"

    def variables(self, index: int) -> dict[str, str]:
        """An environment in which `this_node` finds node `index` of this job."""
        hosts = {f"MLP_WORKER_{i}_HOST": host for i, host in enumerate(self.hosts or [self.host])}
        place = {"MLP_ROLE_INDEX": str(index), "MLP_WORKER_0_HOST": self.host, "MLP_WORKER_0_PORT": str(self.port)}
        return {"MLP_WORKER_NUM": str(self.count), **hosts, **place}


def this_node(environment: Mapping[str, str]) -> Node:
    """This machine's place from MLP_*, from NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, or from SLURM's variables.
    ValueError where they are missing or do not fit."""
    env = environment
    try:
        if "MLP_WORKER_NUM" in env:
            count = int(env["MLP_WORKER_NUM"])
            hosts = [env.get(f"MLP_WORKER_{i}_HOST", "") for i in range(count)]
            place = int(env["MLP_ROLE_INDEX"]), env["MLP_WORKER_0_HOST"], int(env["MLP_WORKER_0_PORT"])
            node = Node(count, *place, hosts if all(hosts) else ())
        elif "NNODES" in env:
            place = int(env["NODE_RANK"]), env["MASTER_ADDR"], int(env["MASTER_PORT"])
            node = Node(int(env["NNODES"]), *place)
        elif "SLURM_JOB_NODELIST" in env:
            node = _slurm_node(env)
        else:
            raise ValueError(
                "the environment does not name this node's place in the job: set MLP_WORKER_NUM, MLP_ROLE_INDEX, "
                "MLP_WORKER_0_HOST and MLP_WORKER_0_PORT (or NNODES, NODE_RANK, MASTER_ADDR and "
                "MASTER_PORT; SLURM sets its own). On one machine use rl.py or eval.py."
            )
    except KeyError as error:
        raise ValueError(f"the environment names a job of several nodes, but {error.args[0]} is not set.") from None
    if not 0 <= node.index < node.count:
        raise ValueError(f"this is node {node.index} of {node.count}: nodes count from 0.")
    return node


def _slurm_node(env: Mapping[str, str]) -> Node:
    hosts = host_list(env["SLURM_JOB_NODELIST"])
    if int(env.get("SLURM_NTASKS", len(hosts))) > len(hosts):
        raise ValueError(
            f"SLURM_NTASKS={env['SLURM_NTASKS']} on {len(hosts)} nodes: start one task a node (srun "
            "--ntasks-per-node=1); it starts a process for each GPU by itself."
        )
    port = int(env.get("MASTER_PORT", 20000 + int(env.get("SLURM_JOB_ID", 0)) % 10000))
    return Node(len(hosts), int(env["SLURM_NODEID"]), hosts[0], port, hosts)


def host_list(text: str) -> list[str]:
    """SLURM's short form of host names: "a[01-03,7],b" is a01, a02, a03, a7, b."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
        if match is None:
            hosts.append(item)
            continue
        before, ranges, after = match.groups()
        for part in ranges.split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                hosts.append(f"{before}{number:0{len(low)}d}{after}")
    return hosts
