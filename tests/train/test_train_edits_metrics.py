"""What overwriting did to a step's responses, in figures."""

import numpy as np
import pytest

from configs.schema import ExecuteConfig, RewardConfig
from reward import build_reward
from reward.base import Reward
from sample import Events, Rollout
from train.edits import draft, edit_metrics, effects, surprisals

# Place 0: 10 overwritten by 11; 1: 7, masked again, 8; 2: 2, the stop id, chosen once; 3 is a pad, chosen once.
ROWS = [(1, 0, 10, 10, -1.0), (1, 1, 7, 7, -1.0), (2, 0, 11, 11, -0.5), (2, 1, 99, -1, 0.0), (3, 1, 8, 8, -1.0)]
ROWS += [(3, 2, 2, 2, -1.0), (4, 3, 0, 0, -1.0)]
EDITED = Rollout((1,), [5], [11, 8, 2, 0], [2, 3, 3, 4], [-0.5, -1.0, -1.0, -1.0], 3, "stop", 4, events=Events.of(ROWS))
PLAIN = Rollout((2,), [5], [11, 2], [1, 2], [-1.0] * 2, 2, "stop", 2)


def test_events_and_overwritten_places_are_counted_inside_the_response():
    assert edit_metrics([EDITED, PLAIN]) == pytest.approx(
        {"edits/events_per_token": 5 / 3, "edits/overwritten": 1 / 3, "edits/masked_again": 1 / 3}
        | {"edits/surprisal": 0.5}
    )
    assert edit_metrics([PLAIN]) == {}


# 7 deletes, 8 inserts: 10 20 -> 20 M -> M 20 -> 11 20, then 21 in place of 20.
MOVES = [(1, 0, 10, 10, -0.1, -1), (1, 1, 20, 20, -0.2, -1), (2, 0, 20, 7, -0.3, 1), (2, 1, 99, -1, 0.0, -1)]
MOVES += [(3, 0, 99, 8, -0.4, -1), (3, 1, 20, -1, 0.0, 0), (4, 0, 11, 11, -0.5, -1), (5, 1, 21, 21, -0.9, -1)]
MOVED = Rollout(
    (3,),
    [5],
    [11, 21],
    [4, 5],
    [-0.5, -0.9],
    2,
    "length",
    5,
    events=Events(*(list(column) for column in zip(*MOVES, strict=True)), (7, 8)),
)


def test_deletions_and_insertions_are_counted_and_a_token_that_moved_is_not_overwritten():
    assert edit_metrics([MOVED]) == pytest.approx(
        {"edits/events_per_token": 3.0, "edits/overwritten": 0.5, "edits/masked_again": 0.0}
        | {"edits/deleted": 0.5, "edits/inserted": 0.5, "edits/surprisal": (0.3 + 0.4 + 0.9) / 3}
    )
    assert draft(MOVED, (), 8).token_ids == MOVED.token_ids


def test_the_entropy_of_an_edited_response_is_that_of_all_its_choices():
    assert surprisals([PLAIN, EDITED, MOVED]) == pytest.approx([1, 1, 1, 1, 0.5, 1, 1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9])


def test_a_draft_has_the_first_choice_of_every_place_and_its_own_stop():
    assert draft(EDITED, (2,), 8).token_ids == [10, 7, 2] and draft(EDITED, (2,), 8).finish_reason == "stop"
    assert draft(EDITED, (7,), 8).token_ids == [10, 7]
    assert draft(EDITED, (), 8).token_ids == [10, 7, 2]  # the id that ended the response itself
    cut = draft(EDITED, (), 2)
    assert cut.token_ids == [10, 7] and cut.finish_reason == "length" and cut.events is None
    assert draft(PLAIN, (2,), 8).token_ids == PLAIN.token_ids


class Equals(Reward):
    verifies = True

    def score(self, prompts, completions, columns):
        self.asked = list(zip(prompts, completions, strict=True))
        return [float(text == true) for text, true in zip(completions, columns["true"], strict=True)]


@pytest.mark.parametrize("data_type", ["general", "option"])
def test_the_built_in_verifiers_say_that_they_verify_and_functions_that_they_do_not(data_type):
    for function, verifies in ((None, True), ("data/tiny.py:tiny_reward", False)):
        with build_reward(RewardConfig(function=function), ExecuteConfig(), data_type) as reward:
            assert reward.verifies == verifies


def test_answers_that_edits_mended_and_broke_are_counted_and_unchanged_ones_not_asked_about():
    reward, texts, drafts = Equals(), ["a", "b", "c", "d", "e"], ["x", "b", "C", "d", "y"]
    true = ["a", "b", "C", "z", "q"]
    rewards = reward(list("01234"), texts, true=true)
    found = effects(reward, list("01234"), texts, drafts, [*rewards[:4], None], {"true": true})
    assert found == {"edits/changed_count": 2.0, "edits/mended_count": 1.0, "edits/broken_count": 1.0}
    assert reward.asked == [("0", "x"), ("2", "C")] and np.isfinite(list(found.values())).all()
