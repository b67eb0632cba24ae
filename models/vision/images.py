"""Pictures as they are given, opened with Pillow. No torch here: data/ reads this too."""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from PIL import Image, UnidentifiedImageError

from models.families.base import PLACEHOLDER as PLACEHOLDER
from runtime.pictures import FORMATS, open_undecoded

logger = logging.getLogger(__name__)

Source: TypeAlias = str | Path | bytes | Image.Image
"""A picture: its file, the bytes of such a file, or Pillow's."""

MISSING, UNREADABLE, TRUNCATED = "missing", "unreadable", "truncated"
BOMB, EMPTY, NOT_A_PICTURE = "decompression bomb", "0 px", "not a picture"
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_warned: set[str] = set()


class ImageFault(ValueError):
    """A picture that cannot be used. path: its file, or what else names it; what: one of this module's causes, by which
    faults are counted; detail: Pillow's or the system's message."""

    def __init__(self, path: str, what: str, detail: str = ""):
        super().__init__(f"picture {path}: {what}" + (f" ({detail})" if detail else ""))
        self.path, self.what, self.detail = path, what, detail

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.path, self.what, self.detail)  # processes hand it on


def open_image(source: Source) -> Image.Image:
    """The picture as RGB, of an animation the first frame. Transparency is dropped and rotation by EXIF not applied, as
    the models' own code does. ImageFault names what cannot be used."""
    name = image_name(source)
    with _faults(name):
        image = _opened(source, name)
        if getattr(image, "n_frames", 1) > 1:
            _warn_once("pictures with several frames (first %s): their first one is taken", name)
        if image.mode in _ALPHA or "transparency" in image.info:
            _warn_once("pictures with transparency (first %s): it is dropped", name)
        return image.convert("RGB")


def image_size(source: Source, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """Width and height in pixels, read off the header of a file in one of these formats. ImageFault as from
    `open_image`, but for what only decoding shows."""
    with _faults(name := image_name(source)):
        return _opened(source, name, formats).size


def image_digest(source: Source) -> str:
    """The picture's name: the first 16 hexadecimal digits of its bytes' sha256. ImageFault where its file cannot be
    read."""
    with _faults(name := image_name(source)):
        if isinstance(source, Image.Image):
            content = repr((source.mode, source.size)).encode() + source.tobytes()
        else:
            content = _content(source, name)
    return hashlib.sha256(content).hexdigest()[:16]


def image_name(source: Source) -> str:
    """What names the picture to people."""
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    return f"of {source.size} px" if isinstance(source, Image.Image) else str(source)


def _content(source: str | Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if path.exists() and not path.is_file():
        raise ImageFault(name, UNREADABLE, "it is no file")
    return path.read_bytes()


def _opened(source: Source, name: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Pillow's picture, nothing decoded."""
    image = source if isinstance(source, Image.Image) else open_undecoded(_content(source, name), formats)
    if min(image.size) < 1:
        raise ImageFault(name, EMPTY, f"{image.size[0]} x {image.size[1]}")
    return image


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """What goes wrong with a picture is an ImageFault; a file is damaged in more ways than Pillow has errors for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ImageFault:
        raise
    except FileNotFoundError:
        raise ImageFault(name, MISSING) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFault(name, BOMB, str(error).split(",")[0]) from None
    except UnidentifiedImageError:
        raise ImageFault(name, NOT_A_PICTURE) from None
    except (TypeError, AttributeError) as error:
        raise ImageFault(name, NOT_A_PICTURE, f"{type(error).__name__}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageFault(name, TRUNCATED if "truncated" in reason.lower() else UNREADABLE, reason) from None


def _warn_once(text: str, name: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text, name)
