"""The joint law of emitted sequences, enumerated exactly on tiny vocabularies through the functions that the decoder calls."""

import itertools

import numpy as np
import pytest

from tdraft.models.decoding.verification import residual, verify_greedy_drafts, verify_sampled_drafts


class TinyModels:
    """Context-dependent distributions p and q over V tokens, drawn once a context."""

    def __init__(self, vocabulary: int, seed: int):
        self.vocabulary, self.rng, self.known = vocabulary, np.random.default_rng(seed), {}

    def __call__(self, context: tuple) -> tuple[np.ndarray, np.ndarray]:
        if context not in self.known:
            p, q = self.rng.dirichlet(np.full(self.vocabulary, 0.6)), self.rng.dirichlet(np.full(self.vocabulary, 0.6))
            self.known[context] = (p, q)
        return self.known[context]


def cells(cuts):
    """Midpoint and length of each interval that the cuts leave of [0, 1]."""
    edges = np.unique(np.clip(np.concatenate([[0.0, 1.0], cuts]), 0.0, 1.0))
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(edges)]


def rounds(models, prefix, depth, stop, greedy):
    """Every outcome of one round after `prefix`: (probability, tokens), by enumerating drafts and cells of the uniforms."""

    def drafts(chosen, weight):
        if len(chosen) == depth or stop(chosen):
            yield chosen, weight
            return
        q = models(prefix + chosen)[1]
        options = [int(q.argmax())] if greedy else range(models.vocabulary)
        for token in options:
            yield from drafts((*chosen, token), weight * (1.0 if greedy else q[token]))

    for chosen, weight in drafts((), 1.0):
        if weight == 0.0:
            continue
        p = np.array([models(prefix + chosen[:i])[0] for i in range(len(chosen) + 1)])
        q = [models(prefix + chosen[:i])[1] for i in range(len(chosen))]
        if greedy:
            axes = [cells(np.cumsum(row)) for row in p]
        else:
            tests = [cells([p[i][x] / q[i][x]]) for i, x in enumerate(chosen)]
            draws = [np.cumsum(p[-1])] + [np.cumsum(residual(p[i], q[i])) for i in range(len(chosen))]
            axes = [*tests, cells(np.concatenate(draws))]
        for combination in itertools.product(*axes):
            noise = np.array([u for u, _ in combination])
            mass = weight * np.prod([length for _, length in combination])
            accepted, token = verify_greedy_drafts(p, chosen, noise) if greedy else verify_sampled_drafts(p, q, chosen, noise)
            yield mass, (*chosen[:accepted], token)


def emitted_law(models, length, depth, stop, greedy):
    law, open_texts = {}, {(): 1.0}
    while open_texts:
        following = {}
        for prefix, mass in open_texts.items():
            for weight, tokens in rounds(models, prefix, depth, stop, greedy):
                text = (prefix + tokens)[:length]
                into = law if len(text) == length else following
                into[text] = into.get(text, 0.0) + mass * weight
        open_texts = following
    return law


def target_law(models, length):
    law = {}
    for text in itertools.product(range(models.vocabulary), repeat=length):
        law[text] = np.prod([models(text[:i])[0][text[i]] for i in range(length)])
    return law


POLICIES = {
    "two tokens": lambda drafted: len(drafted) == 2,
    "never": lambda drafted: True,
    "stop after token 0": lambda drafted: len(drafted) > 0 and drafted[-1] == 0,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("vocabulary, depth", [(2, 3), (3, 2)])
def test_joint_law_of_emitted_sequences_is_the_targets(policy, greedy, vocabulary, depth):
    for seed in range(3):
        models = TinyModels(vocabulary, seed)
        law, truth = emitted_law(models, 3, depth, POLICIES[policy], greedy), target_law(models, 3)
        assert max(abs(law.get(text, 0.0) - truth[text]) for text in truth) <= 1e-12
        assert abs(sum(law.values()) - 1.0) <= 1e-12


def test_the_enumeration_sees_that_dropping_a_sampled_draft_is_lossy():
    """Discarding a drafted token after seeing it conditions the draft on its value: the law is off, as the docs say."""
    models = TinyModels(3, 0)
    p, q = models(())
    law = np.zeros(3)
    for token in range(3):
        if token == 0:
            law += q[token] * p  # dropped: a plain step
        else:
            law[token] += q[token] * min(1.0, p[token] / q[token])
            law += q[token] * max(0.0, 1.0 - p[token] / q[token]) * residual(p, q)
    assert np.abs(law - p).max() > 1e-3


def test_acceptance_probability_is_one_minus_total_variation():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    accepted = sum(q[x] * min(1.0, p[x] / q[x]) for x in range(3))
    assert accepted == pytest.approx(1 - 0.5 * np.abs(p - q).sum(), abs=1e-15)


def test_equal_distributions_never_draw_from_an_empty_residual():
    p = np.array([0.25, 0.75])
    assert np.array_equal(residual(p, p), p)
    accepted, _ = verify_sampled_drafts(np.array([p, p]), [p], [1], np.array([1.0, 0.5]))
    assert accepted == 1
