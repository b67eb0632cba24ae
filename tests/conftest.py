import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def sdar():
    """A tiny random SDAR model (fp32), shared: tests that change weights make their own."""
    from helpers import tiny_model

    return tiny_model("sdar")


@pytest.fixture(scope="session", params=["sdar", "sdar_tied"])
def golden(request):
    """(folder, model) of a golden checkpoint."""
    from helpers import GOLDEN

    from models import load_model

    return GOLDEN / request.param, load_model(GOLDEN / request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny checkpoint that reads and writes text: tests that change it make their own."""
    from end_to_end import text_checkpoint

    return text_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def shop(tmp_path, model_folder, monkeypatch):
    from end_to_end import Workshop

    from runtime.monitor import Monitor

    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    return Workshop(tmp_path, model_folder)
