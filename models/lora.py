"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft: added in place, saved apart, merged on demand.

An adapter folder holds peft's adapter_config.json and adapter_model.safetensors, with the base's config and tokenizer
beside them; `load_model` reads it like any checkpoint, and reads the base that adapter_config.json names.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.folder import writing_weights
from models.randomness import hash_uniform

if TYPE_CHECKING:  # peft takes seconds to import, and only models with adapters need it
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.model."
_MOST_FEATURES = 2**20


@dataclass(frozen=True)
class Adapters:
    """rank and alpha of the adapters (a layer adds alpha / rank * B A x), dropout of x in training, and the names of
    the linear layers that have one (up_proj, shared_experts.up_proj), () = all of the body."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    @staticmethod
    def of(folder: Path) -> "Adapters | None":
        """Those that the folder's adapter_config.json describes; None where it has none."""
        if not (folder / CONFIG).is_file():
            return None
        config = _read_config(folder)
        try:
            names = [] if isinstance(config.target_modules, str) else config.target_modules or []
            targets = sorted({name.rpartition(".")[2] if ".layers." in f".{name}" else name for name in names})
            return Adapters(config.r, float(config.lora_alpha), float(config.lora_dropout), tuple(targets))
        except (TypeError, ValueError, AttributeError) as error:
            raise _no_adapters(folder, error) from error

    def config(self, body: nn.Module, base: str) -> "LoraConfig":
        from peft import LoraConfig

        linear = sorted({name.rpartition(".")[2] for name in _linear(body)})
        unknown = [target for target in sorted(self.targets) if not _named(body, [target])]
        if unknown:
            routed = " (routed experts are no linear layers)" if "experts" in unknown[0] else ""
            raise ValueError(
                f"lora.target_modules: no linear layer is named {unknown[0]!r}; there are {linear}{routed}."
            )
        return LoraConfig(
            base_model_name_or_path=base,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=list(self.targets) or linear,
        )

    def count(self, body: nn.Module) -> int:
        """Parameters of the adapters of a body without any."""
        layers = _named(body, self.config(body, "").target_modules or ())
        return sum(self.rank * (m.in_features + m.out_features) for m in layers)


def _linear(body: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}


def _named(body: nn.Module, targets: Collection[str]) -> list[nn.Linear]:
    """The body's linear layers whose name is one of these, or ends with one after a dot."""
    return [m for name, m in _linear(body).items() if any(f".{name}".endswith(f".{target}") for target in targets)]


class TokenDropout(nn.Module):
    """Dropout of [B, L, D] whose mask is a function of a seed a token (`dropping`), the layer's number and the feature:
    neither batch mates nor ranks enter, and a forward that is run again drops the same."""

    def __init__(self, p: float, number: int):
        super().__init__()
        self.p, self.number = p, number
        self.seed_BL: Tensor | None = None

    def forward(self, x_BLD: Tensor) -> Tensor:
        if not self.training:
            return x_BLD
        assert self.seed_BL is not None and self.seed_BL.shape == x_BLD.shape[:-1]
        place_D = torch.arange(x_BLD.shape[-1], device=x_BLD.device) + self.number * _MOST_FEATURES
        uniform_BLD = hash_uniform(self.seed_BL[..., None], place_D, torch.zeros_like(place_D), 0)
        return x_BLD.masked_fill(uniform_BLD < self.p, 0.0) / (1.0 - self.p)


def layers(body: nn.Module) -> "dict[str, LoraLayer]":
    """The layers with adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in body.named_modules() if isinstance(module, LoraLayer)}


def add(body: nn.Module, config: "LoraConfig", seed: int, dtype: torch.dtype | None = None) -> None:
    """Adapters that change nothing yet (B = 0), drawn from `seed`; only they are trained from here on. dtype: theirs;
    default the body's."""
    from peft import inject_adapter_in_model

    body.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), _seen_as(dtype, body), _without_config(body):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, body)
    for number, layer in enumerate(layers(body).values()):
        if config.lora_dropout:
            layer.lora_dropout["default"] = TokenDropout(config.lora_dropout, number)


