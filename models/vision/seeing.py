"""How a model takes pictures: the seam that a family with vision fills."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from models.families.base import PLACEHOLDER, Family
from models.vision.drawing import Drawing
from models.vision.images import Source, image_digest, open_image
from models.vision.prompt import Picture, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]
Part = Literal["projector", "all"] | None
"""Of a model's vision: what is trained, projector and newline or the tower too; None of it."""
DEFAULT_RESOLUTION = 512


class Vision(Protocol):
    """What a family does with pictures.

    image_id: stands at the positions of features; None where pictures are tokens of the vocabulary. fits: names of the
    ways to bring a picture to the model's size. in_front: a text without placeholders has its pictures before it.
    """

    image_id: int | None
    fits: tuple[str, ...]
    in_front: bool

    def fit(self, pictures: int) -> str:
        """The way that "auto" means in a prompt of so many pictures."""
        ...

    def outline(self, size_wh: tuple[int, int], fit: str, resolution: int) -> Picture:
        """As `encode` gives it for a picture of this size, in length alone: nothing is encoded."""
        ...

    def encode(self, image: Image.Image, fit: str, resolution: int, digest: str) -> Picture:
        """The picture (RGB), alone: its ids, and its features or a function that makes them."""
        ...

    def __call__(self, picture: Picture) -> Tensor:
        """A picture's features in a forward pass, with gradients where vision is trained. Only where there is an image
        id."""
        ...

    def place(self, pieces: Sequence[str], pictures: Sequence[Picture], encode: Encode) -> list[int]:
        """Ids of a prompt: a text, cut at its placeholders, with its pictures. encode: text -> ids."""
        ...


