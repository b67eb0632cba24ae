"""The record of overwritten tokens: what it says, what it costs where there is none, and damage that is named."""

import json
import math
from dataclasses import replace

import pytest

from sample import Events, Rollout

# A block of 4: place 0 is written and overwritten; 1 is written, masked again by rule, written again; 2 is written
# once, 3 never.
ROWS = [(1, 0, 11, 11, -0.5), (1, 1, 21, 21, -2.0), (2, 0, 12, 12, -0.25), (2, 1, 99, -1, 0.0)]
ROWS += [(3, 1, 22, 22, -0.75), (3, 2, 31, 31, -1.0)]
EDITED = Rollout((1, "a", 0), [5, 6], [12, 22, 31, 99], [2, 3, 3, 0], [-0.25, -0.75, -1.0, 0.0], 3, "stop", 4)
EDITED = replace(EDITED, events=Events.of(ROWS[::-1]))


def test_events_go_to_disk_and_back_and_a_rollout_without_any_is_written_as_before():
    assert Rollout.from_dict(json.loads(EDITED.to_json())) == EDITED
    nothing = replace(EDITED, events=Events([], [], [], [], []), canvas_step_map=[0] * 4, canvas_ids=[99] * 4)
    assert Rollout.from_dict(json.loads(nothing.to_json())) == nothing
    plain = replace(EDITED, events=None)
    assert "events" not in plain.to_json() and Rollout.from_dict(json.loads(plain.to_json())) == plain


def test_an_overwrite_puts_another_token_where_a_chosen_one_stood_and_a_remask_takes_one_away():
    events = Events.of([*ROWS, (4, 2, 31, 31, -0.1), (4, 3, 41, 41, -0.1)])
    assert [ROWS[i][:2] for i in events.overwrites().nonzero()[0]] == [(2, 0)]
    assert [ROWS[i][:2] for i in events.remasks().nonzero()[0]] == [(2, 1)]
    assert events.previous().tolist() == [-1, -1, 0, 1, 3, -1, 5, -1]


def damaged(**lists):
    row = json.loads(EDITED.to_json())
    row["events"] |= lists
    return row


DAMAGE = [
    (damaged(place=None), "events that are not the lists step, place, token, action, logprob"),
    (damaged(step=[1, 1, 2, 2, 3]), "events of 5 step and 6 place"),
    (damaged(action=[11, 21, 12, -2, 22, 31]), "events whose action has something else than whole numbers from -1"),
    (damaged(token=[11, 21, 12, 99, 22, True]), "events whose token has something else than whole numbers from 0"),
    (damaged(logprob=[0, 0, 0, 0, 0, "0"]), "events whose logprob has something else than numbers"),
    (damaged(step=[1, 1, 2, 2, 3, 2]), "events that are not in the order of step and place"),
    (damaged(place=[0, 1, 0, 1, 1, 4]), "events outside its 4 places or 4 steps"),
    (damaged(step=[1, 1, 2, 2, 3, 5]), "events outside its 4 places or 4 steps"),
    (damaged(place=[0, 1, 0, 1, 1, 3]), "no event for place 2, which its step map says is decided"),
    (damaged(token=[11, 21, 13, 99, 22, 31]), "another token, step or log-probability at place 0"),
    (damaged(logprob=[-0.5, -2.0, -0.25, 0.0, -0.7, -1.0]), "another token, step or log-probability at place 1"),
    (damaged(step=[1, 1, 2, 2, 3, 4]), "another token, step or log-probability at place 2"),
]


@pytest.mark.parametrize(("row", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damaged_events_are_named_with_their_rollout(row, message):
    with pytest.raises(ValueError, match=r"rollout \(1, 'a', 0\) has .*the file is damaged") as error:
        Rollout.from_dict(row)
    assert message in str(error.value)


def test_a_log_probability_that_is_not_a_number_is_no_damage_and_pads_after_the_last_step_have_no_event():
    row = damaged(logprob=[-0.5, -2.0, math.nan, 0.0, -0.75, -1.0])
    row["canvas_logprobs"][0] = math.nan
    row["canvas_ids"][3], row["canvas_step_map"][3] = 7, 5
    assert Rollout.from_dict(row).events.step == [1, 1, 2, 2, 3, 3]
