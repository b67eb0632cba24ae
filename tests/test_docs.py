"""README and docs: links lead somewhere, the API page is up to date, and what they say to type works."""

import ast
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
from end_to_end import text_checkpoint, write_json, write_tasks

from configs import load_config
from train.rl import Run

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
GENERATED = ["api", "config", "from_trl_verl", "recipes"]
"""Pages of docs/ that a script docs/make_*.py writes."""
ROOMS = ("configs", "data", "models", "reward", "runtime", "sample", "serve", "train")
RUNS = {
    "rl.py": ("rl", "train.rl"),
    "multinode_rl.py": ("rl", "train.rl"),
    "dllm-rl": ("rl", "train.rl"),
    "train/sft.py": ("sft", "train.sft"),
    "dllm-sft": ("sft", "train.sft"),
    "eval.py": ("eval", "train.evaluation"),
    "multinode_eval.py": ("eval", "train.evaluation"),
    "dllm-eval": ("eval", "train.evaluation"),
}
# Commands that no test of this file runs: where they are tested, or why they cannot be.
ELSEWHERE = {
    "git clone": "the network",
    "bin/setup": "tests/runtime/test_runtime_setup.py",
    "bin/demo": "tests/runtime/test_runtime_setup.py",
    "bin/test": "tests/runtime/test_runtime_setup.py",
    "apt-get": "the network",
    "pip ": "the network",
    "DS_BUILD_OPS": "the network",
    "accelerate launch": "GPU; on CPUs tests/test_end_to_end_ranks.py",
    "python benchmarks/": "minutes; each says what it printed in benchmarks/RESULTS.md",
    "python data/download_data.py": "the network; tests/data/test_data_download.py",
    "cd data; python download_data.py": "the network; tests/data/test_data_download.py",
    "python sample/get_report.py": "tests/runtime/test_runtime_report.py",
    "dllm-report": "tests/runtime/test_runtime_report.py",
    "python serve.py": "tests/serve/test_serve_command.py",
    "dllm-serve": "tests/serve/test_serve_command.py",
    "dllm-chat": "tests/serve/test_serve_command.py",
    "dllm-lm-eval": "tests/serve/test_serve_harness.py",
    "python sample/get_trace_viewer.py": "tests/sample/test_sample_trace_viewer.py",
    "python models/export.py": "tests/models/test_models_export.py",
    "dllm-export": "tests/models/test_models_export.py",
    "python models/merge.py": "tests/models/test_models_lora.py",
    "python generate_images.py": "tests/test_generate_images.py",
    "python data/check.py": "tests/data/test_data_check.py",
    "python data/preprocess_sft.py": "tests/data/test_data_preprocess.py",
    "python docs/make_": "test_a_generated_page_is_up_to_date",
    "mkdocs ": "tests/test_docs_site.py",
    "python examples/rl_loop.py": "tests of the example",
    "python examples/tiny_drawing.py": "tests of the example",
    "python rl.py config=configs/rl_tiny_drawing": "a model that draws; tests/test_examples.py",
    "python rl.py config=configs/rl_tiny_vision": "a model that sees; tests/data/test_data_tiny_vision.py",
    "python eval.py config=configs/diffusion_gemma_eval": "another family; tests/test_end_to_end_canvas.py",
    "python train/sft.py config=configs/sft_diffusion_gemma": "another family; tests/test_end_to_end_canvas.py",
    "python eval.py config=configs/lladav_eval": "a model that sees; tests/test_end_to_end_mmu.py",
    "python rl.py config=configs/rl_mmada_v": "a model that sees; tests/configs/test_configs_shipped.py",
    "python train/sft.py config=configs/sft_lladav": "a model that sees; tests/test_end_to_end_mmu.py",
}
TYPED = re.compile(r"^(?:[A-Z][A-Z_0-9]*=\S+ )*(?:python |bin/|dllm-|git |apt-get |pip |accelerate |mkdocs |cd )")


def blocks(text):
    """Blocks of code: fenced, or indented by four spaces after an empty line."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return fenced + re.findall(r"(?<=\n\n)((?:    [^\n]*\n(?:\n(?=    ))?)+)", rest)


def commands():
    """(page, command) for everything that a page says to type, lines that a backslash joins as one."""
    for page in PAGES:
        for block in blocks(page.read_text()):
            joined = re.sub(r"\\\n\s*", "", re.sub(r"^    ", "", block, flags=re.M))
            for line in joined.splitlines():
                if TYPED.match(line):
                    yield page.name, re.sub(r"\s+#.*", "", line).strip()


def script_of(command):
    """The script that a command runs, without the variables in front of it, and its arguments."""
    argv = shlex.split(re.sub(r"^(?:[A-Z][A-Z_0-9]*=\S+ )+", "", command))
    return (argv[1], argv[2:]) if argv[0] == "python" else (argv[0], argv[1:])


ALL = sorted(set(commands()))
RUN_HERE = [c for c in ALL if script_of(c[1])[0] in RUNS and not any(c[1].startswith(e) for e in ELSEWHERE)]


def test_every_command_is_run_here_or_named_with_its_reason():
    others = [c for c in ALL if c not in RUN_HERE and not any(c[1].startswith(e) for e in ELSEWHERE)]
    assert not others
    assert len(RUN_HERE) > 5


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Tiny stand-ins for what the pages name: models, data sets, runs, a reward."""
    folder = tmp_path_factory.mktemp("docs")
    text_checkpoint(folder / "model", max_position_embeddings=32768)
    for name in ("MATH_train", "MATH500", "tasks"):
        write_tasks(folder / f"{name}.json")
    write_json(folder / "my_sft.json", [{"prompt": "12=", "response": "21"}] * 4)
    write_json(folder / "my_pairs.json", [{"prompt": "12=", "chosen": "21", "rejected": "12"}] * 4)
    (folder / "my_reward.py").write_text(
        "def digits(prompts, completions, **columns):\n    return [0.0] * len(completions)\n"
    )
    return folder


