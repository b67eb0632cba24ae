"""How near text and picture are, by a CLIP model of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from configs import find, naming
from models.folder import read_json, resolve_folder, weight_files
from models.vision.images import Source, open_image

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32


class Clip:
    """Cosines of pictures and texts, each pair alone. A text is cut to the model's positions. The model is loaded with
    the first pair; ValueError before that for a folder without one."""

    def __init__(self, path: str, device: torch.device):
        self.device = device
        with naming("reward.clip_model"):
            self.folder = resolve_folder(find(path))
            if read_json(self.folder / "config.json").get("model_type") != "clip":
                raise ValueError(f"{self.folder} holds no CLIP model (config.json's model_type is not clip).")
            weight_files(self.folder)
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        raw = read_json(self.folder / "preprocessor_config.json")
        self.mean, self.deviation = raw.get("image_mean", _MEAN), raw.get("image_std", _DEVIATION)
        self.model: Any = None

    def __call__(self, pictures: Sequence[Source], texts: Sequence[str]) -> list[float]:
        if self.model is None:
            model: Any = CLIPModel.from_pretrained(self.folder, trust_remote_code=False)
            self.model = model.to(self.device).eval()
        cosines: list[float] = []
        for first in range(0, len(texts), _BATCH):
            batch = slice(first, first + _BATCH)
            cosines += self._cosines(self.model, pictures[batch], texts[batch])
        return cosines

    @torch.inference_mode()
    def _cosines(self, model: Any, pictures: Sequence[Source], texts: Sequence[str]) -> list[float]:
        side = model.config.vision_config.image_size
        pixels = torch.stack([self._pixels(open_image(picture), side) for picture in pictures])
        longest = model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt").to(
            self.device
        )
        of_text = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        of_picture = model.get_image_features(pixel_values=pixels.to(self.device))
        pair = torch.nn.functional.cosine_similarity(of_picture.pooler_output, of_text.pooler_output)
        return pair.float().tolist()

    def _pixels(self, image: Image.Image, side: int) -> Tensor:
        """[3, side, side]: the shorter side to `side`, bicubic, the middle cut out, normalised."""
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3)
        values = pixels.permute(2, 0, 1).float() / 255
        return (values - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.deviation).view(3, 1, 1)
