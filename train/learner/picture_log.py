"""images.json of a run's folder: where the pictures of its rollouts and samples are."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.files import atomic_write_text
from sample.viewer.pictures import LIST

KEPT = "images"


class PictureLog:
    """Digest -> file: an absolute path, or, of pictures that came as bytes, one under images/ in the folder, where they
    are kept. For the one process that writes the folder. An unreadable list is begun anew."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, str] = {}
        try:
            found = json.loads((folder / LIST).read_text(encoding="utf-8"))
            self.files = {**found}
        except (OSError, ValueError, TypeError):
            pass

    def add(self, images: Iterable[Mapping[str, str | bytes]]) -> None:
        """Adds pictures by digest, those of one prompt after another."""
        new = {digest: image for of_one in images for digest, image in of_one.items() if digest not in self.files}
        if not new:
            return
        for digest, image in new.items():
            self.files[digest] = self._keep(digest, image) if isinstance(image, bytes) else str(Path(image).resolve())
        atomic_write_text(self.folder / LIST, json.dumps(self.files, indent=1) + "\n")

    def _keep(self, digest: str, image: bytes) -> str:
        path = self.folder / KEPT / digest
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
        return f"{KEPT}/{digest}"
