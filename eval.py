"""Evaluation: python eval.py config=configs/tiny_eval.yaml [a.b=c ...]; --help lists every key."""

from train.command import main

if __name__ == "__main__":
    main("train.evaluation", "python eval.py config=configs/NAME.yaml [a.b=c ...]")
