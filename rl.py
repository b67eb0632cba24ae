"""Reinforcement learning: python rl.py config=configs/rl_tiny.yaml [a.b=c ...]; --help lists every key."""

import sys

from configs import load_config
from train import rl
from train.main import main

if __name__ == "__main__":
    main(lambda: rl.run(load_config(sys.argv[1:])))
