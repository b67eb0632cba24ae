"""benchmarks/vision.py: what it counts of a step, on a model of one layer."""

import json

import pytest

from benchmarks import vision


@pytest.mark.slow
def test_a_group_shares_what_each_sample_would_encode(capsys, monkeypatch):
    monkeypatch.setattr(vision, "MODEL", vision.MODEL | {"hidden_size": 32, "num_hidden_layers": 1})
    monkeypatch.setattr(vision, "TOWER", vision.TOWER | {"image_size": 28, "num_hidden_layers": 1})
    monkeypatch.setitem(vision.MODEL, "image_grid_pinpoints", [[28, 28], [56, 28]])
    vision.main(["--tasks", "2", "--responses", "2"])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert len(table) == 3 and (found["tasks"], found["responses"]) == (2, 2)
    group, sample = found["once a group"], found["once a sample"]
    for name in ("pictures_encoded", "tower_calls", "tiles", "rows_of_features"):
        assert sample[name] == 2 * group[name] > 0
    assert group["tower_calls"] == 2 and 0.0 < group["share_on_pictures"] < 1.0
