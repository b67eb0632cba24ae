"""Opening files of pictures. Whatever reads one opens it here."""

import io

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's readers that open pictures. Of others some start programs (EPS) or decode to tell a size (ICO)."""


def open_undecoded(content: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture in a file's bytes, nothing decoded yet. Pillow's errors: UnidentifiedImageError (an OSError) where
    they are of no such format."""
    return Image.open(io.BytesIO(content), formats=formats)
