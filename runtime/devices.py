"""GPUs of this machine."""

import sys
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # NVIDIA's, in WSL too, and AMD's


def gpu_count() -> int:
    """GPUs that torch can use. Importing torch takes seconds, so torch is called only where a driver is."""
    if "torch" not in sys.modules and not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
