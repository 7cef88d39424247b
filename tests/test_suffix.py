"""Suffix array and suffix automaton against counting by hand, the unbounded model, and drafters that look back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.kernels import suffix
from tdraft.kernels.suffix_array import longest, suffix_array
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import DrafterError
from tdraft.models.decoding.lookup_drafters import PromptLookupDrafter, SuffixDrafter
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGramError
from tdraft.models.ngrams.unbounded import UnboundedModel

V = 4
texts = st.lists(st.integers(0, V - 1), min_size=1, max_size=40)
contexts = st.lists(st.integers(0, V - 1), max_size=12)


def after(text, context, n):
    """What followed each place where the last n tokens of a context stand."""
    end = context[len(context) - n :]
    return [text[i + n] for i in range(len(text) - n) if text[i : i + n] == end]


def slow_p(text, context, w):
    """The unbounded model's formula, by looking through the text."""
    p, rows = 1 / V, []
    for n in range(len(context) + 1):
        end = context[len(context) - n :]
        places = sum(text[i : i + n] == end for i in range(len(text) - n + 1))
        if after(text, context, n):
            rows.append((places, after(text, context, n)))
    for k, (places, followers) in enumerate(rows):
        if k + 1 == len(rows) or rows[k + 1][0] != places:
            t = len(set(followers))
            p = (followers.count(w) + t * p) / (len(followers) + t)
    return p


@settings(max_examples=100, deadline=None)
@given(texts)
def test_suffix_array_is_sorted(text):
    assert suffix_array(np.array(text)).tolist() == sorted(range(len(text)), key=lambda i: text[i:])


def test_suffix_array_of_long_repeats():
    rng = np.random.default_rng(0)
    part = rng.integers(0, 90_000, 700)
    text = np.concatenate([part, part, part[:300], np.zeros(500, np.int64), part])
    listed = text.tolist()
    expected = sorted(range(len(text)), key=lambda i: listed[i:])
    np.testing.assert_array_equal(suffix_array(text), expected)


@settings(max_examples=60, deadline=None)
@given(texts, contexts)
def test_unbounded_model(text, context):
    model = UnboundedModel(np.array(text), V)
    for n in range(len(context) + 1):
        assert model.count(np.array(context[:n], np.int64)) == sum(
            text[i : i + n] == context[:n] for i in range(len(text) - n + (n > 0))
        )
    p = model.distribution(np.array(context, np.int64))
    np.testing.assert_allclose(p, [slow_p(text, context, w) for w in range(V)], rtol=1e-12)
    assert abs(p.sum() - 1) < 1e-12
    known = max(n for n in range(len(context) + 1) if n == 0 or after(text, context, n))
    assert longest(model.tokens, model.places, np.array(context, np.int64), len(context), len(context)) == known
    relative = np.bincount(after(text, context, known), minlength=V) / len(after(text, context, known))
    np.testing.assert_allclose(model.distribution(np.array(context, np.int64), smooth=False), relative)
    if context:
        p, length = model.probabilities(np.array(context))
        np.testing.assert_allclose(p, [slow_p(text, context[:i], w) for i, w in enumerate(context)], rtol=1e-12)
        assert length[0] == 0 and (np.diff(length) <= 1).all()


@settings(max_examples=100, deadline=None)
@given(texts, contexts)
def test_automaton_finds_the_longest_end_and_what_followed(text, context):
    automaton = suffix.empty(len(text))
    suffix.extend(automaton, np.array(text))
    assert automaton.size[0] <= max(2, 2 * len(text)) and automaton.size[1] <= 3 * len(text)
    state, length = 0, 0
    for i, token in enumerate(context):
        state, length = suffix.advance(automaton, state, length, token)
        ends = [n for n in range(i + 2) if any(text[j : j + n] == context[i + 1 - n : i + 1] for j in range(len(text)))]
        assert length == max(ends)
    weights = np.empty(V)
    token, most, places, distinct, length = suffix.followers(automaton, state, length, weights)
    followers = after(text, context, length)
    assert length == max(n for n in range(len(context) + 1) if n == 0 or after(text, context, n))
    assert (places, distinct) == (len(followers), len(set(followers)))
    np.testing.assert_array_equal(weights, np.bincount(followers, minlength=V))
    ties = [w for w in set(followers) if followers.count(w) == followers.count(token)]
    assert most == followers.count(token) == max(map(followers.count, followers))
    assert token == max(ties, key=lambda w: len(followers) - followers[::-1].index(w))  # of several, the last one


