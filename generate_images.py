"""Pictures from texts, by a model that draws them (MMaDA), as PNG files.

    python generate_images.py Gen-Verse/MMaDA-8B-MixCoT "a red dot" "two squares" -t showlab/magvitv2 -o pictures

pictures.jsonl beside them says which text, seed and settings made each.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.pipes import quiet_pipes

if TYPE_CHECKING:
    from models import DiffusionLM
    from sample import SamplingConfig


def generate_images(
    model: "DiffusionLM", texts: Sequence[str], out: Path, config: "SamplingConfig", n: int = 1
) -> list[Path]:
    """Draws n pictures of each text, text-major, and writes them to `out`: their paths. config: with output="image".
    Names go on where the folder's pictures end. ValueError: a model that draws no pictures, no image tokenizer."""
    import torch

    from models.vision.drawing import as_images
    from sample import Sampler

    rollouts = Sampler(model, config).generate([model.drawing_prompt(text).ids for text in texts], n=n)
    codes_BN = torch.tensor([rollout.token_ids for rollout in rollouts]) - model.need_drawing().codes.start
    images = as_images(model.decode_images(codes_BN))
    out.mkdir(parents=True, exist_ok=True)
    first = 1 + max((int(path.stem) for path in out.glob("*.png") if path.stem.isdecimal()), default=-1)
    paths = [out / f"{first + i:05d}.png" for i in range(len(images))]
    made = {"seed": config.seed, "steps": config.steps_per_block, "guidance": config.guidance}
    with (out / "pictures.jsonl").open("a", encoding="utf-8") as log:
        for i, (path, image) in enumerate(zip(paths, images, strict=True)):
            image.save(path)
            row = {"file": path.name, "text": texts[i // n], **made, "codes": codes_BN[i].tolist()}
            log.write(json.dumps(row) + "\n")
    return paths


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name of the model")
    parser.add_argument("texts", nargs="*", metavar="text", help="what to draw")
    parser.add_argument("--texts-file", type=Path, metavar="FILE", help="more texts, one a line")
    parser.add_argument("-t", "--image-tokenizer", required=True, help="folder or hub name of MAGVIT-v2")
    parser.add_argument("-o", "--out", type=Path, default=Path("pictures"), help="folder to write (pictures)")
    parser.add_argument("-n", type=int, default=1, help="pictures a text (1)")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="of a side (512)")
    parser.add_argument("--steps", type=int, default=18, help="denoising steps of a picture (18)")
    parser.add_argument("--guidance", type=float, default=3.5, help="0 = none, and half the work (3.5)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the codes that are drawn, 0 = greedy (1)")
    parser.add_argument("--noise", type=float, default=1.0, help="on the order of the codes, fades to 0 (1)")
    parser.add_argument("--seed", type=int, default=0, help="other pictures of the same texts (0)")
    parser.add_argument("--slots", type=int, default=8, help="pictures drawn at a time (8)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="auto: bf16 on a GPU")
    parser.add_argument("--device", default="auto", help="auto: a GPU where there is one")
    return parser.parse_intermixed_args()


def _texts(options: argparse.Namespace) -> list[str]:
    """ValueError where there is none."""
    lines = options.texts_file.read_text(encoding="utf-8").splitlines() if options.texts_file else []
    texts = [*options.texts, *(line.strip() for line in lines if line.strip())]
    if not texts:
        raise ValueError("no text to draw: give one in quotes, or --texts-file.")
    return texts


def run(options: argparse.Namespace) -> None:
    """ValueError for what a user can mend."""
    texts = _texts(options)
    import torch  # takes seconds, which --help does not need

    from models import load_model
    from sample import SamplingConfig

    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    dtype = ("float32" if device == "cpu" else "bfloat16") if options.dtype == "auto" else options.dtype
    model = load_model(options.model, dtype, device, image_tokenizer=options.image_tokenizer)
    config = SamplingConfig(
        output="image",
        max_new_tokens=model.picture_codes(options.size),
        steps_per_block=options.steps,
        strategy="low_confidence_static",
        guidance=options.guidance,
        temperature=options.temperature,
        alg_temp=options.noise,
        seed=options.seed,
        max_slots=options.slots,
    )
    for i, path in enumerate(generate_images(model, texts, options.out, config, options.n)):
        print(f"{path}  {texts[i // options.n]}")


def main() -> None:
    options = _parse()
    try:
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    quiet_pipes()
    main()
