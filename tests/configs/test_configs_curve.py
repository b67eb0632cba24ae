"""Thresholds of decoding: eval.py's `--curve`, and those that no strategy reads."""

import pytest

from configs import load_config
from configs.curve import THRESHOLDS

CURVE = [*THRESHOLDS]


def rollout_of(*arguments, config="tiny_eval"):
    return load_config([f"config=configs/{config}.yaml", *arguments], command="eval").rollout


def lists_of(*arguments):
    return rollout_of("--curve", *arguments).parallel_lists()


def test_a_curve_is_a_list_of_thresholds_unless_one_is_typed():
    dynamic = "rollout.strategy=low_confidence_dynamic"
    assert lists_of(dynamic) == {"threshold": CURVE}
    assert lists_of(dynamic, "rollout.threshold=[0.2,1]") == {"threshold": [0.2, 1]}
    assert lists_of(dynamic, "rollout.dynamic_threshold=[0.2,1]") == {"threshold": [0.2, 1]}
    with pytest.raises(ValueError, match="argument '--curve' is not of the form key=value"):
        load_config(["config=configs/rl_tiny.yaml", "--curve"], command="rl")


def test_a_curve_goes_over_the_strategies_that_read_a_threshold(caplog):
    """The recipe names two."""
    assert lists_of() == {"threshold": CURVE} and rollout_of("--curve").strategy == "low_confidence_dynamic"
    left_out = "--curve leaves rollout.strategy=low_confidence_static out, which reads no threshold"
    assert left_out in caplog.messages
    own = "rollout.strategy=[low_confidence_dynamic,own.py:choose,sequential]"
    lists = lists_of(own, "rollout.block_size=[4,8,2]", "rollout.top_k=[0,0,1]", "rollout.threshold=[0.5,1]")
    assert lists.pop("strategy") == ["low_confidence_dynamic"] * 2 + ["own.py:choose"] * 2
    assert lists == {"block_size": [4, 4, 8, 8], "threshold": [0.5, 1, 0.5, 1]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["rollout.strategy=low_confidence_static"],
            "strategy=low_confidence_static reads no threshold, which --curve",
        ),
        (["rollout.strategy=[sequential,entropy_bounded]"], "strategy=sequential, entropy_bounded reads no threshold"),
        (["rollout.threshold=0.5"], "threshold=0.5: --curve goes over several thresholds: give a list"),
        (["rollout.threshold=[0.5,1.5]"], "threshold is 1.5; it must be between 0 and 1"),
        (["rollout.strategy=low_confidence_dynamics"], "strategy is 'low_confidence_dynamics'; choose from"),
    ],
)
def test_a_curve_that_cannot_be_is_an_error_that_names_what_was_typed(arguments, words):
    with pytest.raises(ValueError, match=f"^rollout.{words}"):
        rollout_of("--curve", *arguments)


def test_a_curve_over_lists_of_different_lengths_names_those_that_were_given():
    with pytest.raises(ValueError, match="^rollout: lists .* are {'rollout.strategy': 2, 'rollout.top_k': 1}"):
        rollout_of("--curve", "rollout.top_k=[0]")


def test_a_typed_threshold_that_no_strategy_reads_is_named(caplog):
    rollout_of("rollout.threshold=0.5")
    rollout_of("rollout.threshold=0.5", "rollout.strategy=own.py:choose")
    rollout_of(config="dream_eval")  # a recipe has one for whoever types another strategy
    assert not caplog.messages
    for threshold in ("0.9", "[0.5, 0.9]"):
        rollout_of(f"rollout.threshold={threshold}", "rollout.strategy=sequential")
        said = f"rollout.threshold={threshold} has no effect: set rollout.strategy=low_confidence_dynamic"
        assert caplog.messages.pop() == said
    arguments = ["evaluation.threshold=0.5", "evaluation.strategy=low_confidence_static"]
    load_config(["config=configs/rl_tiny.yaml", *arguments], command="rl")
    assert caplog.messages[-1].startswith("evaluation.threshold=0.5 has no effect: set evaluation.strategy=")
