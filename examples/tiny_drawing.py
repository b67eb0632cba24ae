"""What configs/rl_tiny_drawing.yaml begins with: an image tokenizer, a model that half knows how to draw, and tasks.

    python examples/tiny_drawing.py

Writes runs/tiny_drawing/: `image_tokenizer` (a MAGVIT-v2 of 0.2 M weights, trained on the drawings), `model` (MMaDA's
layout, trained for a short time on 48 of the 64 drawings), `train.json`, `test.json`. It takes less than two minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from data.tiny_drawings import SPECIAL_TOKENS, TRAINED, drawings, shuffled_names
from models import DiffusionLM, load_model
from models.attention import Masked
from models.vision.magvit import Half, Magvit, Sizes

BITS, WIDTH = 8, 32
CONFIG: dict[str, Any] = dict(
    model_type="mmada",
    architectures=["MMadaModelLM"],
    d_model=96,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=256,
    max_sequence_length=64,
    codebook_size=2**BITS,
    block_type="llama",
    activation_type="silu",
    layer_norm_type="rms",
    rms_norm_eps=1e-5,
    rope=True,
    rope_theta=10000.0,
    include_bias=False,
    weight_tying=False,
    init_std=0.02,
)


def steps_of(parameters: Iterator[torch.nn.Parameter], count: int, rate: float, name: str) -> Iterator[int]:
    """Optimizer steps: whoever iterates leaves gradients. The rate rises, then falls to 0."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=count, pct_start=0.1)
    shown = time.monotonic()
    for step in range(count):
        yield step
        if time.monotonic() - shown >= 5:
            shown = time.monotonic()
            print(f"{name}: step {step + 1} of {count}", flush=True)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    print(f"{name}: {count} steps", flush=True)


def train_tokenizer(pixels_B3HW: Tensor, steps: int = 400) -> Magvit:
    """On drawings in [-1, 1]. The loss is the squared error of the decoded pixels; gradients pass the signs as if they
    were not there (straight-through, arXiv:1308.3432), and |z| is drawn to 1."""
    width = (WIDTH,)
    tokenizer = Magvit(Sizes(BITS, Half(WIDTH, (width,) * 3), Half(WIDTH, (width,) * 3)))
    for _ in steps_of(tokenizer.parameters(), steps, 3e-3, "image tokenizer"):
        pixels = pixels_B3HW[torch.randint(len(pixels_B3HW), (32,))]
        z = tokenizer.encoder(pixels)
        signs = z + (torch.where(z > 0, 1.0, -1.0) - z).detach()
        error = (tokenizer.decoder(signs) - pixels).square().mean()
        (error + 0.02 * (z.abs() - 1.0).square().mean()).backward()
    return tokenizer.eval()


def write_text_tokenizer(folder: Path, texts: list[str]) -> int:
    """One token a word; how many there are."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: i for i, token in enumerate((*words, *SPECIAL_TOKENS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return len(vocabulary)


def train_model(folder: Path, codes: dict[str, Tensor], steps: int = 200) -> DiffusionLM:
    """A model that has seen these pictures: a share cos(pi/2 t) of their codes masked, t from U(0, 1), as MMaDA trains
    (arXiv:2202.04200)."""
    model = load_model(folder, random_init_seed=0).train()
    drawing, texts = model.need_drawing(), list(codes)
    for _ in steps_of(model.parameters(), steps, 2e-3, "model"):
        chosen = [texts[i] for i in torch.randint(len(texts), (32,))]
        prompt = torch.tensor([model.drawing_prompt(text).ids for text in chosen])
        true_BN = torch.stack([codes[text] for text in chosen]) + drawing.codes.start
        masked_BN = torch.rand(true_BN.shape) < torch.cos(torch.rand(len(chosen), 1) * torch.pi / 2)
        ends = torch.tensor(drawing.suffix_ids).expand(len(chosen), -1)
        ids_BL = torch.cat([prompt, true_BN.masked_fill(masked_BN, model.mask_id), ends], 1)
        hidden = model.hidden(ids_BL, torch.arange(ids_BL.shape[1]).expand_as(ids_BL), Masked(None))
        logits = model.lm_head(hidden[:, prompt.shape[1] : -ends.shape[1]][masked_BN])
        F.cross_entropy(logits, true_BN[masked_BN]).backward()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/tiny_drawing"), help="folder (runs/tiny_drawing)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, and of which drawings are the test (1)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    names = shuffled_names(options.seed)
    pixels = torch.from_numpy(np.stack([drawings()[name] for name in names])).permute(0, 3, 1, 2) * 2.0 - 1.0
    tokenizer = train_tokenizer(pixels)
    tokenizer.save(options.out / "image_tokenizer")
    codes = {name: tokenizer.encode(picture) for name, picture in zip(names, pixels, strict=True)}
    error = (tokenizer.decode(torch.stack([*codes.values()])).clamp(-1, 1) - pixels) / 2
    print(f"image tokenizer: mean squared error of a drawing at most {error.square().mean((1, 2, 3)).max():.4f}")
    folder = options.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    words = write_text_tokenizer(folder, names)
    size = {"vocab_size": words + 2**BITS, "embedding_size": words + 2**BITS, "llm_vocab_size": words}
    (folder / "config.json").write_text(json.dumps(CONFIG | size, indent=1))
    train_model(folder, {name: codes[name] for name in names[:TRAINED]}).save(folder)
    for file, chosen in (("train", names[:TRAINED]), ("test", names[TRAINED:])):
        (options.out / f"{file}.json").write_text(json.dumps([{"question": name} for name in chosen], indent=1))


if __name__ == "__main__":
    main()
