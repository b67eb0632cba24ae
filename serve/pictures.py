"""Pictures of a request: data URLs, which are read here. Nothing is fetched from elsewhere."""

import base64
import binascii
import re

from models.vision.images import image_size

MOST_PICTURES = 16
"""Of a request."""
MOST_PIXELS = 2**24
"""Of a picture: 4096 x 4096. Its file may be small and its pixels many."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def picture_of(url: str) -> bytes:
    """The file that a data URL holds. ValueError: another URL, no base64, no picture in one of
    FORMATS (ImageFault), too many pixels."""
    found = _DATA_URL.match(url)
    if found is None:
        shown = url[:40] + ("..." if len(url) > 40 else "")
        raise ValueError(
            f"{shown!r} is not taken: send the picture itself, data:image/png;base64,...; this server fetches nothing"
        )
    try:
        content = base64.b64decode(url[found.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data URL is no base64: {error}") from None
    width, height = image_size(content, FORMATS)
    if width * height > MOST_PIXELS:
        raise ValueError(f"a picture of {width} x {height} pixels: at most {MOST_PIXELS:,} are taken")
    return content
