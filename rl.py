"""Reinforcement learning: python rl.py config=configs/rl_tiny.yaml [a.b=c ...]; --help lists every key."""

from train.command import main

if __name__ == "__main__":
    main("train.rl", "python rl.py config=configs/NAME.yaml [a.b=c ...]")
