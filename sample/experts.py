"""The experts that a mixture's routers chose in sampling, as a rollout keeps them.

Shapes: P positions of finished blocks, K denoising steps, b positions of a block, M layers with experts, k experts of a
token.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Experts = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Routing:
    """Numbers of experts of one response. clean [P, M, k]: of prompt and blocks as they were committed, from position 0
    on; noisy [K, b, M, k]: of the block at hand in each denoising step."""

    clean: Experts
    noisy: Experts

    def row(self) -> dict[str, Any]:
        """As JSON: shapes, and zlib's base64 of the numbers."""
        return {
            name: {"shape": list(array.shape), "data": base64.b64encode(zlib.compress(array.tobytes())).decode()}
            for name, array in vars(self).items()
        }

    @staticmethod
    def from_row(row: Any) -> "Routing":
        """ValueError, which goes on after "has", for what no `row` gave."""
        try:
            arrays = {
                name: np.frombuffer(zlib.decompress(base64.b64decode(row[name]["data"])), np.int16).reshape(
                    row[name]["shape"]
                )
                for name in Routing.__dataclass_fields__
            }
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError(f"a routing that cannot be read ({type(error).__name__})") from error
        return Routing(**arrays)
