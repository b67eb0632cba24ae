"""Pictures that a model drew, as they form: decoded at some of their steps when the page is built.

Shapes: F frames of a picture, N codes, h, w its squares.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.vision.drawing import as_images
from models.vision.magvit import load_magvit
from sample.viewer.pictures import MOST_PIXELS, data_uri
from sample.viewer.trace import Trace

MOST_FRAMES, MOST_DECODED = 8, 96
"""Of a picture, and of a page: a picture of 512 x 512 takes seconds on a processor."""
_GREY, _SHARP_PIXELS = 127, 64
Frame = tuple[int, str]
"""A step, and the picture as it is after it, as a data URI."""


class Forming:
    """image_tokenizer: folder or hub name of MAGVIT-v2 (ValueError where it holds none); first: id of code 0. left_out:
    drawn pictures that came when the page had MOST_DECODED."""

    def __init__(self, image_tokenizer: str | Path, first: int):
        self.tokenizer = load_magvit(image_tokenizer, "cuda" if torch.cuda.is_available() else "cpu")
        self.first, self.left_out, self._room = first, 0, MOST_DECODED

    def frames(self, trace: Trace) -> list[Frame]:
        """At most MOST_FRAMES, evenly over the steps that decided something, the last among them; a square whose code
        is not decided is grey. None of a text, or of what is no picture of this tokenizer."""
        steps = np.array(trace.steps)
        decided, side = np.unique(steps[steps > 0]), int(len(steps) ** 0.5)
        if not trace.is_drawn or not len(decided) or side * side != len(steps):
            return []
        if self._room <= 0:
            self.left_out += 1
            return []
        chosen = decided[np.unique(np.linspace(0, len(decided) - 1, min(MOST_FRAMES, self._room)).round().astype(int))]
        known_FN = (steps > 0) & (steps <= chosen[:, None])
        codes_FN = np.where(known_FN, np.array(trace.ids) - self.first, 0)
        if codes_FN.min() < 0 or codes_FN.max() >= self.tokenizer.codebook_size:
            return []
        self._room -= len(chosen)
        pictures = as_images(self.tokenizer.decode(torch.from_numpy(codes_FN)))
        known_Fhw = known_FN.reshape(-1, side, side)
        return [
            (int(step), data_uri(_veiled(picture, known_hw), "png" if picture.width <= _SHARP_PIXELS else "jpeg"))
            for step, picture, known_hw in zip(chosen, pictures, known_Fhw, strict=True)
        ]


def _veiled(picture: Image.Image, known_hw: np.ndarray) -> Image.Image:
    """The picture, small, with grey over the squares that are not known."""
    veil = Image.fromarray(np.where(known_hw, 0, 255).astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    picture.paste((_GREY,) * 3, mask=veil)
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return picture
