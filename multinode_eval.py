"""eval.py on several machines; which one this is comes from the environment as for multinode_rl.py."""

from train.command import main

if __name__ == "__main__":
    main("train.evaluation", "python multinode_eval.py config=configs/NAME.yaml [a.b=c ...]", nodes=True)
