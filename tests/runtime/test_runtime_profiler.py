"""Steps that torch's profiler records."""

import json

import pytest
import torch

from runtime.profiler import Profiler


@pytest.mark.slow
def test_the_named_steps_alone_are_recorded_to_their_end(tmp_path):
    profiler = Profiler([2], tmp_path, rank=1)
    for step in (1, 2, 3):
        profiler.at(step)
        torch.ones(4 * step, 4).mm(torch.ones(4, 4))
    profiler.close()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "step-000002-rank1.json",
        "step-000002-rank1.txt",
    ]
    trace = json.loads((tmp_path / "profile" / "step-000002-rank1.json").read_text())
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 1
    assert "aten::mm" in (tmp_path / "profile" / "step-000002-rank1.txt").read_text()
