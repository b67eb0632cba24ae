"""Which tasks an RL step draws."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np


class Curriculum:
    """Draws tasks by number. A draw is a function of seed, step and the accuracies recorded so far.

    chance: of a task whose last group had an accuracy outside `band`, against 1 of the others; 1 = no difference, every
    task once a pass over the data.
    """

    def __init__(self, ids: Sequence[str], seed: int, chance: float, band: tuple[float, float]):
        self.ids, self.seed, self.chance, self.band = ids, seed, chance, band
        self.accuracy: dict[str, float] = {}

    def draw(self, step: int, count: int) -> list[int]:
        """`count` numbers for step `step` (from 1); repeated only where count exceeds the tasks."""
        total = len(self.ids)
        if self.chance == 1.0:
            places = range((step - 1) * count, step * count)
            orders = {p: np.random.default_rng([self.seed, p]).permutation(total) for p in {i // total for i in places}}
            return [int(orders[place // total][place % total]) for place in places]
        rng = np.random.default_rng([self.seed, step])
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += self._ordered(rng)[: count - len(drawn)]
        return drawn

    def refill(self, step: int, draw: int, count: int, taken: Collection[str]) -> list[int]:
        """Up to `count` further numbers for step `step`, of tasks that it has not taken; draw: the how-manieth, from
        1."""
        order = self._ordered(np.random.default_rng([self.seed, step, draw]))
        return [i for i in order if self.ids[i] not in taken][:count]

    def _ordered(self, rng: np.random.Generator) -> list[int]:
        """All numbers, as they come when they are drawn without replacement in proportion to their chances: by the
        smallest of exponential waiting times."""
        chances = np.array([self._chance(name) for name in self.ids])
        order: list[int] = np.argsort(rng.exponential(size=len(self.ids)) / chances).tolist()
        return order

    def record(self, ids: Sequence[str], rewards: Sequence[float | None], group_size: int) -> None:
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