class Seeing(nn.Module):
    """The part of a model that deals with pictures. vision: its family's, None where that has none."""

    vision: Vision | None
    tokenizer: "PreTrainedTokenizerBase | None"

    @property
    def image_id(self) -> int | None:
        return self.vision.image_id if self.vision is not None else None

    def encode_images(
        self, images: Sequence[Source], fit: str = "auto", resolution: int = DEFAULT_RESOLUTION
    ) -> list[Picture]:
        """Each picture alone, encoded. fit: "auto", or a way that the family names. ImageFault for a picture that
        cannot be used; ValueError: the model takes no pictures, or not in this way."""
        return self._encoded(images, self.fit_of(fit, 1), resolution)

    def _encoded(self, images: Sequence[Source | Picture], fit: str, resolution: int) -> list[Picture]:
        return [each if isinstance(each, Picture) else self._picture(each, fit, resolution) for each in images]

    def _picture(self, image: Source, fit: str, resolution: int) -> Picture:
        picture = self.need_vision().encode(open_image(image), fit, resolution, image_digest(image))
        picture.again = functools.partial(self._picture, image, fit, resolution)
        return picture

    def prompt(
        self,
        text: str,
        images: Sequence[Source | Picture] = (),
        fit: str = "auto",
        resolution: int = DEFAULT_RESOLUTION,
        encode: Encode | None = None,
    ) -> Prompt:
        """A rendered conversation with its pictures, in the order of the text's placeholders (`<image>`). encode: text
        -> ids, default the tokenizer's. ValueError: no tokenizer, placeholders and pictures that differ in number."""
        encode = encode or self._encode
        if not images and (self.vision is None or PLACEHOLDER not in text):
            return Prompt(encode(text))
        pictures = self._encoded(images, self.fit_of(fit, len(images)), resolution)
        return Prompt(self.placed(text, pictures, encode), pictures=pictures)

    def placed(self, text: str, pictures: Sequence[Picture], encode: Encode) -> list[int]:
        """Ids of a text with its pictures. ValueError where placeholders and pictures differ in number."""
        vision, pieces = self.need_vision(), text.split(PLACEHOLDER)
        if len(pieces) != len(pictures) + 1 and not (vision.in_front and len(pieces) == 1):
            raise ValueError(
                f"a prompt has {len(pieces) - 1} {PLACEHOLDER} and {len(pictures)} pictures: write one {PLACEHOLDER} "
                "where each picture belongs."
            )
        return vision.place(pieces, pictures, encode)

    def train_vision(self, part: Part) -> None:
        """Lets training reach this part of what sees, and no other. ValueError where it has no such part."""
        if isinstance(self.vision, nn.Module):
            self.vision.train_part(part)
        elif part is not None:
            raise ValueError(
                f"training.train_vision={part}: the model has no vision that is trained with it. Leave it false."
            )

    def see_apart(self) -> None:
        """Pictures that another model encoded are encoded anew, without gradients: by a reference of other weights."""
        if isinstance(self.vision, nn.Module):
            self.vision.apart = True

    @property
    def towers(self) -> list[nn.Module]:
        """Networks of transformers that it sees with and that may be trained."""
        return [self.vision.tower] if isinstance(self.vision, nn.Module) else []

    def keep_whole_vision(self, dtype: torch.dtype, device: torch.device) -> None:
        """Pictures are encoded with a whole copy of what sees, before an engine shards the model's weights."""
        if isinstance(self.vision, nn.Module):
            self.vision.keep_whole(dtype, device)

    def features_of(self, prompts: Sequence[Prompt]) -> Tensor:
        """The rows of these prompts' pictures, one prompt after another, in a forward pass."""
        vision = self.need_vision()
        rows: list[Tensor | None] = []
        for prompt in prompts:
            rows += [vision(picture) for picture in prompt.pictures] or [prompt.features]
        return torch.cat([row for row in rows if row is not None])

    def fit_of(self, fit: str, pictures: int) -> str:
        """The way to take each of so many pictures of a prompt. ValueError for one that the family does not know."""
        vision = self.need_vision()
        if fit != "auto" and fit not in vision.fits:
            raise ValueError(f"image_fit is {fit!r}: use auto, {' or '.join(vision.fits)}.")
        return vision.fit(pictures) if fit == "auto" else fit

    def need_vision(self) -> Vision:
        if self.vision is None:
            raise ValueError("the model takes no pictures: give one of a family that does (lladav, mmada).")
        return self.vision

    @property
    def drawing(self) -> Drawing | None:
        """How the model draws pictures, None where it draws none."""
        return getattr(self.vision, "drawing", None)

    def need_drawing(self) -> Drawing:
        if self.drawing is None:
            raise ValueError("the model draws no pictures: give one of a family that does (mmada), with its tokenizer.")
        return self.drawing

    def drawing_prompt(self, text: str, encode: Encode | None = None) -> Prompt:
        """The prompt of a picture that is to be drawn (`SamplingConfig.output` = image), from its description. encode:
        as of `prompt`."""
        return Prompt(self.need_drawing().prompt((encode or self._encode)(text)))

    def picture_codes(self, resolution: int) -> int:
        """Codes of a square picture of so many pixels a side. ValueError as of `encode_images`."""
        return len(self.need_vision().outline((resolution, resolution), "squash", resolution).ids)

    def decode_images(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pictures [B, 3, H, W] (fp32, about -1 to 1) of codes [B, N] (int64; a token's id less that of the first,
        `drawing.codes.start`). shape: rows and columns of the grid that the codes fill row by row; None = a square.
        ValueError: a model that draws none, no image tokenizer, codes beyond the codebook or that fill no grid."""
        return self.need_drawing().decode(codes, shape)

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError("the model folder has no tokenizer: text cannot be read. Give ids (models.Prompt).")
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def see(model: Seeing, family: Family, image_tokenizer: str | None) -> None:
    """Lets the model take pictures as its family does. ValueError for an image tokenizer that the family has no use
    for."""
    if family.vision is not None:
        model.vision = family.vision(model, image_tokenizer)
    elif image_tokenizer is not None:
        raise ValueError(
            f"image_tokenizer={image_tokenizer}: {family.name} reads no pictures from an image tokenizer. Leave it out "
            "(YAML: model.vq_model_path)."
        )
