"""The built-in task with pictures: which shape, and how many dots.

A picture has 4 x 4 cells of 8 pixels on a plain ground: one shape (circle, square, triangle, cross) in one of them, one
to six dots in others. A question is `shape?` or `dots?`, the answer `circle` or `3`. The files tiny_vision_sft,
tiny_vision_train and tiny_vision_test have the schema of any user's files; their pictures lie beside them, and no
picture of one is in another.

This file imports nothing of the project.
"""

import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZES = {"tiny_vision_test": 256, "tiny_vision_sft": 120, "tiny_vision_train": 4000}
CELLS, CELL_PIXELS = 4, 8
SHAPES = ("circle", "square", "triangle", "cross")
MOST_DOTS = 6
SPECIAL_TOKENS = ("<pad>", "<mask>", "<eos>", "<unk>")
TEXT_TOKENS = ("shape", "dots", *SHAPES, *"0123456789", *"? .,\n")
Colour = tuple[int, int, int]


def write_tiny_vision(folder: Path, seed: int) -> dict[str, Path]:
    """Writes the task's three files and their pictures into `folder`; the same seed always gives the same ones.

    Returns name -> file. The files come last: where one is, its pictures are.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"tiny-vision-{seed}")
    paths = {name: folder / f"{name}.json" for name in SIZES}
    seen: set[bytes] = set()
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, size in SIZES.items():
        rows[name] = []
        while len(rows[name]) < size:
            picture, shape, dots = drawn(draw)
            if picture in seen:
                continue
            seen.add(picture)
            question, answer = draw.choice((("shape?", shape), ("dots?", str(dots))))
            file = folder / "pictures" / f"{name}-{len(rows[name])}.png"
            file.write_bytes(picture)
            names = ("prompt", "response") if name == "tiny_vision_sft" else ("question", "ground_truth_answer")
            rows[name].append({names[0]: question, names[1]: answer, "image": f"pictures/{file.name}"})
    for name, path in paths.items():
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(rows[name], indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    return paths


def drawn(draw: random.Random) -> tuple[bytes, str, int]:
    """A picture as PNG, its shape, and how many dots it has."""
    ground = _colour(draw, 0, 90)
    image = Image.new("RGB", (CELLS * CELL_PIXELS,) * 2, ground)
    pen = ImageDraw.Draw(image)
    cells = draw.sample(range(CELLS * CELLS), MOST_DOTS + 1)
    shape, dots = draw.choice(SHAPES), draw.randint(1, MOST_DOTS)
    _draw_shape(pen, shape, *_corner(cells[0]), _colour(draw, 150, 255))
    for cell in cells[1 : 1 + dots]:
        x, y = _corner(cell)
        x, y = x + draw.randint(2, 4), y + draw.randint(2, 4)
        pen.rectangle((x, y, x + 1, y + 1), fill=_colour(draw, 150, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), shape, dots


def _corner(cell: int) -> tuple[int, int]:
    return cell % CELLS * CELL_PIXELS, cell // CELLS * CELL_PIXELS


def _colour(draw: random.Random, low: int, high: int) -> Colour:
    return draw.randint(low, high), draw.randint(low, high), draw.randint(low, high)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: int, y: int, colour: Colour) -> None:
    end = CELL_PIXELS - 1
    if shape == "circle":
        pen.ellipse((x, y, x + end, y + end), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + end, y + end), outline=colour)
    elif shape == "triangle":
        pen.polygon([(x, y + end), (x + end, y + end), (x + end // 2, y)], fill=colour)
    else:
        pen.line((x, y, x + end, y + end), fill=colour, width=2)
        pen.line((x, y + end, x + end, y), fill=colour, width=2)


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of configs/tiny_vision_model: a token for each word of the task,
    and for each character of questions of one's own."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = dict.fromkeys((*SPECIAL_TOKENS, *TEXT_TOKENS, *"abcdefghijklmnopqrstuvwxyz"))
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    words = "|".join(("shape", "dots", *SHAPES))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{words}|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        **{f"{token[1:-1]}_token": token for token in SPECIAL_TOKENS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