@contextmanager
def _without_config(body: nn.Module) -> Iterator[None]:
    """While the block runs, the body shows no config: by that of some mixtures of experts peft would put adapters on
    parameters of the routed experts in place of the linear layers of the same names."""
    config, body.config = body.config, {"model_type": "custom"}  # type: ignore[assignment]
    try:
        yield
    finally:
        body.config = config


@contextmanager
def _seen_as(dtype: torch.dtype | None, body: nn.Module) -> Iterator[None]:
    """While the block runs, linear layers show weights of this type, without memory, in place of their own: peft makes
    an adapter in the type of the weight that it stands beside."""
    own = {m: m.weight.data for m in body.modules() if isinstance(m, nn.Linear)} if dtype is not None else {}
    try:
        for layer, weight in own.items():
            layer.weight.data = torch.zeros((), dtype=dtype, device=weight.device).expand(weight.shape)
        yield
    finally:
        for layer, weight in own.items():
            layer.weight.data = weight


def dropouts(model: nn.Module) -> list[TokenDropout]:
    return [module for module in model.modules() if isinstance(module, TokenDropout)]


@contextmanager
def dropping(model: nn.Module, seed_BL: Tensor) -> Iterator[None]:
    """Forward and backward passes of a batch, whose tokens drop by these seeds (int64)."""
    every = dropouts(model)
    for dropout in every:
        dropout.seed_BL = seed_BL
    try:
        yield
    finally:
        for dropout in every:
            dropout.seed_BL = None


def write(
    folder: Path,
    body: nn.Module,
    config: "LoraConfig",
    carried: Mapping[str, bytes],
    dtype: torch.dtype | None = None,
) -> None:
    """The adapters alone, as peft writes them, and the base's `carried` files. dtype: of the file; default theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in carried.items():
        (folder / name).write_bytes(content)
    with writing_weights(folder):
        weights = {name: weight.detach().cpu().to(dtype or weight.dtype) for name, weight in stored(body).items()}
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
    config.save_pretrained(str(folder))


def _read_config(folder: Path) -> "LoraConfig":
    """The folder's adapter_config.json. ValueError where it describes no adapters."""
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(str(folder))
        if not (isinstance(config.r, int) and config.r >= 1):
            raise ValueError(f"rank {config.r!r}")
        return config
    except Exception as error:
        raise _no_adapters(folder, error) from error


def _no_adapters(folder: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{folder}/{CONFIG} describes no adapters of its base ({type(error).__name__}: {reason}): copy the folder again"
    )


def read(folder: Path, body: nn.Module, dtype: torch.dtype | None = None) -> "LoraConfig":
    """Adds the folder's adapters to the body they were trained on, in `dtype`, default the body's. ValueError where
    they do not fit it."""
    config = _read_config(folder)
    try:
        add(body, config, seed=0, dtype=dtype)
    except Exception as error:
        raise _no_adapters(folder, error) from error
    weights = weights_of(folder, body)
    with torch.no_grad():
        for name, parameter in _parameters(body).items():
            parameter.copy_(weights[name])
    return config


def weights_of(folder: Path, body: nn.Module) -> dict[str, Tensor]:
    """The folder's adapters by the names of the body's parameters, on the CPU. ValueError where they do not fit it."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}/{WEIGHTS} cannot be read: {error}") from error
    own = _parameters(body)
    shapes = {_stored_name(name): parameter.shape for name, parameter in own.items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        base = _read_config(folder).base_model_name_or_path
        raise ValueError(f"{folder}/{WEIGHTS} does not fit the base {base}: other layers or sizes.")
    return {name: weights[_stored_name(name)] for name in own}


def stored(body: nn.Module) -> dict[str, Tensor]:
    """The adapters under peft's names."""
    return {_stored_name(name): parameter for name, parameter in _parameters(body).items()}


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_" in name


def _parameters(body: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in body.named_parameters() if is_adapter(name)}


def _stored_name(name: str) -> str:
    return _PREFIX + name.replace(".default.", ".")


def merge(body: nn.Module) -> None:
    """Folds the adapters into the weights and takes them out."""
    for name, layer in layers(body).items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(body.get_submodule(parent), last, layer.get_base_layer())
    body.requires_grad_(True)


@contextmanager
def without(body: nn.Module) -> Iterator[None]:
    """The base alone, while the block runs."""
    every = layers(body).values()
    for layer in every:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in every:
            layer.enable_adapters(True)
