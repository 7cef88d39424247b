"""The n-gram model: hand-computed, against a slow implementation of the definition, against kenlm, and saved and drafted from."""

import gzip
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.kernels.ngram import draft
from tdraft.models.ngram import FALLBACK_DISCOUNTS, NGram, NGramError
from tdraft.models.tokenizer import ByteTokenizer

KENLM = Path(__file__).parent / "data" / "kenlm"
encode = ByteTokenizer().encode


@pytest.fixture(scope="module")
def text():
    """About 2 kB of English with many repeats."""
    words = (KENLM / "train.txt").read_text().split()[:360]
    return encode(" ".join(words))


def slow_distribution(tokens, labels, order, vocab_size, context):
    """Modified Kneser-Ney from its definition: dictionaries of tuples, a text beginning in `vocab_size`."""
    padded = [vocab_size, *tokens]
    raw = defaultdict(Counter)  # context -> label -> count
    for i, label in enumerate(labels):
        if label >= 0:
            for length in range(order):
                if length <= i + 1:
                    raw[tuple(padded[i + 1 - length : i + 1])][label] += 1
    adjusted = defaultdict(Counter)
    for c, followers in raw.items():
        if len(c) == order - 1 or (c and c[0] == vocab_size):
            adjusted[c] = followers
        if c:
            for w in followers:
                adjusted[c[1:]][w] += 1
    discounts = []
    for length in range(order):
        n = Counter(a for c, followers in adjusted.items() if len(c) == length for a in followers.values())
        if not all(n[k] for k in (1, 2, 3, 4)):
            discounts.append(FALLBACK_DISCOUNTS)
            continue
        y = n[1] / (n[1] + 2 * n[2])
        d = (0.0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        discounts.append(d if all(0 <= d[k] <= k for k in (1, 2, 3)) else FALLBACK_DISCOUNTS)
    p = np.full(vocab_size, 1 / vocab_size)
    for length in range(min(order - 1, len(context)) + 1):
        c = tuple(context[len(context) - length :])
        if c not in adjusted:
            break
        total = sum(adjusted[c].values())
        p *= sum(discounts[length][min(a, 3)] for a in adjusted[c].values()) / total
        for w, a in adjusted[c].items():
            p[w] += (a - discounts[length][min(a, 3)]) / total
    return p


def entropy(p):
    return -(p * np.log(p)).sum()


def test_bigrams_by_hand():
    # "abab" with a text's beginning ^: bigrams ^a, ab (2), ba; too few counts of counts, so D1 = 0.5, D2 = 1.
    model = NGram.fit(np.array([0, 1, 0, 1]), order=2, vocab_size=3)
    # Left neighbours: a has ^ and b, so a(a) = 2; b has a, so a(b) = 1. Held back: D2 + D1 = 1.5 of 3.
    pa, pb, pc = (2 - 1) / 3 + 0.5 / 3, (1 - 0.5) / 3 + 0.5 / 3, 0.5 / 3
    np.testing.assert_allclose(model.distribution([]), [pa, pb, pc], atol=1e-15)
    # After a: b twice, D2 = 1 held back of 2. After b: a once, D1 = 0.5 of 1.
    np.testing.assert_allclose(model.distribution([0]), [0.5 * pa, (2 - 1) / 2 + 0.5 * pb, 0.5 * pc], atol=1e-15)
    np.testing.assert_allclose(model.distribution([1]), [0.5 + 0.5 * pa, 0.5 * pb, 0.5 * pc], atol=1e-15)
    np.testing.assert_array_equal(model.distribution([2]), model.distribution([]))  # unseen: backs off with weight 1
    np.testing.assert_allclose(model.bits_per_token([0, 1]), -(math.log2(pa) + math.log2(0.5 + 0.5 * pb)) / 2, atol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_agrees_with_the_definition(text, order):
    model = NGram.fit(text, order)
    contexts = [text[:i] for i in (0, 1, 3, 700, 1500)] + [encode("xyzzy"), encode("~qe"), encode(" the "), encode("tio")]
    for context in contexts:
        expected = slow_distribution(text.tolist(), text.tolist(), order, 256, context.tolist())
        np.testing.assert_allclose(model.distribution(context), expected, rtol=1e-10, atol=0)


def test_distilled_agrees_with_the_definition(text):
    labels = np.random.default_rng(0).integers(0, 5, len(text))
    labels[text == ord("e")] = ord(" ")
    model = NGram.fit(text, 4).distill(text, labels)
    for context in (encode("the"), encode("ate"), text[:0], encode("zzz")):
        expected = slow_distribution(text.tolist(), [-1, *labels.tolist()], 4, 256, context.tolist())
        np.testing.assert_allclose(model.distribution(context), expected, rtol=1e-10, atol=0)
    assert draft(model.draft_tables(), encode("the"), 3)[0] == ord(" ")


@pytest.mark.parametrize("order", [3, 5])
def test_agrees_with_kenlm(order):
    """Every probability, and through the unknown word every back-off, of `lmplz --discount_fallback` to 1e-5 in log10."""
    lines = gzip.open(KENLM / f"model{order}.arpa.gz", "rt").read().splitlines()
    rows = [(tuple(row[1].split()), row) for row in (line.split("\t") for line in lines) if len(row) > 1]
    words = [ngram[0] for ngram, _ in rows if len(ngram) == 1 and ngram != ("<s>",)]
    ids = {word: i for i, word in enumerate(words)} | {"<s>": len(words)}
    sentences = [[*map(ids.get, line.split()), ids["</s>"]] for line in open(KENLM / "train.txt")]
    starts = np.cumsum([0, *map(len, sentences[:-1])])
    model = NGram.fit(np.concatenate(sentences), order, len(words), starts=starts)

    backoff = {ngram: float(row[2]) if len(row) > 2 else 0.0 for ngram, row in rows}
    cache = {}
    for ngram, row in rows:
        if ngram == ("<s>",):
            continue
        context = ngram[:-1]
        if context not in cache:
            cache[context] = np.log10(model.distribution([ids[w] for w in context]))
            unknown = float(rows[0][1][0]) + sum(backoff[context[i:]] for i in range(len(context)))
            assert cache[context][ids["<unk>"]] == pytest.approx(unknown, abs=1e-5), context
        assert cache[context][ids[ngram[-1]]] == pytest.approx(float(row[0]), abs=1e-5), ngram
    assert len(rows) > 20000


def test_every_distribution_sums_to_one(text):
    model = NGram.fit(text, 6)
    for i in range(0, len(text), 7):
        p = model.distribution(text[:i])
        assert abs(p.sum() - 1) < 1e-12
        assert p.min() > 0
    held_out = encode("The parser reads tokens; it never saw a zebra.")
    p = model.probabilities(held_out)
    expected = [model.distribution(held_out[:i])[held_out[i]] for i in range(len(held_out))]
    np.testing.assert_allclose(p, expected, rtol=1e-13)


@pytest.mark.parametrize("min_count", [1, 2])
def test_draft_is_the_top_of_the_longest_known_context(text, min_count):
    model = NGram.fit(text, 6)
    tables = model.draft_tables(min_count)
    data = bytes(text.tolist())
    queries = [text[:i] for i in range(0, 400, 3)] + [encode(w) for w in ("", "~", "the", "a sta~", "q the", "xxxx ")]
    for context in queries:
        token, probability, spread, matched, count = draft(tables, context, len(context))
        assert matched <= min(5, len(context))
        known = context[len(context) - matched :]
        p = model.distribution(known)
        assert token == p.argmax()
        assert probability == p.max()
        assert spread == pytest.approx(entropy(p), abs=1e-12)
        positions = [i for i in range(len(data)) if data[:i].endswith(bytes(known.tolist()))]
        assert count == len(positions)
        if min_count == 1:
            np.testing.assert_array_equal(p, model.distribution(context))
        else:
            assert count >= 2
    assert len(model.draft_tables(2).top) < len(model.draft_tables().top)


def test_draft_reads_only_up_to_length(text):
    tables = NGram.fit(text, 5).draft_tables()
    buffer = np.concatenate([text[:50], encode("~~~~")])
    assert draft(tables, buffer, 50) == draft(tables, text[:50], 50)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5).flatmap(lambda v: st.tuples(st.just(v), st.lists(st.integers(0, v - 1), min_size=1, max_size=40))),
    st.integers(1, 5),
    st.lists(st.integers(0, 5), max_size=6),
)
def test_any_small_text(sample, order, context):
    vocab_size, tokens = sample
    context = [min(t, vocab_size - 1) for t in context]
    model = NGram.fit(np.array(tokens), order, vocab_size)
    p = model.distribution(np.array(context, np.int64))
    np.testing.assert_allclose(p, slow_distribution(tokens, tokens, order, vocab_size, context), rtol=1e-10)
    assert abs(p.sum() - 1) < 1e-12
    token, probability, spread, _, _ = draft(model.draft_tables(), np.array(context, np.int64), len(context))
    assert p[token] == probability == p.max()
    assert spread == pytest.approx(entropy(p), abs=1e-9)