def test_prompt_lookup_copies_the_most_recent_place():
    text = np.array([1, 2, 3, 9, 1, 2, 4, 9, 2, 4, 5, 1, 2])
    assert suffix.lookup(text, len(text), 10) == (4, 2, 2, 1)  # "1 2" stood twice: 3 followed, then 4
    assert suffix.lookup(text, len(text), 1) == (4, 1, 3, 2)  # "2" three times: 3, 4, 4
    assert suffix.lookup(text, 3, 10)[0] == -1
    drafter = PromptLookupDrafter(vocab_size=10)
    drafter.begin(text)
    assert drafter.distribution().tolist() == np.eye(10)[4].tolist()
    proposals = [drafter.propose() for _ in range(4)]
    assert [p.token for p in proposals] == [4, 9, 2, 4]
    assert [p.order for p in proposals] == [2, 3, 4, 5] and proposals[0].confidence == 1 / 3
    drafter.extend([5])
    assert drafter.propose().token == 1


def test_suffix_drafter_takes_the_longer_match():
    corpus = np.array([7, 1, 2, 8, 8, 7, 1, 2, 8])
    drafter = SuffixDrafter(corpus, vocab_size=10)
    drafter.begin(np.array([1, 2, 3, 0, 1, 2]), room=1)
    assert drafter.propose().token == 3  # two tokens match in both: the text's own
    drafter.extend([5, 7, 1, 2])  # grows past the room asked for
    first = drafter.propose()
    assert (first.token, first.order) == (8, 3)  # three tokens match in the corpus
    assert first.confidence == pytest.approx((2 + 1 / 10) / 3)
    p = drafter.distribution()
    assert abs(p.sum() - 1) < 1e-12 and p.argmax() == drafter.propose().token
    alone = SuffixDrafter(vocab_size=10)
    alone.begin(np.array([], np.int64))
    assert alone.propose().confidence == 0.1


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.8)])
@pytest.mark.parametrize("kind", ["lookup", "suffix", "suffix and corpus"])
def test_drafters_are_lossless(kind, sampling):
    model = LanguageModel(LMConfig(vocab_size=6, d_model=16, n_layers=1, n_heads=2, max_length=128), seed=1).double().eval()
    with torch.no_grad():
        model.embedding.mul_(2.0)  # and weights so large that it doesn't repeat its last token
        for weight in model.backbone.parameters():
            weight.mul_(6.0 if weight.dim() == 2 else 1.0)
    prompt = np.array([0, 3, 1, 4, 2])
    plain = SpeculativeDecoder(model, sampling=sampling).generate(prompt, 60, key=7).tokens
    drafter = {
        "lookup": PromptLookupDrafter(5, 6),
        "suffix": SuffixDrafter(vocab_size=6),
        "suffix and corpus": SuffixDrafter(np.array(plain), 6),
    }[kind]
    rng = np.random.default_rng(0)
    decoder = SpeculativeDecoder(model, drafter, lambda obs: int(rng.choice([0, 1, 1, 1, 2])), sampling=sampling, max_drafted=4)
    generation = decoder.generate(prompt, 60, key=7)
    assert generation.tokens == plain and len(set(plain)) > 2
    assert generation.account.accepted > 0


def test_errors_name_what_is_wrong():
    with pytest.raises(DrafterError, match="at least 1, got 0"):
        PromptLookupDrafter(0)
    with pytest.raises(DrafterError, match=r"0\.\.5"):
        SuffixDrafter(np.array([6]), vocab_size=6)
    with pytest.raises(NGramError, match="between 1 and"):
        UnboundedModel(np.array([], np.int64))
    with pytest.raises(NGramError, match=r"0\.\.3, got 4"):
        UnboundedModel(np.array([4]), 4)
