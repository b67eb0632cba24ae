"""Which tasks an RL step draws."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from train.algorithm.mixture import drawn


class Curriculum:
    """Draws tasks by number. A draw is a function of seed, step and the accuracies recorded so far.

    chance: of a task whose last group had an accuracy outside `band`, against 1 of the others; 1 = no difference, every
    task once a pass over the data. sets: (number of tasks, weight) of the data sets that `ids` are of, one after the
    other, which are drawn from in proportion to their weights; none: they are one.
    """

    def __init__(
        self,
        ids: Sequence[str],
        seed: int,
        chance: float,
        band: tuple[float, float],
        sets: Sequence[tuple[int, float]] = (),
    ):
        self.ids, self.seed, self.chance, self.band = ids, seed, chance, band
        sizes, self.weights = zip(*(sets or [(len(ids), 1.0)]), strict=True)
        ends = np.cumsum(sizes).tolist()
        self.sets = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.accuracy: dict[str, float] = {}

    def draw(self, step: int, count: int) -> list[int]:
        """`count` numbers for step `step` (from 1); repeated only where what a set is to give exceeds its tasks."""
        places = drawn(self.weights, (step - 1) * count, count)
        of_set = [
            iter(self._draw(which, [place for each, place in places if each == which], step))
            for which in range(len(self.sets))
        ]
        return [next(of_set[which]) for which, _ in places]

    def _draw(self, which: int, places: Sequence[int], step: int) -> list[int]:
        """Numbers of the tasks of set `which` at these places of its own row."""
        tasks, seed = self.sets[which], [self.seed, *([which] if len(self.sets) > 1 else [])]
        total = len(tasks)
        if self.chance == 1.0:
            orders = {p: np.random.default_rng([*seed, p]).permutation(total) for p in {i // total for i in places}}
            return [tasks[int(orders[place // total][place % total])] for place in places]
        rng = np.random.default_rng([*seed, step])
        found: list[int] = []
        while len(found) < len(places):
            found += self._ordered(rng, tasks)[: len(places) - len(found)]
        return found

    def refill(self, step: int, draw: int, count: int, taken: Collection[str]) -> list[int]:
        """Up to `count` further numbers for step `step`, of tasks that it has not taken; draw: the how-manieth, from
        1."""
        order = self._ordered(np.random.default_rng([self.seed, step, draw]), *self.sets)
        return [i for i in order if self.ids[i] not in taken][:count]

    def _ordered(self, rng: np.random.Generator, *sets: range) -> list[int]:
        """All numbers of these sets, as they come when they are drawn without replacement in proportion to their
        chances: by the smallest of exponential waiting times."""
        numbers = np.concatenate([np.asarray(each) for each in sets])
        chances = np.array([self._chance(self.ids[i]) for i in numbers])
        if len(sets) > 1:
            chances *= np.repeat(self._weight_of_a_task(), [len(each) for each in sets])
        order: list[int] = numbers[np.argsort(rng.exponential(size=len(numbers)) / chances)].tolist()
        return order

    def _weight_of_a_task(self) -> list[float]:
        """Of each set, what one of its tasks weighs."""
        return [weight / len(tasks) for weight, tasks in zip(self.weights, self.sets, strict=True)]

    def record(self, ids: Iterable[str], rewards: Sequence[float | None], group_size: int) -> None:
        """The mean reward of each task's group (prompt-major rewards; None is left out)."""
        for i, name in enumerate(ids):
            given = [r for r in rewards[i * group_size : (i + 1) * group_size] if r is not None]
            if given:
                self.accuracy[name] = float(np.mean(given))

    def state_dict(self) -> dict[str, float]:
        return dict(self.accuracy)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.accuracy = dict(state)

    def _chance(self, name: str) -> float:
        low, high = self.band
        return 1.0 if low <= self.accuracy.get(name, low) <= high else self.chance
