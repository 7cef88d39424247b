"""TD errors and targets: numbers that one can check in one's head, compiled and in plain Python."""

import numpy as np
import pytest

from tdraft.value import targets

Q, NEXT = np.array([1.0, 2.0]), np.array([3.0, 5.0])
TIED = np.array([4.0, 4.0, 0.0, 0.0])


def both(name: str, *args) -> float:
    """The value of a target, the same on both paths."""
    function = getattr(targets, name)
    compiled, plain = function(*args), function.py_func(*args)
    assert compiled == plain
    return compiled


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("q_learning_error", (Q, 0, 1.0, 0.5, NEXT), 1 + 0.5 * 5 - 1),
        ("q_learning_error", (Q, 0, 1.0, 0.0, NEXT), 0.0),
        ("sarsa_error", (Q, 1, 1.0, 0.5, NEXT, 0), 1 + 0.5 * 3 - 2),
        ("expected_value", (NEXT, 0.5), 0.5 * 4 + 0.5 * 5),
        ("expected_sarsa_error", (Q, 0, 1.0, 0.5, NEXT, 0.5), 1 + 0.5 * 4.5 - 1),
        ("average_reward_error", (Q, 0, 7.0, 2.0, 3.0, NEXT), 7 - 3 * 2 + 5 - 1),
        ("differential_sarsa_error", (Q, 0, 7.0, 2.0, 3.0, NEXT, 0), 7 - 3 * 2 + 3 - 1),
        ("r_learning_rate_error", (Q, 7.0, 2.0, 3.0, NEXT), 7 - 3 * 2 + 5 - 2),
        ("greedy_probability", (TIED, 0, 0.5), 0.5 / 4 + 0.5 / 2),
        ("greedy_probability", (TIED, 2, 0.5), 0.5 / 4),
        ("greedy_probability", (NEXT, 1, 0.0), 1.0),
        ("discounted_return", (1.0, 0.5, 8.0), 5.0),
        ("discounted_return", (1.0, 0.0, 8.0), 1.0),
        ("tree_backup_value", (NEXT, 0, 7.0, 0.5), 0.25 * 7 + 0.75 * 5),
        ("tree_backup_value", (NEXT, 1, 7.0, 0.5), 0.25 * 3 + 0.75 * 7),
        ("q_sigma_value", (NEXT, 0, 7.0, 1.0, 0.5), 7.0),
        ("q_sigma_value", (NEXT, 0, 7.0, 0.0, 0.5), 5.5),
        ("q_sigma_value", (NEXT, 0, 7.0, 0.5, 0.5), 6.25),
        ("controlled_q_sigma_value", (NEXT, 0, 7.0, 1.0, 2.0, 0.5), 4.5 + 2 * (7 - 3)),
        ("controlled_q_sigma_value", (NEXT, 0, 7.0, 0.0, 2.0, 0.5), 5.5),
        ("double_q_error", (Q, 0, 1.0, 0.5, NEXT, 0), 1 + 0.5 * 3 - 1),
        ("expected_other_value", (NEXT, Q, 0.5), 0.25 * 1 + 0.75 * 2),
        ("double_expected_sarsa_error", (Q, 0, 1.0, 0.5, NEXT, Q, 0.5), 1 + 0.5 * 1.75 - 1),
    ],
)
def test_by_hand(name, args, wanted):
    assert both(name, *args) == wanted


def test_the_tree_backup_of_a_value_that_is_the_tables_own_is_the_expectation():
    assert both("tree_backup_value", TIED, 1, 4.0, 0.3) == pytest.approx(both("expected_value", TIED, 0.3), abs=1e-15)
    total = sum(both("greedy_probability", TIED, a, 0.3) for a in range(4))
    assert total == pytest.approx(1.0, abs=1e-15)
