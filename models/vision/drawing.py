"""How a model draws pictures: which ids its codes have, and what stands around them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


class Drawing(NamedTuple):
    """Text to image. A sequence is `before`, the text's ids, `after`, the codes, `suffix_ids`.

    codes: ids of the codebook. steps: denoising steps of a picture where none are named. decode: codes [B, N] and
    the grid's (rows, columns), None = a square -> pixels [B, 3, H, W].
    """

    codes: range
    before: tuple[int, ...]
    after: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    steps: int
    decode: Callable[["Tensor", tuple[int, int] | None], "Tensor"]

    def prompt(self, text_ids: Sequence[int]) -> list[int]:
        """Ids before the codes; of an empty text: the prompt that guidance leads away from."""
        return [*self.before, *text_ids, *self.after]


def as_images(pixels_B3HW: "Tensor") -> list[Image.Image]:
    """Pictures of `decode_images` as Pillow has them (RGB): what lies beyond -1 and 1 is cut."""
    values_BHW3 = ((pixels_B3HW.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value_HW3) for value_HW3 in values_BHW3]
