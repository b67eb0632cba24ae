"""A value model: the body of any family with one number read from each hidden state instead of a vocabulary.

Shapes: B sequences, L tokens, N selected positions, D hidden size.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Layout
from models.fingerprint import require_base
from models.load import load_model
from models.model import DiffusionLM
from models.spec import CheckpointSpec
from models.stored import stored_tensor
from models.vision.prompt import Prompt

HEAD_NAME = "value_head.weight"


class ValueHead(nn.Linear):
    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Values [N], computed in fp32 whatever the type of model and head."""
        return F.linear(hidden_ND.float(), self.weight.float())[:, 0]


class ValueModel(nn.Module):
    """A DiffusionLM as base and a head [1, D] without bias, zero at first: a fresh value model gives 0 everywhere.

    The base's own output head is frozen unless it is tied to the embedding; it is kept so that the saved folder is a
    whole checkpoint of the family, with `value_head.weight` beside its weights as dLLM-RL's value models have it.
    """

    def __init__(self, base: DiffusionLM):
        super().__init__()
        self.base = base
        D = int(base.hf_config.hidden_size)
        self.value_head = nn.utils.skip_init(ValueHead, D, 1, bias=False, device=base.device, dtype=base.dtype)
        nn.init.zeros_(self.value_head.weight)
        body = {id(p) for p in base.model.parameters()}
        for parameter in base.lm_head.parameters():
            parameter.requires_grad_(id(parameter) in body)

    def forward(
        self,
        input_ids_BL: Tensor,
        positions_BL: Tensor,
        layout: Layout,
        index_N: Tensor,
        targets_N: Tensor,
        pictures: Sequence[Prompt] = (),
    ) -> Tensor:
        """Values [N] (fp32) read at the flat positions `index_N` of [B * L]. The targets are those of
        `DiffusionLM.forward`; a value is that of the state before the choice and does not see them. Pictures are seen
        through the features that the policy encoded."""
        features = self.base.features_of(pictures) if pictures else None
        hidden_BLD = self.base.hidden(input_ids_BL, positions_BL, layout, features)
        hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, index_N)
        return self.value_head(hidden_ND)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the base's checkpoint in its original layout with the head beside its weights. dtype: of the weights
        in the files; default the model's."""
        self.base.save(path, besides={HEAD_NAME: self.value_head.weight}, dtype=dtype)


def load_value_model(
    path: str | Path | CheckpointSpec,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    model_base: str | None = None,
    random_init_seed: int | None = None,
    unread: bool = False,
) -> ValueModel:
    """A value model from any checkpoint that `load_model` reads, with the same arguments and errors. Its head is the
    folder's where that holds one (a saved value model), else zero. Adapters are merged: all of it is trained, and
    read at once."""
    if isinstance(path, CheckpointSpec):
        spec = path
    else:
        require_base(spec := CheckpointSpec.read(path, model_base))
    unread = unread and spec.base is None
    base = load_model(spec, dtype, device, random_init_seed=random_init_seed, besides=(HEAD_NAME,), unread=unread)
    stored = None
    if base.adapters is not None:
        base.merge_adapters()
    elif random_init_seed is None:
        stored = stored_tensor(spec.folder, HEAD_NAME)
    model = ValueModel(base)
    if stored is not None:
        with torch.no_grad():
            model.value_head.weight.copy_(stored)
    return model.eval()
