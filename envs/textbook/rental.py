"""Jack's car rental (Sutton & Barto, ex 4.2 and exercise 4.7), a continuing task."""

from math import exp

import numpy as np

from tdraft.envs.compiled import Table

from .base import TableEnv, one_hot


def poisson(mean: float, n: int) -> np.ndarray:
    """(n,) probabilities of 0 to n - 1 events."""
    law = np.empty(n)
    law[0] = exp(-mean)
    for k in range(1, n):
        law[k] = law[k - 1] * mean / k
    return law


def day(requests: float, returns: float, cars: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One location's day, for each number of cars in the morning, 0 to n - 1.

    :param requests, returns: Poisson means
    :param cars: most that stay overnight; more are taken away
    :return: (n, cars + 1) law of the cars in the evening, (n,) expected rentals
    """
    asked, returned = poisson(requests, n), poisson(returns, cars + 1)
    law, rented = np.zeros((n, cars + 1)), np.zeros(n)
    for morning in range(n):
        rentals = asked[: morning + 1].copy()
        rentals[morning] = 1 - asked[:morning].sum()  # more requests than cars: all are rented
        rented[morning] = rentals @ np.arange(morning + 1)
        for k, p in enumerate(rentals):
            room = cars - (morning - k)
            if room < 0:
                law[morning, cars] += p
                continue
            law[morning, morning - k : cars] += p * returned[:room]
            law[morning, cars] += p * (1 - returned[:room].sum())
    return law, rented


class JacksCarRental(TableEnv):
    """Two locations; cars are moved between them overnight. gamma is .9 in the book.

    State = cars at the first * (cars + 1) + cars at the second, in the evening. Action a moves a - max_moves cars from the first
    to the second (a negative number: back), as many as there are. The reward of a day is what is earned on average, less the
    cost of moving; cars beyond `cars` at a location are gone.

    :param cars: most cars at a location
    :param max_moves: most cars moved in a night
    :param requests, returns: Poisson means of both locations
    :param credit: earned for a car rented, `move_cost` paid for one moved
    :param free_moves: cars that an employee takes to the second location for nothing (exercise 4.7: 1)
    :param parking: cost at a location with more than `lot` cars overnight (exercise 4.7: 4 and 10)
    """

    def __init__(
        self,
        cars: int = 20,
        *,
        max_moves: int = 5,
        requests: tuple[float, float] = (3.0, 4.0),
        returns: tuple[float, float] = (3.0, 2.0),
        credit: float = 10.0,
        move_cost: float = 2.0,
        free_moves: int = 0,
        parking: float = 0.0,
        lot: int = 10,
        render_mode: str | None = None,
    ):
        if cars < 1 or max_moves < 0:
            raise ValueError(f"expected cars >= 1 and max_moves >= 0, got {cars} and {max_moves}")
        side, n_actions = cars + 1, 2 * max_moves + 1
        days = [day(asked, back, cars, cars + 1) for asked, back in zip(requests, returns)]
        law, reward = np.zeros((side, side, n_actions, side * side)), np.zeros((side, side, n_actions))
        for i in range(side):
            for j in range(side):
                for a in range(n_actions):
                    moved = min(max(a - max_moves, -j), i)  # as `moved` says
                    first, second = min(i - moved, cars), min(j + moved, cars)
                    law[i, j, a] = np.outer(days[0][0][first], days[1][0][second]).ravel()
                    paid = abs(moved) - min(max(moved, 0), free_moves)
                    parked = parking * ((first > lot) + (second > lot))
                    reward[i, j, a] = credit * (days[0][1][first] + days[1][1][second]) - move_cost * paid - parked
        shape = (side * side, n_actions, side * side)
        table = Table(
            np.cumsum(law.reshape(shape), axis=2),
            np.broadcast_to(np.arange(side * side), shape).copy(),
            np.repeat(reward.reshape(shape[:2])[:, :, None], side * side, axis=2),
            np.zeros(shape, bool),
            np.cumsum(one_hot(side * side, (side * side - 1) // 2)),
        )
        self.cars, self.max_moves = cars, max_moves
        super().__init__(table, one_hot(side * side, (side * side - 1) // 2), render_mode=render_mode)

    def moved(self, state: int, action: int) -> int:
        """Cars that really go from the first location to the second: no more than there are."""
        first, second = divmod(state, self.cars + 1)
        return min(max(action - self.max_moves, -second), first)
