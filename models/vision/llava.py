"""LLaDA-V's eyes: a SigLIP tower on tiles, a projector to the language model's size, and where the features go.

The tower's output is its last encoder layer's, not normed and not pooled. Facts: https://github.com/ML-GSAI/LLaDA-V.

Shapes: n tiles, S pixels of a tile's side, P features of a tile, T of the tower's hidden size, D of the language
model's.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from models.unread import weight_of
from models.vision.prompt import Picture
from models.vision.seeing import Encode, Part
from models.vision.tiles import Plan, plan, tile_grid, tiles

IMAGE_ID = -200


@dataclass
class Tiles:
    """What the features of a picture are made from: its tiles (uint8 [n, 3, S, S]) and how they are laid out. seen: the
    tower's output [n, P, T], once it is known and kept."""

    pixels: Tensor
    plan: Plan
    seen: Tensor | None = None


class LlavaVision(nn.Module):
    """Tower, projector and newline under transformers' and torch's own names; `models.families.lladav` knows those of
    the checkpoint.

    trained: which part is (`train_part`). apart: makes features of its own for pictures that another model encoded.
    """

    image_id, fits, in_front = IMAGE_ID, ("anyres", "pad"), False

    def __init__(self, tower: SiglipVisionConfig, raw_config: Mapping[str, Any]):
        super().__init__()
        D = int(raw_config["hidden_size"])
        self.tower = SiglipVisionModel(tower)
        self.projector = _projector(str(raw_config.get("mm_projector_type")), tower.hidden_size, D)
        self.image_newline = nn.Parameter(torch.randn(D) / D**0.5)
        side, patch = (int(size) for size in (tower.image_size, tower.patch_size))  # type: ignore[arg-type]
        self.grid = tile_grid(raw_config, side, patch)
        self.one = "pad" if raw_config.get("image_aspect_ratio") == "pad" else "anyres"
        self._whole: list[LlavaVision] = []
        self.apart = False
        self.train_part(None)

    def fit(self, pictures: int) -> str:
        return self.one if pictures == 1 else "pad"

    def outline(self, size_wh: tuple[int, int], fit: str, resolution: int) -> Picture:
        return Picture([IMAGE_ID] * plan(size_wh, fit, self.grid).num_tokens)

    def encode(self, image: Image.Image, fit: str, resolution: int, digest: str) -> Picture:
        layout = plan(image.size, fit, self.grid)
        source = Tiles(torch.from_numpy(tiles(image, fit, self.grid)), layout)
        return Picture([IMAGE_ID] * layout.num_tokens, lambda: self._encoded(source), digest, source)

    def place(self, pieces: Sequence[str], pictures: Sequence[Picture], encode: Encode) -> list[int]:
        ids = encode(pieces[0])
        for picture, piece in zip(pictures, pieces[1:], strict=True):
            ids = [*ids, *picture.ids, *encode(piece)]
        return ids

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encoded(self, source: Tiles) -> Tensor:
        """Features that trained models may read, whatever mode asks for them."""
        eyes = self._whole[0] if self._whole else self
        seen = eyes.look(source.pixels)
        if self.trained == "projector":
            source.seen = seen
        return eyes.lay_out(eyes.projector(seen), source.plan)

    def keep_whole(self, dtype: torch.dtype, device: torch.device) -> None:
        """Encodes pictures with a copy from now on: before an engine shards the weights, whose passes all ranks must
        then run alike."""
        whole = copy.deepcopy(self)
        for own, weight in zip(whole.parameters(), self.parameters(), strict=True):
            own.data = weight_of(weight).to(device, dtype, copy=True)
        self._whole = [whole.to(device).eval()]  # in a list: its weights are none of the model's

    def forward(self, picture: Picture) -> Tensor:
        """The picture's features [tokens, D]: those that it was encoded with, this model's own where it is `apart`, or
        with the gradients of what is trained."""
        if self.apart:
            return picture.features_of(self, self._encoded)
        if self.trained is None:
            assert picture.features is not None
            return picture.features
        source: Tiles = picture.source
        if self.trained == "all" or source.seen is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained == "all"):
                seen = self.look(source.pixels)
        else:
            seen = source.seen.to(self.image_newline.dtype)  # that of the sampler, which encoded it
        return self.lay_out(self.projector(seen), source.plan)

    def look(self, pixels_n3SS: Tensor) -> Tensor:
        """The tower's output [n, P, T]."""
        device, dtype = self.image_newline.device, self.image_newline.dtype
        values = (pixels_n3SS.to(device).float() / 255 - 0.5) / 0.5
        return self.tower.encoder(inputs_embeds=self.tower.embeddings(values.to(dtype))).last_hidden_state

    def lay_out(self, tiles_nPD: Tensor, layout: Plan) -> Tensor:
        """Projected tiles as the rows of a prompt: the whole picture's, then those of the grid as one map without its
        padding, a newline after each of its rows."""
        if layout.grid is None:
            return torch.cat([tiles_nPD[0], self.image_newline[None]])
        (columns, rows), side, D = layout.grid, self.grid.patches, tiles_nPD.shape[-1]
        map_DHW = tiles_nPD[1:].reshape(rows, columns, side, side, D).permute(4, 0, 2, 1, 3)
        map_DHW = map_DHW.reshape(D, rows * side, columns * side)[:, *layout.crop]
        if layout.merged != layout.unpadded:
            map_DHW = F.interpolate(map_DHW[None], layout.merged, mode="bilinear")[0]
        newline_DH1 = self.image_newline[:, None, None].expand(D, map_DHW.shape[1], 1)
        return torch.cat([tiles_nPD[0], torch.cat([map_DHW, newline_DH1], dim=2).flatten(1).T])

    def train_part(self, part: Part) -> None:
        """Lets gradients reach this part alone. The norm after the tower's last layer is never used."""
        self.trained: Part = part
        self.tower.requires_grad_(part == "all")
        self.tower.post_layernorm.requires_grad_(False)
        self.projector.requires_grad_(part is not None)
        self.image_newline.requires_grad_(part is not None)


def _projector(kind: str, T: int, D: int) -> nn.Module:
    """Linear layers with GELU between them, as many as its name says. ValueError for another kind."""
    if kind == "linear":
        return nn.Linear(T, D)
    layers = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if layers is None:
        raise ValueError(f"config.json has mm_projector_type: {kind!r}; linear and mlpNx_gelu are known.")
    more = [part for _ in range(int(layers[1]) - 1) for part in (nn.GELU(), nn.Linear(D, D))]
    return nn.Sequential(nn.Linear(T, D), *more)
