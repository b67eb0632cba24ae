"""Pictures as token ids: MMaDA's. A picture is a run of codes of an image tokenizer (`models.vision.magvit`), whose ids
follow those of the text. https://github.com/Gen-Verse/MMaDA (training/prompting_utils.py)

Shapes: N codes of a picture, R the pixels of its side.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from models.vision.drawing import Drawing
from models.vision.magvit import Magvit, Sizes, load_magvit, read_sizes
from models.vision.prompt import Picture
from models.vision.seeing import Encode

logger = logging.getLogger(__name__)

_WHITE = (255, 255, 255)
_STEPS = 18
"""MMaDA's of a picture, where none are named."""


class SpecialIds(NamedTuple):
    """Ids around pictures and texts: begin and end of a picture, a picture to be drawn, a picture to be understood,
    begin and end of a text."""

    begin: int
    end: int
    draw: int
    understand: int
    bos: int
    eos: int


_NAMES: dict[str, tuple[tuple[str, ...], int]] = {
    "begin": (("<|soi|>", "<|reserved_token_0|>"), 126084),
    "end": (("<|eoi|>", "<|reserved_token_1|>"), 126085),
    "draw": (("<|t2i|>", "<|reserved_token_4|>"), 126088),
    "understand": (("<|mmu|>", "<|reserved_token_5|>"), 126089),
    "bos": (("<|startoftext|>",), 126080),
    "eos": (("<|endoftext|>",), 126081),
}
"""Names in the tokenizer, the first that it has, and the published number for one that has none."""


def special_ids(tokenizer: Any) -> SpecialIds:
    known = tokenizer.get_vocab()
    return SpecialIds(
        **{
            role: next((known[name] for name in names if name in known), published)
            for role, (names, published) in _NAMES.items()
        }
    )


def cropped(image: Image.Image, R: int) -> Image.Image:
    """MMaDA's: the shorter side to R, then the middle."""
    w, h = image.size
    size = (R, int(R * h / w)) if w < h else (int(R * w / h), R)
    left, top = (round((side - R) / 2) for side in size)
    return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + R, top + R))


def padded(image: Image.Image, R: int) -> Image.Image:
    """dLLM-RL's: in the middle of a white square, the smaller half left and above, then to R."""
    (w, h), side = image.size, max(image.size)
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image, ((side - w) // 2, (side - h) // 2))
    return squashed(square, R)


def squashed(image: Image.Image, R: int) -> Image.Image:
    """To R x R, whatever its sides."""
    return image.resize((R, R), Image.Resampling.BICUBIC)


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"pad": padded, "crop": cropped, "squash": squashed}


@dataclass(frozen=True)
class Codes:
    """`models.vision.seeing.Vision` of pictures that are codes, for a model with a tokenizer.

    first: id of code 0; size: of the codebook. image_tokenizer: folder or hub name, None = not given. model: on whose
    device pictures are encoded and decoded; in a copy of the model the copy.
    """

    first: int
    size: int
    special: SpecialIds
    image_tokenizer: str | None
    model: Any = field(repr=False, compare=False)

    image_id = None
    fits = tuple(FITS)
    in_front = True

    def fit(self, pictures: int) -> str:
        return "pad"

    @property
    def drawing(self) -> Drawing:
        special = self.special
        return Drawing(
            codes=range(self.first, self.first + self.size),
            before=(special.draw, special.bos),
            after=(special.eos, special.begin),
            suffix_ids=(special.end,),
            steps=_STEPS,
            decode=lambda codes, shape: self._tokenizer().decode(codes, shape),
        )

    def outline(self, size_wh: tuple[int, int], fit: str, resolution: int) -> Picture:
        return Picture([self.first] * self._squares(resolution) ** 2)

    def encode(self, image: Image.Image, fit: str, resolution: int, digest: str) -> Picture:
        self._squares(resolution)
        pixels_HW3 = np.asarray(FITS[fit](image, resolution))
        pixels_3HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).float() / 127.5 - 1.0
        return Picture((self._tokenizer().encode(pixels_3HW) + self.first).tolist())

    def place(self, pieces: Sequence[str], pictures: Sequence[Picture], encode: Encode) -> list[int]:
        """[mmu] ([soi] codes [eoi]) for each picture, then the text without placeholders and the line break after
        each."""
        first, *others = pieces
        ids = [self.special.understand] if pictures else []
        for picture in pictures:
            ids += [self.special.begin, *picture.ids, self.special.end]
        return ids + encode(first + "".join(piece.removeprefix("\n") for piece in others))

    def _tokenizer(self) -> Magvit:
        tokenizer = _loaded(self._named(), self.model.device)
        if tokenizer.codebook_size != self.size:
            raise ValueError(
                f"the image tokenizer {self.image_tokenizer} has {tokenizer.codebook_size} codes, the model "
                f"{self.size} (codebook_size): give the one that the model was trained with."
            )
        return tokenizer

    def _squares(self, resolution: int) -> int:
        """Codes along a side of a picture of so many pixels."""
        pixels = _read_sizes(self._named()).square_pixels
        if resolution < pixels or resolution % pixels:
            raise ValueError(
                f"image_resolution is {resolution}: it must be a multiple of {pixels}, the pixels of a code."
            )
        return resolution // pixels

    def _named(self) -> str:
        if self.image_tokenizer is None:
            raise ValueError(
                "pictures need an image tokenizer: set model.vq_model_path (load_model's image_tokenizer) to "
                "MAGVIT-v2's folder or hub name, showlab/magvitv2."
            )
        return self.image_tokenizer


@functools.lru_cache(maxsize=2)
def _loaded(path: str, device: torch.device) -> Magvit:
    return load_magvit(path, device)


@functools.lru_cache(maxsize=2)
def _read_sizes(path: str) -> Sizes:
    return read_sizes(path)


def code_vision(model: Any, image_tokenizer: str | None) -> Codes | None:
    """How a `DiffusionLM` takes pictures as codes. Without a tokenizer it takes none, with one warning: where the text
    ends and the codes begin is known from it alone."""
    if model.tokenizer is None:
        if image_tokenizer is not None:
            raise ValueError(
                f"{model.spec.folder} has no tokenizer, whose length says where the codes of pictures begin: copy its "
                "tokenizer files, or leave the image tokenizer out."
            )
        logger.warning(
            "%s has no tokenizer: ids below %d count as text by config.json, which may be too many; no pictures",
            *(model.spec.folder, model.text_vocab_size),
        )
        return None
    first, vocab_size = model.text_vocab_size, int(model.hf_config.vocab_size)
    size = min(int(model.spec.raw.get("codebook_size") or 8192), vocab_size - first)
    return Codes(first, size, special_ids(model.tokenizer), image_tokenizer, model)
