"""Token verification: which drafts the target accepts, and what it emits after them.

Leviathan et al. 2023 (arXiv 2211.17192): a draft x ~ q is accepted with probability min(1, p(x) / q(x)); at the first rejection
the token is drawn from norm(max(p - q, 0)), after the last acceptance from p. A greedy draft is the case of a one-hot q. All
functions take the distributions *after* temperature, top-k and top-p.
"""

from collections.abc import Sequence

import numpy as np

from .sampling import sample


def choose(p: np.ndarray, u: float) -> int:
    """The token at the uniform u of the distribution (V,): inverse transform sampling."""
    return int(sample(p, u))


def verify_greedy_drafts(p: np.ndarray, drafts: Sequence[int], noise: np.ndarray) -> tuple[int, int]:
    """Accept a draft iff it is the token that the target draws at that position from the position's own noise.

    That happens with probability p(x), the rule for one-hot drafts, and whatever is emitted is what plain decoding with the same
    noise emits.

    :param p: (k + 1, V) target distributions
    :param drafts: (k,) tokens
    :param noise: (k + 1,) uniforms, one a position
    :return: (accepted, next token)
    """
    for i, draft in enumerate(drafts):
        token = choose(p[i], noise[i])
        if token != draft:
            return i, token
    return len(drafts), choose(p[-1], noise[-1])


def verify_tree(
    p: np.ndarray, tokens: Sequence[int] | np.ndarray, parents: Sequence[int] | np.ndarray, noise: np.ndarray
) -> tuple[list[int], int]:
    """Accept the longest path of a tree of drafts that is what the target draws from the positions' own noise.

    Whatever the tree, the target's token after each text is settled by p and the position's noise, so that what is emitted is
    what plain decoding with the same noise emits.

    :param p: (M + 1, V) target distributions, p[0] after the text, p[i + 1] after node i
    :param tokens: (M,) tokens
    :param parents: (M,) the node that each one follows, parents[i] < i; -1 for the text
    :param noise: (D + 1,) uniforms, one a position; D is the depth of the tree
    :return: (nodes of the path, next token)
    """
    paths: dict[int, list[int]] = {-1: []}
    choices = {-1: choose(p[0], noise[0])}
    for node, (token, parent) in enumerate(zip(tokens, parents)):
        if choices.get(int(parent)) == token:
            paths[node] = [*paths[int(parent)], node]
            choices[node] = choose(p[node + 1], noise[len(paths[node])])
    last = max(paths, key=lambda node: len(paths[node]))
    return paths[last], choices[last]


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """norm(max(p - q, 0)), (V,); p itself where p = q and nothing is left, a case that is never drawn from."""
    excess = np.maximum(p - q, 0.0)
    total = excess.sum()
    return excess / total if total > 0.0 else p


def verify_sampled_drafts(p: np.ndarray, q: Sequence[np.ndarray], drafts: Sequence[int], noise: np.ndarray) -> tuple[int, int]:
    """The rule above for drafts sampled from q.

    :param p: (k + 1, V) target distributions
    :param q: (>= k, V) drafter's distributions
    :param drafts: (k,) tokens
    :param noise: (k + 1,) independent uniforms: a test for each draft, then one draw
    :return: (accepted, next token)
    """
    for i, draft in enumerate(drafts):
        if noise[i] * q[i][draft] > p[i][draft]:
            return i, choose(residual(p[i], q[i]), noise[-1])
    return len(drafts), choose(p[len(drafts)], noise[-1])
