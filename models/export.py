"""A checkpoint for use elsewhere: `python models/export.py runs/my_run/ckpt/optimized -o my_model [--push OWNER/NAME]`.

The original layout in bf16, in files of at most 5 GB, adapters merged into their base, the model card, nothing of the
trainer's state. `--push` uploads the folder to the hub with the login that `hf auth login` keeps.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime.pipes import quiet_pipes

DTYPES = ("bfloat16", "float32", "float16")
CARD = "README.md"


def export(checkpoint: Path, out: Path, dtype: str) -> None:
    """Writes the checkpoint, merged where it is one of adapters. ValueError for an `out` that holds something, or a
    folder that is no checkpoint."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another.")
    from models.load import load_model  # takes seconds, which --help does not need

    model = load_model(checkpoint, dtype)
    if model.adapters is not None:
        model.merge_adapters()
    model.save(out)
    if (checkpoint / CARD).is_file():
        (out / CARD).write_bytes((checkpoint / CARD).read_bytes())


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads the folder as a model of the hub; its address. ValueError where the hub refuses, or cannot be reached."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        shown = private and not api.model_info(name).private
        if not shown:
            return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # whatever its client raises: no login, no rights, no network
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"--push {name}: {type(error).__name__}: {first} The model is in {folder}: `hf auth login`, then "
            f"`hf upload {name} {folder}`."
        ) from error
    raise ValueError(f"--push {name} is public already: add --public, or choose another name. Nothing was uploaded.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder (runs/my_run/ckpt/optimized)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write, empty or absent")
    parser.add_argument("--dtype", default=DTYPES[0], choices=DTYPES, help="of the weights (%(default)s)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the hub too")
    parser.add_argument("--public", action="store_true", help="with --push: for all to see (default: private)")
    arguments = parser.parse_args()
    try:
        export(arguments.checkpoint, arguments.out, arguments.dtype)
        print(arguments.out, flush=True)
        if arguments.push:
            print(push(arguments.out, arguments.push, not arguments.public), flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    quiet_pipes()
    main()
