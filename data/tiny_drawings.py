"""The tiny drawing task: draw the named shape. Two cores learn it, from a model that has seen a few drawings, by reward
alone (examples/tiny_drawing.py, configs/rl_tiny_drawing.yaml).

A question is `a red circle at the top left`, its picture 16 x 16 pixels, the reward 1 where the decoded picture is near
the named drawing and farther from every other. What the test names (a colour, a shape and a place together) no
training names.

This file imports nothing of the project, so `reward.function: data/tiny_drawings.py:drawing_reward` loads from its path
alone.
"""

import functools
import itertools
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 16
NEAR = 0.012
"""Mean squared difference of pixels in [0, 1] up to which a picture is a drawing. Two drawings differ by more."""
COLOURS = {"red": (230, 50, 50), "green": (50, 200, 80), "blue": (60, 90, 240), "yellow": (240, 220, 60)}
PLACES = {"top left": (0, 0), "top right": (8, 0), "bottom left": (0, 8), "bottom right": (8, 8)}
SHAPES = ("square", "circle", "triangle", "cross")
TRAINED = 48
"""Names that training names; the rest are the test."""
SPECIAL_TOKENS = (
    *("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(f"<|reserved_token_{i}|>" for i in range(11)),
)


def draw(colour: str, shape: str, place: str) -> Image.Image:
    """The drawing of a name, on black."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen, (x, y), ink = ImageDraw.Draw(image), PLACES[place], COLOURS[colour]
    if shape == "square":
        pen.rectangle((x + 1, y + 1, x + 6, y + 6), fill=ink)
    elif shape == "circle":
        pen.ellipse((x + 0, y + 0, x + 7, y + 7), outline=ink, width=2)
    elif shape == "triangle":
        pen.polygon(((x, y + 7), (x + 7, y + 7), (x, y)), fill=ink)
    else:
        pen.rectangle((x + 3, y, x + 4, y + 7), fill=ink)
        pen.rectangle((x, y + 3, x + 7, y + 4), fill=ink)
    return image


def name_of(colour: str, shape: str, place: str) -> str:
    return f"a {colour} {shape} at the {place}"


@functools.cache
def drawings() -> dict[str, NDArray[np.float32]]:
    """Every drawing by its name: pixels in [0, 1]."""
    every = itertools.product(COLOURS, SHAPES, PLACES)
    return {name_of(*parts): np.asarray(draw(*parts), np.float32) / 255.0 for parts in every}


def shuffled_names(seed: int) -> list[str]:
    """All names in an order of this seed: the first TRAINED are trained, the others are the test."""
    names = list(drawings())
    random.Random(f"tiny-drawings-{seed}").shuffle(names)
    return names


def drawing_reward(
    prompts: list[str], completions: list[str], *, completion_images: list[Image.Image], question: list[str], **_: Any
) -> list[float]:
    """1.0 for each picture that is the drawing its question names, else 0.0."""
    names = list(drawings())
    pixels = np.stack([drawings()[name] for name in names])
    rewards = []
    for image, wanted in zip(completion_images, question, strict=True):
        distance = np.square(np.asarray(image, np.float32) / 255.0 - pixels).mean((1, 2, 3))
        nearest = int(distance.argmin())
        rewards.append(float(names[nearest] == wanted and distance[nearest] < NEAR))
    return rewards
