"""The pictures of tasks and examples: how long they are in prompts, which cannot be used, and their encoding."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TypeVar

from configs import find, naming
from configs.schema import Config, DatasetConfig, DecodeConfig
from data.control import encode
from data.pictures import PictureSource
from data.tasks import Example, Task
from models import DiffusionLM, Picture, Prompt
from models.families import Family
from models.vision.images import ImageFault, image_size
from models.vision.magvit import read_sizes

logger = logging.getLogger(__name__)

_SHOWN = 3
Item = TypeVar("Item")
Made = TypeVar("Made")


def image_root(config: DatasetConfig, file: Path, family: Family, data_type: str | None = None) -> Path | None:
    """The folder that paths of pictures start in: dataset.image_root, else that of the data file. None where pictures
    are no part of the tasks: the model's family takes none. ValueError where there is no such folder, and for tasks
    about pictures (mmu) of such a family."""
    if family.vision is None:
        if data_type == "mmu":
            raise ValueError(
                f"data_type mmu is about pictures, which {family.name} models do not take: use one of a family that "
                "does (lladav, mmada), or another data_type."
            )
        return None
    if not config.image_root:
        return file.parent
    folder = find(config.image_root)
    if not folder.is_dir():
        raise ValueError(f"dataset.image_root={config.image_root}: there is no such folder.")
    return folder


def check_fit(config: Config, family: Family, asked: Iterable[Task | Example]) -> None:
    """ValueError where model.image_fit is no way in which models of the family take the pictures of tasks or
    examples."""
    fit = config.model.image_fit
    if fit == "auto" or family.picture_fits is None or fit in family.picture_fits():
        return
    if any(each.images for each in asked):
        ways = " or ".join(family.picture_fits())
        raise ValueError(f"model.image_fit={fit}: {family.name} models take pictures otherwise: use auto, {ways}.")


def check_drawing(config: Config, decode: DecodeConfig, family: Family) -> None:
    """ValueError where a section's responses are to be pictures that cannot be drawn."""
    if decode.output == "text":
        return
    what, codes = f"{decode.key('output')}=image", decode.max_new_tokens
    if family.vision is None or family.trains_vision:  # pictures are no ids of the vocabulary
        raise ValueError(f"{what}: {family.name} models draw no pictures: use one of a family that does (mmada).")
    if not config.model.vq_model_path:
        raise ValueError(f"{what}: set model.vq_model_path to MAGVIT-v2's folder or hub name, showlab/magvitv2.")
    if isqrt(codes) ** 2 != codes:
        raise ValueError(
            f"{what}: {decode.key('max_new_tokens')}={codes} codes are no square picture: a side has its square root "
            "(512 pixels of showlab/magvitv2: 1024 codes)."
        )
    with naming("model.vq_model_path"):
        read_sizes(find(config.model.vq_model_path))


@dataclass(frozen=True)
class Eyes:
    """How a run's model takes pictures: model.image_fit and model.image_resolution."""

    model: DiffusionLM
    fit: str = "auto"
    resolution: int = 512

    @staticmethod
    def of(config: Config, model: DiffusionLM) -> "Eyes":
        return Eyes(model, config.model.image_fit, config.model.image_resolution)

    def outline(self, text: str, images: Sequence[PictureSource]) -> tuple[list[int], int]:
        """Ids of a guarded text with its pictures in length alone, and how many of them are of pictures. ImageFault for
        a picture whose file's header says that it cannot be used."""
        vision, fit = self.model.need_vision(), self.model.fit_of(self.fit, len(images))
        pictures = [
            self._given(image) or vision.outline(image_size(image), fit, self.resolution)  # type: ignore[arg-type]
            for image in images
        ]
        ids = self.model.placed(text, pictures, self._encode)
        return ids, sum(len(picture.ids) for picture in pictures)

    def see(self, text: str, images: Sequence[PictureSource]) -> Prompt:
        """A guarded text with its pictures, encoded. ImageFault for one that cannot be used."""
        sources = [self._given(image) or image for image in images]
        return self.model.prompt(text, sources, self.fit, self.resolution, self._encode)  # type: ignore[arg-type]

    def _encode(self, text: str) -> list[int]:
        return encode(self.model.tokenizer, text)

    def _given(self, image: PictureSource) -> Picture | None:
        """A picture that a row has as ids. ValueError where they are none of this model."""
        if not isinstance(image, tuple):
            return None
        first, last = self.model.text_vocab_size, self.model.hf_config.vocab_size
        if self.model.image_id is not None or not all(first <= i < last for i in image):
            raise ValueError(
                f"image_token_ids {min(image)} to {max(image)} are no pictures of this {self.model.family} model"
                + ("" if self.model.image_id is not None else f", whose codes are {first} to {last - 1}")
                + ": give the pictures themselves (image)."
            )
        return Picture(image)


def usable(
    items: Sequence[Item], make: Callable[[Item], Made], name: Callable[[Item], str], what: str, *, needed: bool = True
) -> list[Made]:
    """What `make` makes of items, without those whose pictures cannot be used: one warning counts them by cause. what:
    the items are. needed: ValueError where none is left."""
    made: list[Made] = []
    faults: dict[str, list[str]] = defaultdict(list)
    for item in items:
        try:
            made.append(make(item))
        except ImageFault as fault:
            faults[fault.what].append(f"{name(item)}: {fault.path}")
    if not faults:
        return made
    bad = len(items) - len(made)
    counted = "; ".join(f"{cause} ({len(at)}: {', '.join(at[:_SHOWN])})" for cause, at in faults.items())
    if needed and not made:
        raise ValueError(
            f"{what}: all {bad} have pictures that cannot be used: {counted}. Set dataset.image_root to their folder; "
            "data/check.py looks at every picture."
        )
    logger.warning(
        "%s: %d of %d have pictures that cannot be used and are left out: %s", what, bad, len(items), counted
    )
    return made
