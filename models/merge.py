"""Adapters and their base as one whole checkpoint: `python models/merge.py runs/my_run/ckpt/optimized -o merged`."""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime.pipes import quiet_pipes


def merge(adapters: Path, out: Path, dtype: str) -> None:
    """Writes the checkpoint in the base's original layout. ValueError for a folder without adapters, or an `out` that
    holds something."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder.")
    from models.load import load_model  # takes seconds, which --help does not need

    model = load_model(adapters, dtype)
    if model.adapters is None:
        raise ValueError(f"{adapters} holds no adapters (adapter_config.json): there is nothing to merge.")
    model.merge_adapters()
    model.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", type=Path, help="folder with adapter_config.json")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    arguments = parser.parse_args()
    try:
        merge(arguments.adapters, arguments.out, arguments.dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    quiet_pipes()
    main()
