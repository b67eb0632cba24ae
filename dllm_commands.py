"""Console commands of `pip install -e .`: what people run of this checkout, from any folder.

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


def serve() -> None:
    _add_checkout()
    from serve.command import main

    main("dllm-serve model=PATH [port=8000 key=value ...]")


def chat() -> None:
    _add_checkout()
    from serve.command import chat

    chat("dllm-chat model=PATH [key=value ...]")


def lm_eval() -> None:
    _add_checkout()
    try:
        from serve.harness import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        sys.exit("error: lm_eval is not installed: pip install -c requirements-extras.txt lm_eval")
    main()


def environment() -> None:
    _add_checkout()
    from runtime.environment import main

    main()


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
