"""Blackjack with its exact transition table (Sutton & Barto, ex 5.1): an infinite deck, and a dealer who sticks at 17."""

from functools import lru_cache

import numpy as np

from .base import TableEnv, merge

CARDS = tuple((card, 4 / 13 if card == 10 else 1 / 13) for card in range(1, 11))  # value and probability; an ace is 1
OVER, NATURAL = 200, 201  # the end; natural with dealer's card d is NATURAL + d - 1


def state_number(total: int, dealer: int, usable: bool) -> int:
    """The state of player's sum 12..21, dealer's card 1..10 (ace is 1), and whether an ace counts 11."""
    return ((total - 12) * 10 + dealer - 1) * 2 + usable


def add(total: int, usable: bool, card: int) -> tuple[int, bool]:
    """A hand with one more card: its sum, an ace counted as 11 where that does not bust, and whether one is."""
    total, usable = total + card, usable
    if card == 1 and total + 10 <= 21:
        total, usable = total + 10, True
    if total > 21 and usable:
        total, usable = total - 10, False
    return total, usable


@lru_cache
def dealer_law(total: int, usable: bool) -> dict[int, float]:
    """Probabilities of the dealer's final sum, 17 to 21, or 22 for bust."""
    if total >= 17:
        return {min(total, 22): 1.0}
    law: dict[int, float] = {}
    for card, p in CARDS:
        for final, q in dealer_law(*add(total, usable, card)).items():
            law[final] = law.get(final, 0.0) + p * q
    return law


def stick(total: int, dealer: int) -> list[tuple[float, int, float, bool]]:
    """Outcomes of sticking with `total`."""
    law = dealer_law(*add(0, False, dealer))
    return merge([(p, OVER, 1.0 if final == 22 else float(np.sign(total - final)), True) for final, p in law.items()])


def hit(total: int, dealer: int, usable: bool) -> list[tuple[float, int, float, bool]]:
    """Outcomes of one more card."""
    reached = [(p, *add(total, usable, card)) for card, p in CARDS]
    return merge([(p, OVER, -1.0, True) if t > 21 else (p, state_number(t, dealer, u), 0.0, False) for p, t, u in reached])


def natural(dealer: int) -> list[tuple[float, int, float, bool]]:
    """An ace and a ten at once: won, unless the dealer has that too."""
    draw = {1: 4 / 13, 10: 1 / 13}.get(dealer, 0.0)
    return merge([(1 - draw, OVER, 1.0, True), (draw, OVER, 0.0, True)])


def first_hands(naturals: bool) -> np.ndarray:
    """(211,) law of the first state where a decision is to be made: below 12 the player takes cards in any case."""
    law: dict[tuple[int, bool], float] = {}

    def deal(total: int, usable: bool, probability: float, cards: int) -> None:
        if cards >= 2 and total >= 12:
            key = (22, True) if naturals and cards == 2 and total == 21 else (total, usable)
            law[key] = law.get(key, 0.0) + probability
            return
        for card, p in CARDS:
            deal(*add(total, usable, card), probability * p, cards + 1)

    deal(0, False, 1.0, 0)
    start = np.zeros(NATURAL + 10)
    for (total, usable), probability in law.items():
        for dealer, p in CARDS:
            start[NATURAL + dealer - 1 if total == 22 else state_number(total, dealer, usable)] += probability * p
    return start


class Blackjack(TableEnv):
    """Blackjack. Actions: 0 stick, 1 hit. Rewards: 1 won, 0 drawn, -1 lost.

    States 0 to 199 are (player's sum 12..21, dealer's card, usable ace) as `number` counts them, 200 is the end, 201 to 210 are
    naturals by the dealer's card: the game is decided, both actions show who has won. Below 12 the player is dealt on.

    :param naturals: whether a natural wins against a dealer's 21 that is none, as in the book; otherwise it is an ordinary 21
    """

    number = staticmethod(state_number)

    def __init__(self, *, naturals: bool = True, render_mode: str | None = None):
        transitions = {
            state_number(total, dealer, usable): {0: stick(total, dealer), 1: hit(total, dealer, usable)}
            for total in range(12, 22)
            for dealer in range(1, 11)
            for usable in (False, True)
        }
        transitions[OVER] = {a: [(1.0, OVER, 0.0, True)] for a in (0, 1)}
        transitions |= {NATURAL + d - 1: {a: natural(d) for a in (0, 1)} for d in range(1, 11)}
        super().__init__(transitions, first_hands(naturals), render_mode=render_mode)

    def render(self):
        """The hand and the dealer's card as text."""
        if self.render_mode != "ansi":
            return None
        if self._obs is None or self._obs == OVER:
            return "over\n"
        if self._obs >= NATURAL:
            return f"natural, dealer {self._obs - NATURAL + 1}\n"
        hand, usable = divmod(int(self._obs), 2)
        return f"{hand // 10 + 12}{' with an ace' if usable else ''}, dealer {hand % 10 + 1}\n"
