"""Evaluation: python eval.py config=configs/tiny_eval.yaml [a.b=c ...]; --help lists every key."""

import sys

from configs import load_config
from train import evaluation
from train.main import main

if __name__ == "__main__":
    main(lambda: evaluation.run(load_config(sys.argv[1:], "python eval.py config=configs/NAME.yaml [a.b=c ...]")))
