"""MAGVIT-v2, MMaDA's image tokenizer: a picture -> codes, one for each square of pixels, and back.

The published code is the file modeling_magvitv2.py of Show-o (https://github.com/showlab/Show-o); weights:
showlab/magvitv2. Every size is read off the names and shapes of the weights.

Shapes: B pictures, H, W pixels, h, w squares, C channels, N = h * w codes of a picture, row by row, z bits of a code.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.folder import resolve_folder
from models.stored import stored_headers, stored_tensors

_GROUPS, _EPS = 32, 1e-6
_DECODED_PIXELS = 2**20
"""Of the pictures that are decoded in one forward."""
CONFIG = '{\n  "_class_name": "MAGVITv2",\n  "_diffusers_version": "0.30.1"\n}\n'


@dataclass(frozen=True)
class Half:
    """Channels of the encoder or the decoder: after its first convolution, and after each block of each level, in the
    order in which they run."""

    first: int
    levels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sizes:
    """bits: z, channels between encoder and decoder; a codebook of 2^z."""

    bits: int
    encoder: Half
    decoder: Half

    @property
    def square_pixels(self) -> int:
        """Side of the square that a code stands for."""
        return int(2 ** (len(self.encoder.levels) - 1))

    @staticmethod
    def of(shapes: Mapping[str, Sequence[int]]) -> "Sizes":
        """Of weights by name. KeyError where one that tells a size is absent."""
        bits = shapes["encoder.conv_out.weight"][0]
        return Sizes(bits, _half(shapes, "encoder.", "down"), _half(shapes, "decoder.", "up"))


def _half(shapes: Mapping[str, Sequence[int]], half: str, levels: str) -> Half:
    found: dict[int, dict[int, int]] = {}
    for name, shape in shapes.items():
        if place := re.fullmatch(rf"{half}{levels}\.(\d+)\.block\.(\d+)\.conv1\.weight", name):
            found.setdefault(int(place[1]), {})[int(place[2])] = shape[0]
    order = sorted(found, reverse=levels == "up")
    channels = tuple(tuple(found[level][block] for block in sorted(found[level])) for level in order)
    return Half(shapes[f"{half}conv_in.weight"][0], channels)


class Magvit(nn.Module):
    """encode: pixels -> codes; decode: codes -> pixels. Always in fp32, and one picture changes nothing of another."""

    value_z: Tensor

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = _Encoder(sizes.bits, sizes.encoder), _Decoder(sizes.bits, sizes.decoder)
        self.register_buffer("value_z", 2 ** torch.arange(sizes.bits - 1, -1, -1), persistent=False)

    @property
    def codebook_size(self) -> int:
        return int(2**self.sizes.bits)

    @torch.no_grad()
    def encode(self, pixels_3HW: Tensor) -> Tensor:
        """Codes [N] (int64) of one picture in [-1, 1], whose sides are multiples of a square's."""
        z_zhw = self.encoder(pixels_3HW[None].to(self.value_z.device, torch.float32))[0]
        return self.codes(z_zhw).flatten()

    def codes(self, z_zhw: Tensor) -> Tensor:
        """Codes [h, w] of the encoder's output: a bit for each channel, set where it is positive, channel 0 the highest
        bit."""
        return ((z_zhw > 0) * self.value_z[:, None, None]).sum(0)

    def entries(self, codes_Bhw: Tensor) -> Tensor:
        """What the decoder sees of codes: -1 or 1 for each bit, [B, z, h, w]."""
        return (codes_Bhw[:, None] & self.value_z[:, None, None]).ne(0).float() * 2 - 1

    @torch.no_grad()
    def decode(self, codes_BN: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels [B, 3, H, W] in about [-1, 1]. shape: rows and columns of the grid; None = a square. ValueError for
        codes that are not in the codebook, or that do not fill the grid."""
        B, N = codes_BN.shape
        h, w = shape if shape is not None else (int(N**0.5), int(N**0.5))
        if h * w != N or N == 0:
            grid = f"shape={shape}" if shape is not None else "a square grid (shape=None)"
            raise ValueError(f"{N} codes do not fill {grid}: give shape=(rows, columns) with rows x columns = {N}.")
        if B and not 0 <= int(codes_BN.min()) <= int(codes_BN.max()) < self.codebook_size:
            wrong = int(codes_BN.max()) if int(codes_BN.max()) >= self.codebook_size else int(codes_BN.min())
            raise ValueError(
                f"the code {wrong} is not in the codebook of {self.codebook_size}: give codes, not token ids "
                "(id - model.text_vocab_size)."
            )
        at_once = max(1, _DECODED_PIXELS // (N * self.sizes.square_pixels**2))
        codes_Bhw = codes_BN.to(self.value_z.device).view(B, h, w)
        return torch.cat([self.decoder(self.entries(some)) for some in codes_Bhw.split(at_once)])

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_magvit` and the published code read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(CONFIG)
        every_hw = torch.arange(self.codebook_size, device=self.value_z.device).view(1, -1, 1)
        codebook = {"embedding": self.entries(every_hw)[0, :, :, 0].T, "power_vals": self.value_z}
        weights = self.state_dict() | {f"quantize.{name}": tensor for name, tensor in codebook.items()}
        save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, _weights_of(folder))


def _weights_of(folder: Path) -> Path:
    return folder / "pytorch_model.safetensors"


def read_sizes(path: str | Path) -> Sizes:
    """Of a folder or hub name (showlab/magvitv2), no weight read. ValueError where it holds no MAGVIT-v2."""
    folder = resolve_folder(path, skipped=())
    try:
        return Sizes.of({name: shape for name, shape, _ in stored_headers(folder)})
    except KeyError as error:
        raise ValueError(f"{folder} holds no MAGVIT-v2: it has no weight {error}.") from error


def load_magvit(path: str | Path, device: torch.device | str = "cpu") -> Magvit:
    """From a folder or hub name. ValueError where its weights are not MAGVIT-v2's."""
    folder, model = resolve_folder(path, skipped=()), Magvit(read_sizes(path))
    shapes = {name: shape for name, shape, _ in stored_headers(folder)}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: shape for name, shape in shapes.items() if not name.startswith("quantize.")}
    if wrong := _differing(stored, expected):
        raise ValueError(f"the weights in {folder} are not those of a MAGVIT-v2: {', '.join(wrong[:4])}.")
    model.load_state_dict({name: tensor for name, tensor in stored_tensors(folder) if name in expected})
    return model.to(device).eval().requires_grad_(False)


