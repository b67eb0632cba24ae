"""Random numbers without a generator: a function of names, the same in any batch, on any rank and device."""

from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_STEP = 0x5851F42D4C957F2D


def hash_uniform(key_N: Tensor, position_N: Tensor, step_N: Tensor, stream: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [N], a pure function of their arguments: no generator, no batch mate enters.

    splitmix64 (Steele et al. 2014) in wrapping int64 arithmetic, the same on every device: a key's numbers are those of
    a splitmix64 generator started at the key, one increment a position and another a step and a stream.
    """
    x = key_N + position_N * _GOLDEN + (step_N * 2 + stream) * _STEP
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    x = x ^ _shift(x, 31)
    return _shift(x, 11).double() * 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
