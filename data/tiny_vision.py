"""The tiny task about pictures: which shape is drawn, and how many times? Two cores learn it, by SFT on few examples
first and then from reward alone (configs/rl_tiny_vision.yaml).

A picture of 24 x 24 pixels shows one to five circles, squares, triangles or crosses of one colour, in places of their
own; its answer is `four circle`. Words are compared as they stand, so number and shape both count; of `4 circle`
mathematics would read the 4 alone. Of the answers of tiny_vision_sft two in five name another shape, as careless people
would: SFT on them says the right shape about three times in five, however well it learns to see, and the reward has to
teach the rest. The files tiny_vision_sft, tiny_vision_train and tiny_vision_test have the schema of any user's files
with pictures. No picture occurs twice, so none of the test is seen in training.
"""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from data.tiny import Words, write_text
from models.families.lladav import LLADAV

SIDE, CELL = 24, 8
COUNTS = ("one", "two", "three", "four", "five")
"""Of the shapes of a picture, in words."""
SHAPES = ("circle", "square", "triangle", "cross")
WRONG_SHAPES = 0.4
"""Share of the answers of tiny_vision_sft that name another shape than the picture shows."""
QUESTION = "how many of which shape?"
SIZES = {"tiny_vision_test": 256, "tiny_vision_sft": 800, "tiny_vision_train": 3000}
_CONTROL = (
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|startoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
WORDS = Words(
    special=(*_CONTROL, "<unk>", *([LLADAV.chat.system] if LLADAV.chat and LLADAV.chat.system else [])),
    text=("system", "user", "assistant", "how", " many", " of", " which", " shape", " circle", " square", " triangle")
    + (" cross", *COUNTS, " ", "?", "\n"),
    word=r" ?[a-z]+|[\s\S]",
    roles={"pad": "<|endoftext|>", "mask": "<|mdm_mask|>", "eos": "<|endoftext|>", "unk": "<unk>"},
)
"""Of configs/tiny_vision_model. LLaDA-V's system prompt is one token."""


def draw(pen: ImageDraw.ImageDraw, shape: str, x: int, y: int, ink: tuple[int, ...]) -> None:
    """A shape of 6 x 6 pixels with its corner at (x, y)."""
    if shape == "circle":
        pen.ellipse((x, y, x + 5, y + 5), outline=ink)
    elif shape == "square":
        pen.rectangle((x, y, x + 5, y + 5), fill=ink)
    elif shape == "triangle":
        pen.polygon(((x, y + 5), (x + 5, y + 5), (x, y)), fill=ink)
    else:
        pen.rectangle((x + 2, y, x + 3, y + 5), fill=ink)
        pen.rectangle((x, y + 2, x + 5, y + 3), fill=ink)


def picture(choose: random.Random) -> tuple[Image.Image, str]:
    """A picture and its answer."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(choose.randrange(60) for _ in range(3)))
    shape, count = choose.choice(SHAPES), choose.randint(1, len(COUNTS))
    ink = tuple(choose.randrange(150, 256) for _ in range(3))
    for cell in choose.sample(range((SIDE // CELL) ** 2), count):
        x, y = (CELL * place + choose.randint(0, 2) for place in (cell % 3, cell // 3))
        draw(ImageDraw.Draw(image), shape, x, y, ink)
    return image, f"{COUNTS[count - 1]} {shape}"


def careless(answer: str, choose: random.Random) -> str:
    """The answer, or, of a share WRONG_SHAPES, the right number with another shape."""
    count, shape = answer.split()
    if choose.random() < WRONG_SHAPES:
        shape = choose.choice([other for other in SHAPES if other != shape])
    return f"{count} {shape}"


def write_tiny_vision(folder: Path, seed: int) -> dict[str, Path]:
    """Writes the task's three files and their pictures into `folder`; the same seed always gives the same pictures.

    Returns name -> file. The files are written last, so where one is, its pictures are too."""
    choose, slip = random.Random(f"tiny-vision-{seed}"), random.Random(f"tiny-vision-careless-{seed}")
    seen, paths = set(), {}
    for name, size in SIZES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            image, answer = picture(choose)
            if image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            file = f"{name}/{len(rows):04}.png"
            image.save(folder / file)
            if name == "tiny_vision_sft":
                rows.append({"prompt": QUESTION, "response": careless(answer, slip), "image": file})
            else:
                rows.append({"question": QUESTION, "ground_truth_answer": answer, "image": file})
        paths[name] = folder / f"{name}.json"
        write_text(paths[name], json.dumps(rows, indent=1) + "\n")
    return paths
