"""Pictures of an RL step: encoded once a group against once a sample, and the share of the step that they take.

    python benchmarks/vision.py [--tasks 4] [--responses 8] [--model path/to/LLaDA-V --pictures FILE ... --device cuda]

A step on a model that sees, twice from the same weights: as rl.py does it, where the responses to a task share its
pictures, and as it would be were each response's prompt encoded for itself. Both sample the same tokens (checked).
Without a checkpoint: random weights, the tower a twentieth of the language model as in LLaDA-V, on noise. Seconds are
those of the processor (one thread), on a GPU those of the clock. Ends with one line of JSON.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs.schema import TrainingConfig
from models import DiffusionLM, Prompt, load_model
from models.tiny import tiny_folder
from sample import Sampler, SamplingConfig
from sample.rollout import Key
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.optimizer import OptimizerSettings
from train.learner.policy import Policy
from train.learner.updater import Updater

MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "max_position_embeddings": 4096,
    "image_grid_pinpoints": [[112 * i, 112 * j] for i in (1, 2, 3) for j in (1, 2, 3)],
}
TOWER = {
    "hidden_size": 80,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
PHASES = ("pictures", "sampling", "update")
QUESTION = [7, 8, 9, 10, 11, 12]
SAMPLING = SamplingConfig(
    max_new_tokens=8, block_size=8, steps_per_block=4, temperature=1.0, stop_ids=[], cache="none", seed=1
)


def random_model(device: str) -> DiffusionLM:
    with tempfile.TemporaryDirectory() as folder:
        tiny_folder(folder, "lladav", **MODEL)
        (Path(folder) / "vision_tower_config.json").write_text(json.dumps(TOWER))
        return load_model(folder, device=device, random_init_seed=0)


def noise(number: int) -> Image.Image:
    """A picture of 4 x 3."""
    values = np.random.default_rng(number).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    return Image.fromarray(values)


class Clock:
    """Seconds by phase, and how often the tower ran over how many tiles. Picture work inside other phases is taken out
    of them."""

    def __init__(self, model: DiffusionLM):
        self.cuda = model.device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.tower_calls = self.tiles = 0
        vision: Any = model.vision
        look, encoded = vision.look, vision._encoded

        def counted_look(pixels_n3SS: Tensor) -> Tensor:
            self.tower_calls, self.tiles = self.tower_calls + 1, self.tiles + len(pixels_n3SS)
            return look(pixels_n3SS)

        vision.look = counted_look
        vision._encoded = lambda source: self.timed("pictures", encoded, source)

    def now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, phase: str, run: Callable[..., Any], *given: Any) -> Any:
        start, pictures = self.now(), self.seconds.get("pictures", 0.0)
        found = run(*given)
        spent = self.now() - start
        inside = self.seconds.get("pictures", 0.0) - pictures if phase != "pictures" else 0.0
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - inside
        return found


def step(model: DiffusionLM, images: Sequence[Any], responses: int, shared: bool) -> tuple[dict[str, Any], list[Any]]:
    """A step of `responses` to each picture's question: its figures, and the rollouts. shared: pictures by a task's
    responses."""
    model = copy.deepcopy(model)
    clock = Clock(model)

    def prompts() -> list[Prompt]:
        copies = 1 if shared else responses
        pictures = [model.encode_images([image])[0] for image in images for _ in range(copies)]
        return [Prompt([*picture.ids, *QUESTION], pictures=[picture]) for picture in pictures]

    asked = clock.timed("pictures", prompts)
    keys: list[Key] = [("step", task, j) for task in range(len(images)) for j in range(responses)]
    rollouts = clock.timed(
        "sampling", lambda: Sampler(model, SAMPLING).generate(asked, n=responses if shared else 1, keys=keys)
    )
    training = TrainingConfig(mixed_precision="no", batch_size_lm=64)
    updater = Updater(model, make_accelerator("no", model.device), OptimizerSettings(learning_rate=1e-5))
    policy = Policy(updater, Replay.of(model, SAMPLING, training, group_size=responses))
    by_key = dict(zip(keys, [prompt for prompt in asked for _ in range(len(keys) // len(asked))], strict=True))

    def update() -> None:
        credit = [float(i % 2) - 0.5 for i in range(len(rollouts))]
        policy.train(policy.batch(rollouts, credit, shown=by_key), 1)

    clock.timed("update", update)
    total = sum(clock.seconds.values())
    figures = {
        "pictures_encoded": len(asked),
        "tower_calls": clock.tower_calls,
        "tiles": clock.tiles,
        "rows_of_features": sum(prompt.rows for prompt in asked),
        "seconds": clock.seconds,
        "share_on_pictures": clock.seconds["pictures"] / total,
    }
    return figures, rollouts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4, help="pictures, each with its question (%(default)s)")
    parser.add_argument("--responses", type=int, default=8, help="to each of them (%(default)s)")
    parser.add_argument("--pictures", nargs="+", metavar="FILE", help="instead of noise of 320 x 240")
    parser.add_argument("--model", help="a LLaDA-V checkpoint instead of random weights")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = load_model(chosen.model, device=chosen.device) if chosen.model else random_model(chosen.device)
    images = chosen.pictures or [noise(i) for i in range(chosen.tasks)]
    found, tokens = {}, []
    for name, shared in (("once a group", True), ("once a sample", False)):
        found[name], rollouts = step(model, images, chosen.responses, shared)
        tokens.append([rollout.token_ids for rollout in rollouts])
    if tokens[0] != tokens[1]:
        raise RuntimeError("the two ways sampled other tokens")
    names = ("pictures_encoded", "tower_calls", "tiles", "rows_of_features")
    head = ("encoded", *(name.replace("_", " ") for name in names))
    print("".join(f"{name:>18}" for name in head) + "".join(f"{name:>10}" for name in (*PHASES, "share")))
    for name, figures in found.items():
        counts = "".join(f"{figures[each]:18,}" for each in names)
        times = "".join(f"{figures['seconds'][phase]:10.2f}" for phase in PHASES)
        print(f"{name:>18}{counts}{times}{figures['share_on_pictures']:10.1%}")
    print(json.dumps({"benchmark": "vision", "tasks": len(images), "responses": chosen.responses, **found}))


if __name__ == "__main__":
    main()
