"""Pictures in traces: the runs of prompt positions that they are, and what a page shows of them."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from models.folder import read_json
from models.vision.images import ImageFault, image_digest, open_image

LIST = "images.json"
"""In a run's folder: digest -> file, absolute or in that folder."""
MOST_PIXELS, MOST_PICTURES = 192, 100
SMALL_PIXELS = 64
"""Pictures whose longer side has fewer are shown enlarged, each pixel a square: they stay exact."""


def picture_runs(ids: Sequence[int], text_ids: int | None) -> Iterator[tuple[int, int, bool]]:
    """The ids cut into runs (start, end, whether they are a picture): negative ones are, and those from `text_ids` on,
    which are no text (None = not known)."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or _of_picture(ids[i], text_ids) != _of_picture(ids[start], text_ids):
            yield start, i, _of_picture(ids[start], text_ids)
            start = i


def _of_picture(token_id: int, text_ids: int | None) -> bool:
    return token_id < 0 or (text_ids is not None and token_id >= text_ids)


class Thumbnails:
    """Small copies of a run's pictures by digest, MOST_PICTURES of them at most: more would make a page that no browser
    likes. A picture that is gone, damaged or another one by now has none."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = read_json(folder / LIST) if (folder / LIST).is_file() else {}
        self.files = {digest: path for digest, path in files.items() if isinstance(path, str)}
        self.made: dict[str, str | None] = {}

    def __getitem__(self, digest: str) -> str | None:
        """As a data URI."""
        if digest not in self.made:
            room = sum(uri is not None for uri in self.made.values()) < MOST_PICTURES
            self.made[digest] = self._make(digest) if room and digest in self.files else None
        return self.made[digest]

    def _make(self, digest: str) -> str | None:
        path = self.folder / self.files[digest]
        try:
            if image_digest(path) != digest:
                return None
            image = open_image(path)
        except ImageFault:
            return None
        image.thumbnail((MOST_PIXELS, MOST_PIXELS))
        return data_uri(image, "png" if max(image.size) < SMALL_PIXELS else "jpeg")


def data_uri(image: Image.Image, kind: Literal["jpeg", "png"] = "jpeg") -> str:
    """A small picture as a page holds it."""
    file = io.BytesIO()
    image.save(file, kind, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