def test_save_and_load(text, tmp_path):
    model = NGram.fit(text, 5)
    model.save(tmp_path / "model.npz")
    again = NGram.load(tmp_path / "model.npz")
    assert again.fingerprint == model.fingerprint != NGram.fit(text, 4).fingerprint
    np.testing.assert_array_equal(again.probabilities(text), model.probabilities(text))
    for a, b in zip(again.draft_tables(), model.draft_tables()):
        np.testing.assert_array_equal(a, b)


def test_damaged_files_are_refused(text, tmp_path):
    path = tmp_path / "model.npz"
    NGram.fit(text, 3).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(NGramError, match="not a whole n-gram model"):
            NGram.load(path)
    for place in range(40, len(whole), 211):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            again = NGram.load(path)
        except NGramError as error:
            assert "\n" not in str(error)
        else:  # a byte of the archive's own bookkeeping
            assert again.fingerprint == NGram.fit(text, 3).fingerprint
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(NGramError, match="not a whole n-gram model"):
        NGram.load(path)
    with pytest.raises(NGramError, match="does not exist"):
        NGram.load(tmp_path / "none.npz")


def test_inconsistent_tables_are_refused(text, tmp_path):
    path = tmp_path / "model.npz"
    NGram.fit(text, 3).save(path)
    good = dict(np.load(path))
    wrong = {
        "parents": lambda a: a[::-1],
        "tokens": lambda a: a + 300,
        "entry_sizes": lambda a: a[:-1],
        "entry_tokens": lambda a: a[::-1],
        "raw": lambda a: a * 0,
        "tdraft_ngram": lambda a: a + 1,
    }
    for name, change in wrong.items():
        np.savez(path, **(good | {name: change(good[name].astype(np.int64))}))
        with pytest.raises(NGramError, match=r"damaged|schema"):
            NGram.load(path)


def test_a_failed_save_keeps_the_old_file(text, tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    model = NGram.fit(text, 3)
    model.save(path)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert NGram.load(path).fingerprint == model.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NGram.fit(np.array([], np.int64)), "at least one token"),
        (lambda: NGram.fit(np.array([0, 256])), r"0\.\.255, got 256"),
        (lambda: NGram.fit(np.array([-1])), r"0\.\.255, got -1"),
        (lambda: NGram.fit(np.array([0.5])), "integers"),
        (lambda: NGram.fit(np.array([[1]])), "one-dimensional"),
        (lambda: NGram.fit(np.array([1]), order=0), "order must be in"),
        (lambda: NGram.fit(np.array([1])).distribution(np.array([999])), "context must be in"),
        (lambda: NGram.fit(np.array([1])).distill(np.array([1, 2]), np.array([1])), "one label for each of the 2"),
        (lambda: NGram.fit(np.array([1])).bits_per_token(np.array([], np.int64)), "at least one"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(NGramError, match=message):
        call()
