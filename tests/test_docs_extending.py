"""docs/extending.md: each section's file and settings, as they stand there, in a run end to end.

A section has one ```python block, whose first line names its file, and one ```yaml block of the settings that use it.
It is run by RL; a section that another command runs is added to RUNS.
"""

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from end_to_end import RL, read_jsonl

from configs import load_config
from configs.tree import flat
from models import families, load_model
from train import rl

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
LONGEST = 15


def block(section, language):
    """The one fenced block of a language in a section."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return text


def code_lines(text):
    """Lines of code: without comments, blank lines and docstrings."""
    inside_docstrings = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    return [
        line for n, line in lines if line.strip() and not line.strip().startswith("#") and n not in inside_docstrings
    ]


def run_rl(shop, settings):
    """One RL step."""
    arguments = [f"{key}={value}" for key, value in flat(settings).items()]
    arguments += ["experiment.total_step=1", "experiment.eval_first=false", "evaluation.eval_dataset=''"]
    rl.run(load_config(shop.arguments(RL, *arguments)))
    (row,) = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    assert row["updates"] >= 1 and row["updates_skipped"] == 0 and row["grad_norm"] > 0


def run_family(shop, settings):
    """With the file imported as its line in models/families/__init__.py would, and a checkpoint of its model type."""
    spec = importlib.util.spec_from_file_location("my_family", shop.folder / "my_family.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = shop.folder / "mine"
    before = families.FAMILIES
    families.FAMILIES = (*before, module.MINE)
    try:
        shutil.copytree(shop.model, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").unlink(missing_ok=True)
        load_model(folder, random_init_seed=0).save(folder)
        run_rl(shop, settings | {"model": settings["model"] | {"pretrained_model": str(folder)}})
    finally:
        families.FAMILIES = before


RUNS = {"Family": run_family}
"""Section -> function(shop, settings) that runs it; the others run by `run_rl`."""


def write_file(section, folder):
    """The section's file, named by its first line."""
    text = block(section, "python")
    path = folder / text.splitlines()[0].removeprefix("# ")
    path.write_text(text)
    return path


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_short(section):
    """At most 15 lines of code."""
    assert len(code_lines(block(section, "python"))) <= LONGEST


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_as_it_stands(section, shop, monkeypatch):
    file = write_file(section, shop.folder)
    monkeypatch.chdir(shop.folder)
    settings = yaml.safe_load(block(section, "yaml"))
    RUNS.get(section, run_rl)(shop, settings)
    file.write_text("raise RuntimeError('this file is used')\n" + file.read_text())
    with pytest.raises(Exception, match="this file is used"):
        RUNS.get(section, run_rl)(shop, settings)
