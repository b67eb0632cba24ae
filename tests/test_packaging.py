"""What is imported is declared, versions agree in all files that name them, and the console commands resolve."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dllm_commands
from serve import command as serve_command
from train import command

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = PROJECT["tool"]["setuptools"]["packages"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def requirements(name):
    """Canonical name -> requirement, of the lines of a requirements file itself."""
    lines = [line.split(" \\")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return {canonicalize_name(each.name): each for each in found}


def declared(texts):
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.slow
def test_every_import_of_the_code_is_declared():
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    sources = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    names = {name for path in sources for name in imported(path)} - own - set(sys.stdlib_module_names)
    known, of = requirements("requirements.txt"), packages_distributions()
    optional = set(declared([*EXTRAS["deepspeed"], *EXTRAS["tracking"], *EXTRAS["lm-eval"]]))
    missing = {name for name in names if not {canonicalize_name(d) for d in of.get(name, [name])} & {*known, *optional}}
    assert not missing


def test_pyproject_and_requirements_name_the_same_packages():
    known, project = requirements("requirements.txt"), declared(PROJECT["project"]["dependencies"])
    assert set(known) == set(project)
    dev, extras = requirements("requirements-dev.txt"), requirements("requirements-extras.txt")
    assert set(declared(EXTRAS["dev"])) == set(dev)
    optional = [*EXTRAS["deepspeed"], *EXTRAS["tracking"], *EXTRAS["lm-eval"]]
    assert set(declared(optional)) <= set(extras)
    for texts, pins in (
        (PROJECT["project"]["dependencies"], known),
        (EXTRAS["dev"], dev),
        (optional, extras),
    ):
        for name, requirement in declared(texts).items():
            assert requirement.specifier.contains(pinned(pins[name])), requirement


def test_the_lock_has_the_pinned_versions_with_hashes():
    text, known = (ROOT / "requirements.lock").read_text(), requirements("requirements.txt")
    locked = requirements("requirements.lock")
    for name, requirement in known.items():
        assert pinned(locked[name]).split("+")[0] == pinned(requirement), name
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries if re.match(r"[A-Za-z0-9]", entry))
    assert "+cpu" in pinned(locked["torch"]) and not [name for name in locked if name.startswith("nvidia")]


def test_every_room_is_installed():
    assert sorted(ROOMS) == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("name", ["dllm-rl", "dllm-eval", "dllm-sft"])
def test_console_commands_run_the_checkout(name, monkeypatch):
    module, function = PROJECT["project"]["scripts"][name].split(":")
    assert module in PROJECT["tool"]["setuptools"]["py-modules"]
    calls = []
    monkeypatch.setattr(command, "main", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    getattr(importlib.import_module(module), function)()
    ((target, usage),) = calls
    assert callable(importlib.import_module(target).run) and usage.startswith(f"{name} config=")
    assert sys.path[:2] == [str(Path(dllm_commands.__file__).parent), "elsewhere"] and sys.path[0] == str(ROOT)


def test_the_report_command_runs_the_checkout(monkeypatch):
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    monkeypatch.setattr(sys, "argv", ["dllm-report", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        dllm_commands.report()
    assert ended.value.code == 2 and sys.path[0] == str(ROOT)
    assert PROJECT["project"]["scripts"]["dllm-report"] == "dllm_commands:report"


SERVING = {"dllm-serve": ("serve", "main"), "dllm-chat": ("chat", "chat")}


@pytest.mark.parametrize("name", SERVING)
def test_the_commands_of_serving_run_the_checkout(name, monkeypatch):
    function, runs = SERVING[name]
    assert PROJECT["project"]["scripts"][name] == f"dllm_commands:{function}"
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    usages = []
    monkeypatch.setattr(serve_command, runs, usages.append)
    getattr(dllm_commands, function)()
    assert usages[0].startswith(f"{name} model=") and sys.path[0] == str(ROOT)


def test_the_lm_eval_command_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "serve.harness", raising=False)
    with pytest.raises(SystemExit, match="pip install -c requirements-extras.txt lm_eval"):
        dllm_commands.lm_eval()
    target = PROJECT["project"]["entry-points"]["lm_eval.models"]["dllm"]
    assert target == "serve.harness:DiffusionHarness"


def test_an_installation_apart_from_the_checkout_is_refused():
    build = PROJECT["build-system"]
    assert (build["build-backend"], build["backend-path"]) == ("build_backend", ["bin"])
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "bin" / "build_backend.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    with pytest.raises(SystemExit, match="pip install -e"):
        backend.build_wheel("wheels", config_settings=None)
    assert callable(backend.build_editable)


LINKS = {
    **{"rl_v.py": "rl.py", "eval_v.py": "eval.py"},
    **{f"multinode_{name}_v.py": f"multinode_{name}.py" for name in ("rl", "eval")},
    **{f"train/sft_{name}.py": "sft.py" for name in ("trado", "sdar", "dream", "llada", "mmada", "lladav", "mmada_v")},
}
"""dLLM-RL's commands -> the file that each is a link to."""


def test_commands_of_dllm_rl_are_links_without_code_of_their_own():
    found = {str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.py"), *(ROOT / "train").glob("*.py"))}
    assert {name: str(path.readlink()) for name, path in found.items() if path.is_symlink()} == LINKS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rl_v.py", "train/sft_mmada_v.py"])
def test_a_link_is_the_command(name):
    script = ROOT / name
    ran = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "model.vq_model_path" in ran.stdout and ("rollout.steps" in ran.stdout) == (name == "rl_v.py")
