"""LLaDA-V's picture as square tiles, and where their features stand in a prompt. Numbers and pixels; no torch.

Facts: https://github.com/ML-GSAI/LLaDA-V (LLaVA's anyres with unpadding). Sizes are (width, height), maps of features
(height, width).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY = (127, 127, 127)
_SLACK = 1.1

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


def tile_grid(raw_config: Mapping[str, Any], side: int, patch: int) -> TileGrid:
    """How config.json cuts pictures for a tower with tiles and patches of so many pixels. ValueError for a way that is
    not LLaDA-V's."""
    ratio, merge = str(raw_config.get("image_aspect_ratio")), raw_config.get("mm_patch_merge_type")
    most = re.fullmatch(r"anyres(?:_max_(\d+))?", ratio)
    if (most is None and ratio != "pad") or merge != "spatial_unpad":
        raise ValueError(
            f"config.json has image_aspect_ratio: {ratio!r} and mm_patch_merge_type: {merge!r}; pictures are taken as "
            "anyres, anyres_max_N or pad, and merged by spatial_unpad."
        )
    sizes = _resolutions(raw_config.get("image_grid_pinpoints"), side)
    return TileGrid(side, side // patch, sizes, int(most[1]) if most is not None and most[1] else None)


def _resolutions(given: Any, side: int) -> tuple[Size, ...]:
    """image_grid_pinpoints: a list of sizes, or "(1x1),...,(6x6)" in tiles."""
    if isinstance(given, str):
        ends = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", given)]
        (a, b), (c, d) = ends[0], ends[-1]
        return tuple((i * side, j * side) for i in range(a, c + 1) for j in range(b, d + 1))
    if bad := [size for size in given if size[0] % side or size[1] % side]:
        raise ValueError(f"config.json has image_grid_pinpoints {bad[0]}, which tiles of {side} px do not fill.")
    return tuple((int(width), int(height)) for width, height in given)


def most_tiles(grid: TileGrid) -> int:
    """Of a picture, the whole of it among them."""
    return 1 + max((width // grid.side) * (height // grid.side) for width, height in grid.resolutions)


def most_tokens(grid: TileGrid) -> int:
    """No picture has more positions in a prompt: the whole of it, then the largest map, which is shrunk only where it
    is a fifth too large, and a newline a row."""
    per_tile = grid.patches**2
    largest: float = most_tiles(grid) - 1
    if grid.most is not None:
        largest = min(largest, _SLACK**2 * grid.most)
    rows = max(height for _, height in grid.resolutions) // grid.side * grid.patches
    return per_tile + int(largest * per_tile) + rows


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
    return (int(height // times), int(width // times)) if times > _SLACK else (height, width)


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
