"""Decoder layers whose many small operations torch's compiler fuses, around attention, which stays outside."""

from models.attention import keep_out_of_compiled_layers
from models.compiled import raise_limit
from models.experts import experts_of
from models.model import DiffusionLM


def compile_layers(model: DiffusionLM, backend: str = "inductor") -> bool:
    """Compiles the decoder layers in place, from their next call on; one version serves all layers. False, and nothing,
    for a mixture of experts or with adapters, whose layers branch on data and on names, and for a part of a model,
    whose layers talk to other ranks."""
    if model.adapters is not None or model.parallel is not None or experts_of(model.hf_config):
        return False
    raise_limit()
    keep_out_of_compiled_layers()
    for layer in model.model.layers:  # type: ignore[union-attr]
        if layer._compiled_call_impl is None:
            layer.compile(backend=backend)
    return True
