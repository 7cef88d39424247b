"""Smoothings against slow definitions and kenlm's own estimates; perplexity, sentence scores, plausibility."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from plausibility import changed, prose, spaced, split

from tdraft.models.corpus import default_corpus
from tdraft.models.ngram import NGram, NGramError
from tdraft.models.ngrams.backoff import BackoffModel
from tdraft.models.ngrams.counts import count_ngrams
from tdraft.models.ngrams.smoothing import smooth
from tdraft.models.ngrams.vocabulary import Vocabulary, split_words
from tdraft.models.ngrams.words import WordModel
from tdraft.scripts.main import main

KENLM = Path(__file__).parent / "data" / "kenlm"


def lines(name):
    return (KENLM / name).read_text().splitlines()


@pytest.fixture(scope="module")
def tokens():
    """Text over seven tokens with many repeats, and where its parts begin."""
    rng = np.random.default_rng(0)
    text = np.concatenate([rng.choice(7, 60, p=rng.dirichlet(np.ones(7))) for _ in range(10)])
    return text, np.arange(0, 600, 20)


def counted(tokens, starts, order, vocab_size):
    """Context -> word -> count, dictionaries of tuples; each text begins with `vocab_size`."""
    raw = defaultdict(Counter)
    for begin, end in zip(starts, [*starts[1:], len(tokens)]):
        padded = [vocab_size, *tokens[begin:end].tolist()]
        for i in range(1, len(padded)):
            for length in range(min(order - 1, i) + 1):
                raw[tuple(padded[i - length : i])][padded[i]] += 1
    return raw


def slow(raw, smoothing, w, context, vocab_size, k=1.0):
    """p(w | context), by the formulas of `smooth`."""
    if smoothing == "add-k":
        c = raw.get(context, Counter())
        return (c[w] + k) / (c.total() + k * vocab_size)
    below = slow(raw, smoothing, w, context[1:], vocab_size) if context else 1 / vocab_size
    c = raw.get(context)
    if c is None:
        return below
    if smoothing == "mle":
        return c[w] / c.total()
    if smoothing == "witten-bell":
        return (c[w] + len(c) * below) / (c.total() + len(c))
    return c[w] / c.total() if c[w] else 0.4 * below


@pytest.mark.parametrize("smoothing", ["mle", "witten-bell", "stupid", "add-k"])
@pytest.mark.parametrize("order", [1, 3, 4])
def test_agrees_with_the_definition(tokens, smoothing, order):
    text, starts = tokens
    k, vocab_size = 0.3, 9  # two words that never stand in the text
    model = BackoffModel.fit(text, order, vocab_size, starts=starts, smoothing=smoothing, k=k)
    raw = counted(text, starts, order, vocab_size)
    rng = np.random.default_rng(1)
    contexts = [rng.integers(0, vocab_size, rng.integers(0, 6)).tolist() for _ in range(40)] + [[vocab_size], [vocab_size, 2]]
    for context in contexts:
        p = model.distribution(np.array(context, np.int64))
        short = tuple(context[max(0, len(context) - order + 1) :])
        expected = [slow(raw, smoothing, w, short, vocab_size, k) for w in range(vocab_size)]
        np.testing.assert_allclose(p, expected, rtol=2e-6)
        if smoothing != "stupid":
            assert abs(p.sum() - 1) < 1e-5


def test_kneser_ney_is_the_decoders(tokens):
    text, starts = tokens
    model = BackoffModel.fit(text, 4, 7, starts=starts)
    decoder = NGram.fit(text, 4, 7, starts=starts)
    for i in range(0, 600, 13):
        np.testing.assert_allclose(model.distribution(text[:i]), decoder.distribution(text[:i]), rtol=2e-6)
    score, matched = model.score_tokens(text)
    np.testing.assert_allclose(10**score, decoder.probabilities(text), rtol=3e-6)
    assert matched.max() == 4 and matched[0] == 1
    assert model.bits_per_token(text) == pytest.approx(decoder.bits_per_token(text), rel=1e-6)


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "mle"])
def test_what_is_pruned_goes_to_the_back_off(tokens, smoothing):
    text, starts = tokens
    counts = count_ngrams(text, 4, 7, starts=starts)
    model = BackoffModel.fit(text, 4, 7, starts=starts, smoothing=smoothing, prune=(0, 1, 2))
    kept = {tuple(n) for n in _ngrams(model)}
    raw = counted(text, starts, 4, 7)
    for context, followers in raw.items():
        for w, n in followers.items():
            assert ((*context, w) in kept) == (n > (0, 1, 2, 2)[len(context)]), (context, w)
    assert smooth(counts, 4, 7, smoothing).probability.size == sum(map(len, raw.values())) > len(kept) - 1
    for i in range(0, 600, 7):
        assert abs(model.distribution(text[max(0, i - 5) : i]).sum() - 1) < 1e-5


def test_pruning_by_hand():
    # Bigrams, Witten-Bell: after a (5 times) b 4 and c once; c is left out: T = 1, own = 4 / 6, gamma = (1 + 1) / 6.
    text = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 2])
    model = BackoffModel.fit(text, 2, 3, smoothing="witten-bell", prune=(0, 1))
    a, b, c = (5 + 3 / 3) / 13, (4 + 3 / 3) / 13, (1 + 3 / 3) / 13
    np.testing.assert_allclose(model.distribution(np.array([0])), [a * 2 / 6, 4 / 6 + b * 2 / 6, c * 2 / 6], rtol=1e-6)


def _ngrams(model):
    texts = [()]
    for parent, token in zip(model.parents[1:], model.tokens[1:]):
        texts.append((int(token), *texts[parent]))
    return texts[1:]


@pytest.mark.parametrize("order", [3, 5])
def test_estimates_are_kenlms(order):
    """Every probability and back-off of the ARPA files that kenlm estimated from the same text, to one unit of float32 at 4."""
    ours, theirs = WordModel.fit(lines("train.txt"), order), WordModel.load(KENLM / f"model{order}.arpa.gz")
    tables = []
    for words in (ours, theirs):
        names = [*words.vocabulary.words, "<s>"]
        tables.append({tuple(names[t] for t in ngram): v for ngram, v in zip(_ngrams(words.model), words.model.values[1:])})
    assert tables[0].keys() == tables[1].keys() and len(tables[0]) > 24000
    difference = np.array([tables[0][ngram] - tables[1][ngram] for ngram in tables[1]])
    assert np.abs(difference).max() < 1e-6


# What kenlm 0.3.0's Python package says of heldout.txt under its own model files: 10 ** (-sum of full_scores / words), with and
# without the words that it calls unknown.
KENLM_PERPLEXITY = {3: (338.55405977, 173.61263739), 5: (332.82013976, 171.14013696)}


@pytest.mark.parametrize("order", [3, 5])
def test_perplexity_is_kenlms(order):
    for model in (WordModel.fit(lines("train.txt"), order), WordModel.load(KENLM / f"model{order}.arpa.gz")):
        found = model.perplexity(lines("heldout.txt"))
        assert (found.tokens, found.unknown, found.sentences) == (3211, 471, 200)
        np.testing.assert_allclose([found.with_unknown, found.without_unknown], KENLM_PERPLEXITY[order], rtol=1e-6)


def test_sentence_scores():
    model = WordModel.fit(["the cat sat", "the cat ran", "a dog ran"], 3, "witten-bell")
    score = model.score("the quux sat")
    assert score.words == ["the", "quux", "sat", "</s>"]
    assert score.unknown.tolist() == [False, True, False, False]
    assert score.matched.tolist() == [2, 1, 1, 2]
    ids = model.vocabulary.encode(["the quux sat"])
    p = [model.model.distribution(ids[:i])[ids[i]] for i in range(1, 5)]
    np.testing.assert_allclose(10**score.log10, p, rtol=1e-6)
    assert score.total == pytest.approx(np.log10(p).sum()) and score.per_token == pytest.approx(score.total / 4)
    assert model.score("the cat sat").per_token > model.score("sat cat the").per_token
    np.testing.assert_allclose(model.totals(["the quux sat", "", "a dog ran"])[0], score.total)
    assert model.score("").words == ["</s>"]


def test_it_prefers_the_original():
    """The default corpus' words: sentences of the test split (other modules than those trained on) against the same with two
    words swapped, with one replaced by any word, and with one replaced by a word drawn as often as it is used. min_count = 2 was
    chosen on the validation split."""
    corpus = default_corpus()
    training = [line for sentence in split(corpus.train) if (line := spaced(sentence))]
    model = WordModel.fit(training, 5, min_count=2)
    originals = prose(corpus.test)
    used = [w for w in " ".join(training).split() if w in model.vocabulary.ids]
    others = changed(originals, model.vocabulary.words[2:], used)
    scores = model.totals(map(spaced, originals))
    preferred = {kind: float((scores > model.totals(map(spaced, other))).mean()) for kind, other in others.items()}
    print(len(originals), preferred)
    assert len(originals) >= 100
    assert preferred["two swapped"] >= 0.9
    assert preferred["one replaced by any"] >= 0.9


def test_rare_words_become_unknown():
    model = WordModel.fit(["a b a", "a c"], 2, min_count=2)
    assert model.vocabulary.words == ["<unk>", "</s>", "a"]
    found = model.perplexity(["a b"])
    assert found.unknown == 1 and found.tokens == 3
    p = 10 ** model.score("a b").log10
    assert found.with_unknown == pytest.approx(np.prod(p) ** (-1 / 3))
    assert found.without_unknown == pytest.approx((p[0] * p[2]) ** (-1 / 2))
    assert split_words("a\u00a0b c\td") == ["a\u00a0b", "c", "d"]  # as kenlm: a no-break space is part of a word


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WordModel.fit([]), "no word"),
        (lambda: WordModel.fit(["a"], min_count=2), "stands 2 times"),
        (lambda: WordModel.fit(["a", "b </s>"]), "sentence 2 has"),
        (lambda: WordModel.fit(["a"], smoothing="good-turing"), 'no smoothing "good-turing"'),
        (lambda: WordModel.fit(["a"], smoothing="add-k", k=0), "positive and finite, got 0"),
        (lambda: WordModel.fit(["a"], smoothing="add-k", prune=(0, 1)), "takes no prune"),
        (lambda: WordModel.fit(["a"], prune=(1,)), "begin with 0"),
        (lambda: WordModel.fit(["a"], prune=(0, 2, 1)), "do not fall"),
        (lambda: WordModel.fit(["a"], order=40), "order must be in"),
        (lambda: WordModel.fit(["a"]).perplexity([]), "at least one sentence"),
        (lambda: Vocabulary(["a"]), "distinct words with <unk>"),
        (lambda: BackoffModel.fit(np.array([3]), 2, 3), r"0\.\.2, got 3"),
        (lambda: BackoffModel.fit(np.array([0]), 2, 3).score_tokens(np.array([4])), r"0\.\.3, got 4"),
        (lambda: BackoffModel.fit(np.array([0]), 2, 3).bits_per_token(np.array([3])), "at least one"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(NGramError, match=message):
        call()


def run(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_the_command_line(capsys, tmp_path):
    """Count, evaluate and score as a user would, with words and with bytes."""
    model, train, held_out = tmp_path / "m.arpa", KENLM / "train.txt", KENLM / "heldout.txt"
    assert run(capsys, "lm", "ngram", "--corpus", train, "--output", model, "--order", 3)[0] == 0
    code, out, _ = run(capsys, "lm", "eval", "--model", model, "--corpus", held_out, "--split", "all")
    assert code == 0 and out.startswith("perplexity 338.5541 with unknown words, 173.6126 without, on 3,211 words (471 unknown")
    code, out, _ = run(capsys, "lm", "score", "the quux is", "in the text", "--model", model)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and [row[1:] for row in rows[:4]] == [
        ["the", "2-gram"],
        ["quux", "unknown"],
        ["is", "1-gram"],
        ["</s>", "2-gram"],
    ]
    assert float(rows[4][0]) == pytest.approx(sum(float(row[0]) for row in rows[:4]), abs=3e-4)
    assert "perplexity" in out and len(rows) == 5 + 5

    model = tmp_path / "bytes.npz"
    assert run(capsys, "lm", "ngram", "--corpus", train, "--output", model, "--order", 4)[0] == 0
    code, out, _ = run(capsys, "lm", "eval", "--model", model, "--corpus", held_out, "--split", "all")
    bits = NGram.load(model).bits_per_token(np.frombuffer(held_out.read_bytes(), np.uint8))
    assert code == 0 and out.startswith(f"{bits:.4f} bits per byte on 16,647 bytes of heldout.txt")
    code, out, _ = run(capsys, "lm", "score", "the\xe9", "--model", model, "--no-words")
    assert code == 0 and len(out.splitlines()) == 1 and "a byte" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "a", "--model", "none.arpa"], "none.arpa does not exist"),
        (["score", "a", "--model", "m.txt"], "m.txt is no language model: give"),
        (["score", "--model", "bad.arpa"], "bad.arpa:1: the file ends here"),
        (["eval", "--model", "bad.arpa"], "bad.arpa:1: the file ends here"),
        (["ngram", "--output", "m.npz", "--corpus", "none.txt"], "none.txt cannot be read"),
        (["ngram", "--output", "m.arpa", "--corpus", "empty.txt"], "no word"),
        (["ngram", "--output", "m.npz", "--corpus", "empty.txt"], "at least one token"),
        (["ngram", "--output", "m.npz", "--smoothing", "mle"], ".npz holds modified Kneser-Ney"),
        (["ngram", "--output", "m.txt", "--corpus", "words.txt"], "must end in"),
    ],
)
def test_the_command_line_says_what_is_wrong(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty.txt", ""), ("bad.arpa", ""), ("words.txt", "a b")):
        (tmp_path / name).write_text(text)
    code, _, err = run(capsys, "lm", *argv)
    assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
