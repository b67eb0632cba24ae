"""One meaning of the block size: what the sampler, the trainer, the planner and the banner take."""

import json
import logging

import pytest
from end_to_end import text_checkpoint
from helpers import TINY_CONFIGS, tiny_model

from configs import merge
from models.spec import CheckpointSpec
from sample import SamplingConfig
from train.setup.blocks import Blocks, adopt_block_size
from train.setup.decodings import sampling_entries


@pytest.fixture
def spec_of(tmp_path):
    def read(family, **changes):
        (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS[family] | changes))
        return CheckpointSpec.read(tmp_path)

    return read


@pytest.mark.parametrize(
    ("family", "sections", "want"),
    [
        ("sdar", {}, (4, (4,), (4,))),
        ("sdar", {"rollout": {"block_size": 8}}, (8, (8,), (8,))),
        ("sdar", {"training": {"block_size": 4}, "evaluation": {"block_size": [2, 8]}}, (4, (4,), (2, 8))),
        ("dream", {}, (32, (32,), (32,))),
        ("dream", {"rollout": {"block_size": 8}}, (32, (8,), (32,))),
        ("llada", {"training": {"block_size": 16}, "evaluation": {"top_k": [1, 2]}}, (16, (32,), (32, 32))),
    ],
)
def test_blocks_of_a_run(spec_of, family, sections, want):
    assert Blocks.of(merge(sections), spec_of(family)) == Blocks(*want)


def test_blocks_of_full_attention_end_with_the_response(spec_of):
    sections = {"rollout": {"max_new_tokens": 20}, "evaluation": {"max_new_tokens": 9, "block_size": 16}}
    assert Blocks.of(merge(sections), spec_of("dream")) == Blocks(32, (20,), (9,))


@pytest.mark.parametrize(("kind", "want"), [("sft", Blocks(16, (), ())), ("eval", Blocks(4, (8, 2), ())), ("rl", None)])
def test_blocks_of_the_other_commands(spec_of, kind, want):
    config, spec = merge({"training": {"block_size": 16}, "rollout": {"block_size": [8, 2]}}), spec_of("sdar")
    if want is None:
        with pytest.raises(ValueError, match="training.block_size=16 and rollout.block_size=8 differ"):
            Blocks.of(config, spec, kind)
    else:
        assert Blocks.of(config, spec, kind) == want


def test_blocks_that_clash_with_the_checkpoints_are_refused(spec_of):
    config = merge({"training": {"block_size": 8}})
    with pytest.raises(ValueError, match=r"training.block_size=8 and rollout.block_size=4 \(the checkpoint's\) differ"):
        Blocks.of(config, spec_of("sdar"))
    assert Blocks.of(config, spec_of("sdar", block_size=8)) == Blocks(8, (8,), (8,))


@pytest.mark.parametrize("family", ["sdar", "dream"])
@pytest.mark.parametrize("block_size", [None, 8])
def test_the_sampler_takes_the_blocks_of_the_banner(family, block_size):
    model, config = tiny_model(family), merge({"rollout": {"block_size": block_size}})
    blocks = Blocks.of(config, model.spec)
    (entry,) = sampling_entries(config.rollout, model, blocks.sampled, seed=0, deterministic=False).values()
    alone = SamplingConfig(max_new_tokens=config.rollout.max_new_tokens, block_size=block_size).for_model(model)
    assert entry.block_size == blocks.sampled[0] == alone.block_size


def test_an_adopted_block_size_is_named_once_and_saved(tmp_path, caplog):
    model = tiny_model("sdar")
    with caplog.at_level(logging.WARNING):
        adopt_block_size(model, 8)
        adopt_block_size(model, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "block size 8 is not the checkpoint's 4: quality may suffer until it is trained"
    ]
    model.save(tmp_path)
    assert CheckpointSpec.read(tmp_path).block_size == json.loads((tmp_path / "config.json").read_text())["block_size"]
    full = tiny_model("llada")
    adopt_block_size(full, 8)
    full.save(tmp_path / "full")
    assert full.block_size == 1 and "block_size" not in json.loads((tmp_path / "full" / "config.json").read_text())


def test_a_checkpoint_is_read_without_its_weights(tmp_path):
    folder = text_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    spec = CheckpointSpec.read(folder)
    assert (spec.family.name, spec.positions, spec.block_size, spec.adapters) == ("sdar", 256, 4, None)
