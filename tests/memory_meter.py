"""Bytes of tensors as they are allocated and freed, counted by storage."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """While it is on: `now` bytes are held by storages that were made meanwhile, `peak` at most."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                storage = _storage(x)
                if storage._cdata not in self.live and storage._cdata not in given:
                    self.live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key):
        self.now -= self.live.pop(key, 0)


def _storage(x):
    """Of a sharded tensor (DTensor) its shard's: its own has the size of the whole and no memory."""
    return getattr(x, "_local_tensor", x).untyped_storage()


def held(*tensors):
    """Bytes of the storages of these tensors (nested as they like), each counted once."""
    found = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tree_leaves(tensors) if x is not None}
    return sum(found.values())
