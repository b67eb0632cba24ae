"""Console commands of `pip install -e .`: rl.py, eval.py, train/sft.py, sample/get_report.py and models/export.py from
any folder.

They run this checkout. Its folder goes first on the path, so that no other package called train, data or models is
taken for one of its own.
"""

import sys
from pathlib import Path


def rl() -> None:
    _run("train.rl", "dllm-rl")


def evaluate() -> None:
    _run("train.evaluation", "dllm-eval")


def sft() -> None:
    _run("train.sft", "dllm-sft")


def report() -> None:
    _add_checkout()
    from sample.viewer.report import main

    sys.exit(main())


def export() -> None:
    _add_checkout()
    from models.export import main

    main()


def _run(module: str, command: str) -> None:
    _add_checkout()
    from train.command import main

    main(module, f"{command} config=configs/NAME.yaml [a.b=c ...]")


def _add_checkout() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
