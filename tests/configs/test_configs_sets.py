"""Keys that name several data sets."""

import pytest

from configs.sets import besides_places, named_sets, shares

KEY = "dataset.train_dataset"


def test_a_set_is_called_by_its_file_and_two_of_one_name_by_number():
    given = [
        "a/x.json",
        {"name": "b/x.json", "weight": 2, "columns": {"question": "q"}},
        "hub:me/gsm8k/main:train",
        "all",
    ]
    sets = named_sets(KEY, given, "math", taken=("all",))
    assert [each.label for each in sets] == ["x-1", "x-2", "train", "all-set"]
    assert sets[1].weight == 2.0 and sets[1].columns == {"question": "q"} and sets[1].data_type == "math"
    assert [each.label for each in named_sets(KEY, "a/x.json", "math")] == [""] and named_sets(KEY, "", "math") == []


def test_no_number_makes_two_labels_the_same():
    def labels(*given, taken=()):
        return [each.label for each in named_sets(KEY, list(given), "math", taken)]

    assert labels("x/a.json", "y/a.json", "z/a-1.json") == ["a-2", "a-3", "a-1"]
    assert labels("x/all.json", "y/all-set.json", taken=("all",)) == ["all-set-1", "all-set-2"]


def test_without_weights_a_set_counts_by_its_size_and_a_weight_is_for_all_or_none():
    plain = named_sets(KEY, ["x", "y"], "math")
    assert shares(KEY, plain, [3, 5]) == [3.0, 5.0]
    assert shares(KEY, named_sets(KEY, [{"name": "x", "weight": 1}, {"name": "y", "weight": 4}], "math"), [3, 5]) == [
        1,
        4,
    ]
    with pytest.raises(ValueError, match=r"dataset\.train_dataset: y has no weight and others have one"):
        shares(KEY, named_sets(KEY, [{"name": "x", "weight": 1}, "y"], "math"), [3, 5])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "x", "weight": 0}, "weight 0 of x; it must be a number above 0"),
        ({"name": "x", "weight": True}, "weight True of x"),
        ({"name": "x", "data_type": "maths"}, "data_type 'maths' of x; choose from math"),
        ({"name": "x", "reward": ["a.py:f", "b.py:g"]}, r"reward \['a.py:f', 'b.py:g'\] of x; it must be one function"),
        ({"name": "x", "data_type": ["math"]}, r"data_type \['math'\] of x; choose from math"),
        ({"name": "x", "data_type": {"a": 1}}, r"data_type \{'a': 1\} of x; choose from math"),
        ({"name": "x", "columns": ["question"]}, r"columns \['question'\] of x; it must be a mapping"),
    ],
)
def test_what_a_set_cannot_have_is_named_with_its_key(entry, problem):
    with pytest.raises(ValueError, match=f"{KEY}: {problem}"):
        named_sets(KEY, [entry, "y"], "math")


def test_a_file_stands_once_in_a_list_unless_it_is_read_or_graded_otherwise():
    for again in ("x.json", "./x.json", "a/../x.json", {"name": "x.json", "weight": 2}):
        with pytest.raises(ValueError, match=f"{KEY}: .*x.json stands twice in the list: name it once"):
            named_sets(KEY, ["x.json", "y.json", again], "math")
    others = [{"name": "x.json", "data_type": "code"}, {"name": "x.json", "columns": {"question": "q"}}]
    others.append({"name": "x.json", "reward": "a.py:f"})
    assert len({each.label for each in named_sets(KEY, ["x.json", *others], "math")}) == 4


def test_sets_that_have_moved_say_the_same_and_other_weights_do_not():
    shots = [["s.json", {"question": "q", "answer": answer}] for answer in "ab"]
    assert besides_places(shots[0]) != besides_places(shots[1])
    moved = besides_places(["/a/x.json", {"name": "y", "weight": 1}])
    assert moved == besides_places(["/b/x.json", {"name": "/c/y", "weight": 1}]) != besides_places(["/a/x.json", "y"])
