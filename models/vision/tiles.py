"""LLaDA-V's picture as square tiles, and where their features stand in a prompt. Numbers and pixels; no torch.

Facts: https://github.com/ML-GSAI/LLaDA-V (LLaVA's anyres with unpadding). Sizes are (width, height), maps of features
(height, width).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY = (127, 127, 127)

Size = tuple[int, int]


@dataclass(frozen=True)
class TileGrid:
    """How a checkpoint cuts pictures.

    side: of a tile in pixels; patches: features of a tile a side. resolutions: sizes that a picture may be laid out in.
    most: a picture's map of features is shrunk to about the size of so many tiles; None = never.
    """

    side: int
    patches: int
    resolutions: tuple[Size, ...]
    most: int | None = None


@dataclass(frozen=True)
class Plan:
    """How a picture of one size is taken. grid: columns and rows of tiles beside the whole picture, None: one padded
    square alone. unpadded, merged: the map of the grid's features without padding, and as it is shrunk."""

    grid: Size | None
    crop: tuple[slice, slice]
    unpadded: Size
    merged: Size
    num_tokens: int


def best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The one that keeps the most of the picture's pixels, then wastes the fewest of its own; the first of equal
    ones."""
    width, height = size

    def fit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=fit)


def plan(size: Size, fit: str, grid: TileGrid) -> Plan:
    """How a picture of this size is taken. fit: "anyres" or "pad"."""
    side = grid.patches
    if fit == "pad":
        return Plan(None, (slice(None), slice(None)), (side, side), (side, side), side * side + 1)
    resolution = best_resolution(size, grid.resolutions)
    columns, rows = resolution[0] // grid.side, resolution[1] // grid.side
    map_H, map_W = rows * side, columns * side
    crop = _crop(size, map_H, map_W)
    height, width = (len(range(*part.indices(most))) for part, most in zip(crop, (map_H, map_W), strict=True))
    merged = _shrunk(height, width, side, grid.most)
    return Plan((columns, rows), crop, (height, width), merged, side * side + merged[0] * (merged[1] + 1))


def _crop(size: Size, map_H: int, map_W: int) -> tuple[slice, slice]:
    """The part of a map of features that shows the picture and not the black around it."""
    width, height = size
    if width / height > map_W / map_H:
        beside = (map_H - int(height * (map_W / width))) // 2
        return slice(beside, map_H - beside), slice(0, map_W)
    beside = (map_W - int(width * (map_H / height))) // 2
    return slice(0, map_H), slice(beside, map_W - beside)


def _shrunk(height: int, width: int, side: int, most: int | None) -> Size:
    times = math.sqrt(height * width / (most * side**2)) if most else 1.0
    return (int(height // times), int(width // times)) if times > 1.1 else (height, width)


def tiles(image: Image.Image, fit: str, grid: TileGrid) -> NDArray[np.uint8]:
    """The tiles [n, 3, side, side] of an RGB picture: the whole of it squashed, then the grid's row by row; or the one
    square of "pad"."""
    S = grid.side
    if fit == "pad":
        return _stacked([_square(image).resize((S, S), Image.Resampling.BICUBIC)])
    width, height = best_resolution(image.size, grid.resolutions)
    laid = Image.new("RGB", (width, height))
    resized, corner = placed(image.size, (width, height))
    laid.paste(image.resize(resized, Image.Resampling.BICUBIC), corner)
    parts = [laid.crop((x, y, x + S, y + S)) for y in range(0, height, S) for x in range(0, width, S)]
    return _stacked([image.resize((S, S), Image.Resampling.BICUBIC), *parts])


def placed(size: Size, resolution: Size) -> tuple[Size, Size]:
    """Size of the picture inside a resolution, and the corner where it is put."""
    across, down = resolution[0] / size[0], resolution[1] / size[1]
    if across < down:
        resized = resolution[0], min(math.ceil(size[1] * across), resolution[1])
    else:
        resized = min(math.ceil(size[0] * down), resolution[0]), resolution[1]
    return resized, ((resolution[0] - resized[0]) // 2, (resolution[1] - resized[1]) // 2)


def _square(image: Image.Image) -> Image.Image:
    """On a grey square, in the middle."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _stacked(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