def _differing(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    names: Collection[str] = stored.keys() | expected.keys()
    return sorted(name for name in names if stored.get(name) != expected.get(name))


class _Encoder(nn.Module):
    def __init__(self, bits: int, sizes: Half):
        super().__init__()
        self.conv_in = _conv(3, sizes.first, 3)
        self.down = nn.ModuleList(_Down(*level) for level in _levels(sizes))
        last = sizes.levels[-1][-1]
        self.mid = _Middle(last)
        self.norm_out, self.conv_out = _norm(last), _conv(last, bits, 3)
        self.quant_conv = _conv(bits, bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class _Decoder(nn.Module):
    """`up` is numbered from the last level to run."""

    def __init__(self, bits: int, sizes: Half):
        super().__init__()
        self.post_quant_conv = _conv(bits, bits, 1)
        self.conv_in = _conv(bits, sizes.first, 3)
        self.mid = _Middle(sizes.first)
        self.up = nn.ModuleList(reversed([_Up(*level) for level in _levels(sizes)]))
        last = sizes.levels[-1][-1]
        self.norm_out, self.conv_out = _norm(last), _conv(last, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(x)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _levels(sizes: Half) -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """Channels that a level takes, those after its blocks, and whether it is the last to run."""
    inputs = sizes.first
    for number, channels in enumerate(sizes.levels, 1):
        yield inputs, channels, number == len(sizes.levels)
        inputs = channels[-1]


class _Down(nn.Module):
    """A level of the encoder, which halves both sides after its blocks; the last one does not."""

    def __init__(self, inputs: int, channels: Sequence[int], is_last: bool):
        super().__init__()
        self.block = _blocks(inputs, channels)
        halved = nn.Conv2d(channels[-1], channels[-1], 3, stride=2)
        self.downsample = None if is_last else nn.ModuleDict({"conv": halved})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    """A level of the decoder, which doubles both sides after its blocks; the last one does not."""

    def __init__(self, inputs: int, channels: Sequence[int], is_last: bool):
        super().__init__()
        self.block = _blocks(inputs, channels)
        self.upsample = None if is_last else nn.ModuleDict({"conv": _conv(channels[-1], channels[-1], 3)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.block_2 = _Block(channels, channels), _Block(channels, channels)
        self.attn_1 = _Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), _conv(inputs, outputs, 3)
        self.norm2, self.conv2 = _norm(outputs), _conv(outputs, outputs, 3)
        self.nin_shortcut = _conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class _Attention(nn.Module):
    """One head over all squares."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (conv(y).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(seen.transpose(1, 2).reshape(x.shape))


def _blocks(inputs: int, channels: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(_Block(*pair) for pair in zip((inputs, *channels), channels, strict=False))


def _conv(inputs: int, outputs: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, width, padding=width // 2)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS)