@pytest.mark.parametrize(("page", "command"), RUN_HERE)
def test_what_a_page_says_to_type_passes_a_dry_run(page, command, shop, tmp_path, monkeypatch):
    script, arguments = script_of(command)
    name, module = RUNS[script]
    monkeypatch.chdir(shop)
    given = [a for a in arguments if a not in ("...", "dry_run=true", "--help")]
    given = ["config=configs/rl_sdar.yaml" if a == "config=..." else a for a in given]
    keys = {argument.partition("=")[0] for argument in given}
    filled = {
        "model.pretrained_model": shop / "model",
        "dataset.folder": shop,
        "experiment.output_dir": tmp_path / "runs",
        "experiment.processes": 1,
    }
    if "model.reference_model" in keys:
        filled["model.reference_model"] = shop / "model"
    if name != "sft":
        filled |= {"reward.workers": 1, "execute.num_chunk": 1}
    data = {"rl": "dataset.train_dataset", "sft": "dataset.optimization_data", "eval": "dataset.eval_dataset"}[name]
    if data not in keys and "tiny" not in command:
        filled[data] = "my_sft" if name == "sft" else "tasks"
    if name == "rl" and "tiny" not in command:
        filled["evaluation.eval_dataset"] = "tasks"
    replaced = (
        "model",
        "model.pretrained_model",
        "experiment.deepspeed_file",
        "experiment.processes",
        "model.value_base_model",
        "model.reference_model",
    )
    own = [argument for argument in given if argument.partition("=")[0] not in replaced]
    added = [*(f"{key}={value}" for key, value in filled.items()), "model.random_init=false", "dry_run=true"]
    config = load_config([*own, *added], command=name)
    __import__(module)
    assert sys.modules[module].run(config) is None


PYTHON = [("README.md", "From Python"), ("data.md", "From Python"), ("from_trl_verl.md", "Rewards")]


@pytest.mark.parametrize(("page", "heading"), PYTHON)
def test_python_of_a_page_runs_as_it_stands(page, heading, shop, monkeypatch):
    text = next(path for path in PAGES if path.name == page).read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    code = re.sub(r"^    ", "", blocks("\n" + section)[0], flags=re.M)
    code = code.replace("/models/TraDo-4B-Instruct", str(shop / "model")).replace('device="cuda"', 'device="cpu"')
    code = code.replace("max_new_tokens=512", "max_new_tokens=8").replace('folder="data"', f'folder="{shop}"')
    monkeypatch.chdir(shop)
    exec(compile(code, page, "exec"), {"__name__": "snippet"})


def anchors(text):
    titles = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_loop_in_the_readme_is_the_one_that_runs():
    """Its calls and their arguments, in their order, stand in `Run.steps`; timers and progress bars aside."""
    shown = (ROOT / "README.md").read_text().split("    for step in range", 1)[1].split("\n\n")[0]
    shown = re.sub(r"#.*", "", "for step in range" + shown).replace("updater.engine", "learner.updater.engine")
    run = inspect.getsource(Run.steps).replace("self.", "").replace(", progress.advance", "")
    places = [run.find(line.strip().removeprefix("sampler.")) for line in shown.replace("self.", "").splitlines()]
    assert -1 not in places and places == sorted(places)


def texts_of(path):
    """All texts in a file of code, with a mark where a value is put into one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_that_troubleshooting_names_are_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = [found for found in re.findall(r"^\| `([^`]+)` \|", page, re.M) if " " in found]
    assert len(messages) > 50
    rooms = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(text for path in rooms for text in texts_of(path))
    patterns = {message: ".*".join(map(re.escape, message.split("..."))) for message in messages}
    assert not [message for message, pattern in patterns.items() if not re.search(pattern, code)]


def test_links_lead_to_files_and_headings():
    broken = []
    for page in [*PAGES, ROOT / "tests" / "README.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            where, _, anchor = target.partition("#")
            path = (page.parent / where).resolve() if where else page
            if "://" in target:
                continue
            if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
                broken.append(f"{page.name}: {target}")
    assert not broken


@pytest.mark.slow
def test_the_tests_that_faults_md_names_exist():
    known, files = set(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        files.add(path.name)
        known |= {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    text = (ROOT / "docs" / "faults.md").read_text()
    assert not [name for name in re.findall(r"\b(test_\w+\.py)\b", text) if name not in files]
    assert not [
        name for name in re.findall(r"\b(test_\w+)\b(?!\.py)", text) if name not in known and f"{name}.py" not in files
    ]


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_up_to_date(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    written = (ROOT / "docs" / f"{name}.md").read_text()
    assert written == importlib.import_module(f"make_{name}").document(), f"run: python docs/make_{name}.py"


def test_every_script_of_a_page_is_tested():
    assert sorted(path.stem.removeprefix("make_") for path in (ROOT / "docs").glob("make_*.py")) == sorted(GENERATED)
