"""rl.py on several machines: the same command on every node, or on node 0 alone, which starts the others over ssh.

A node learns its place from MLP_WORKER_NUM, MLP_ROLE_INDEX, MLP_WORKER_0_HOST and MLP_WORKER_0_PORT, from NNODES,
NODE_RANK, MASTER_ADDR and MASTER_PORT, or from SLURM's variables.
"""

from train.command import main

if __name__ == "__main__":
    main("train.rl", "python multinode_rl.py config=configs/NAME.yaml [a.b=c ...]", nodes=True)
