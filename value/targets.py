"""Temporal-difference errors: pure functions of numbers and arrays, which the compiled training loops call.

Notation as in rlax: `_tm1` is the time before the transition and `_t` the time after it. A `discount_t` is gamma, or 0 where the
episode terminated. Each function runs in Python and inside Numba loops; `.py_func` is the plain Python body.
"""

from tdraft.kernels.jit import lean


@lean
def largest(q_t):
    """The largest entry of q_t (A,)."""
    best = q_t[0]
    for a in range(1, len(q_t)):
        best = max(best, q_t[a])
    return best


@lean
def q_learning_error(q_tm1, a_tm1, r_t, discount_t, q_t):
    """Q-learning TD error: r + discount * max_a q'(a) - q(a_tm1)   (Watkins 1989; Sutton & Barto eq. 6.8).

    :param q_tm1: (A,) action values at the previous state
    :param a_tm1: action taken there
    :param r_t: reward
    :param discount_t: gamma, or 0 where the episode terminated
    :param q_t: (A,) action values at the new state
    :return: the error, same unit as the reward
    """
    return r_t + discount_t * largest(q_t) - q_tm1[a_tm1]


@lean
def sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, a_t):
    """Sarsa TD error: r + discount * q'(a_t) - q(a_tm1)   (Rummery & Niranjan 1994; Sutton & Barto eq. 6.7).

    :param a_t: action that will be taken at the new state; the rest as in `q_learning_error`
    """
    return r_t + discount_t * q_t[a_t] - q_tm1[a_tm1]


@lean
def expected_value(q_t, epsilon):
    """Mean of q_t (A,) under its own epsilon-greedy policy; how ties are broken is no matter, as tied values are equal."""
    total = 0.0
    for a in range(len(q_t)):
        total += q_t[a]
    return epsilon * total / len(q_t) + (1.0 - epsilon) * largest(q_t)


@lean
def expected_sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, epsilon):
    """Expected Sarsa TD error: r + discount * sum_a pi(a) q'(a) - q(a_tm1), pi epsilon-greedy   (Sutton & Barto eq. 6.9).

    :param epsilon: of the policy that acts, in [0, 1]; the rest as in `q_learning_error`
    """
    return r_t + discount_t * expected_value(q_t, epsilon) - q_tm1[a_tm1]


@lean
def average_reward_error(q_tm1, a_tm1, r_t, duration_t, rho, q_t):
    """Semi-Markov average-reward TD error: r - rho * duration + max_a q'(a) - q(a_tm1).

    With all durations 1 it is differential Q-learning's (Wan, Naik & Sutton 2021, eq. 5); with them it is that of SMART (Das et
    al. 1999). The same error, times a step size, updates rho.

    :param duration_t: sojourn time of the transition
    :param rho: estimate of the reward per unit of time
    """
    return r_t - rho * duration_t + largest(q_t) - q_tm1[a_tm1]
