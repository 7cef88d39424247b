"""ARPA and binary files: round trips are exact, kenlm reads ours, and what is malformed is refused with its line."""

import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.models.ngram import NGramError
from tdraft.models.ngrams.arpa import read_arpa, write_arpa
from tdraft.models.ngrams.backoff import BackoffModel
from tdraft.models.ngrams.binary import read_binary, write_binary
from tdraft.models.ngrams.vocabulary import Vocabulary
from tdraft.models.ngrams.words import WordModel

KENLM = Path(__file__).parent / "data" / "kenlm"
SENTENCES = ["the cat sat on the mat", "a cat ran", "the dog sat", "a dog ran on the cat", "the cat sat"]


@pytest.fixture(scope="module")
def model():
    return WordModel.fit(SENTENCES, 3)


def assert_same(a: BackoffModel, b: BackoffModel):
    assert (a.order, a.vocab_size, a.uniform) == (b.order, b.vocab_size, b.uniform)
    for name in ("parents", "tokens", "values"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("order", [3, 5])
def test_kenlms_files_are_written_back_byte_for_byte(order, tmp_path):
    theirs = KENLM / f"model{order}.arpa.gz"
    model, words = read_arpa(theirs)
    write_arpa(tmp_path / "again.arpa", model, words)
    assert (tmp_path / "again.arpa").read_bytes() == gzip.open(theirs).read()


@pytest.mark.parametrize("suffix", [".arpa", ".arpa.gz", ".bin"])
@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "stupid"])
def test_round_trip_is_exact(smoothing, suffix, tmp_path):
    model = WordModel.fit([*SENTENCES, "naïve £5 a\u00a0b \udce9", "#x 0x41 \\1-grams: \\end\\"], 4, smoothing, prune=(0, 0, 1))
    path = tmp_path / f"model{suffix}"
    model.save(path)
    again = WordModel.load(path)
    assert again.vocabulary.words == model.vocabulary.words
    assert_same(again.model, model.model)
    again.save(tmp_path / f"again{suffix}")
    assert (tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()
    assert again.score("the naïve cat flew").total == model.score("the naïve cat flew").total


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 4), st.sampled_from(["kneser-ney", "witten-bell"]))
def test_any_small_model(tmp_path_factory, tokens, order, smoothing):
    model = BackoffModel.fit(np.array(tokens), order, 5, smoothing=smoothing)
    folder = tmp_path_factory.mktemp("any")
    write_arpa(folder / "m.arpa", model)
    again, words = read_arpa(folder / "m.arpa")  # tokens by number; the file has no <unk> and </s>, which the reader adds
    assert words == ["0", "1", "2", "3", "4", "<unk>", "</s>"]
    keep = np.r_[0:6, 8 : len(again.values)]
    np.testing.assert_array_equal(again.values[keep], model.values)
    np.testing.assert_array_equal(again.score_tokens(np.array(tokens))[0], model.score_tokens(np.array(tokens))[0])
    write_binary(folder / "m.bin", model)
    mapped, none = read_binary(folder / "m.bin")
    assert none is None
    assert_same(mapped, model)
    np.testing.assert_array_equal(mapped.score_tokens(np.array(tokens))[0], model.score_tokens(np.array(tokens))[0])


def test_kenlm_reads_ours(tmp_path):
    """kenlm's own package says of our file what we say, word by word; skipped where it isn't installed."""
    pytest.importorskip("kenlm")
    kenlm = importlib.import_module("kenlm")
    model = WordModel.fit((KENLM / "train.txt").read_text().splitlines(), 5)
    model.save(tmp_path / "ours.arpa")
    theirs = kenlm.Model(str(tmp_path / "ours.arpa"))
    for sentence in (KENLM / "heldout.txt").read_text().splitlines():
        score = model.score(sentence)
        log10, matched, unknown = zip(*theirs.full_scores(sentence))
        np.testing.assert_allclose(score.log10, log10, atol=2e-6)
        assert (score.matched.tolist(), score.unknown.tolist()) == (list(matched), list(unknown))


def arpa(model, tmp_path) -> list[str]:
    model.save(tmp_path / "good.arpa")
    return (tmp_path / "good.arpa").read_text().split("\n")


def read_lines(lines, tmp_path):
    (tmp_path / "bad.arpa").write_text("\n".join(lines))
    return read_arpa(tmp_path / "bad.arpa")


def test_what_others_write_is_read(model, tmp_path):
    """A comment above, no <unk>, no back-off weights of zero, windows line ends, blanks for tabs."""
    lines = arpa(model, tmp_path)
    changed = ["made by a tool", "", *lines]
    changed = [line.removesuffix("\t0").replace("\t", " ") + "\r" for line in changed if "<unk>" not in line]
    changed[changed.index("ngram 1=11\r")] = "ngram 1=10\r"
    again, words = read_lines(changed, tmp_path)
    found = WordModel(again, Vocabulary(words))
    assert words[-1] == "<unk>"
    assert found.score("the dog sat on a mat").total == model.score("the dog sat on a mat").total
    assert found.score("quux").log10[0] < -100


MALFORMED = {
    "a count too large": (lambda x: x.replace("ngram 2=", "ngram 2=9"), r":\d+: \\3-grams: comes before all 2-grams"),
    "a count too small": (lambda x: x.replace("ngram 1=11", "ngram 1=10"), r":17: expected \\2-grams:, got"),
    "no number": (lambda x: x.replace("ngram 1=11", "ngram 1=many"), r':2: expected "ngram 1=COUNT", got \'ngram 1=many\''),
    "lengths out of order": (lambda x: x.replace("ngram 2=", "ngram 4="), r':3: expected "ngram 2=COUNT"'),
    "a section is missing": (lambda x: x.replace("\\2-grams:\n", ""), r":19: expected \\2-grams:"),
    "not a number": (lambda x: x.replace("\tcat\t", "\tcat\tx"), r":\d+: expected numbers before and behind"),
    "nan": (lambda x: x.replace("\n\\2-grams:\n-", "\n\\2-grams:\nnan"), r":20: expected numbers"),
    "positive": (lambda x: x.replace("\n\\2-grams:\n-", "\n\\2-grams:\n"), r":20: log10 p must be at most 0"),
    "a word too few": (
        lambda x: x.replace("\tthe cat\t", "\tthe\t"),
        r":22: the suffix '-0.30103' of 'the -0.30103' is not among",
    ),
    "twice": (lambda x: x.replace("\tmat\t", "\tcat\t", 1), r":\d+: the word 'cat' stands here for the second time"),
    "unknown word": (lambda x: x.replace("\tthe dog\t", "\tthe wolf\t"), r":\d+: the suffix 'wolf' of 'the wolf'"),
    "context": (lambda x: x.replace("\tthe dog sat\n", "\tdog the cat\n"), r":\d+: the context 'dog the' of 'dog the cat'"),
    "cut": (lambda x: x[: len(x) // 2], r":\d+: "),
    "no end": (lambda x: x.replace("\\end\\", ""), r":\d+: the file ends here"),
    "empty": (lambda x: "", r":1: the file ends here"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_with_their_line(kind, model, tmp_path):
    change, message = MALFORMED[kind]
    text = "\n".join(arpa(model, tmp_path))
    bad = change(text)
    assert bad != text
    with pytest.raises(NGramError, match=message):
        read_lines([bad], tmp_path)


def test_any_line_taken_out_is_noticed(model, tmp_path):
    lines = arpa(model, tmp_path)
    for i, line in enumerate(lines):
        if line.strip():
            with pytest.raises(NGramError, match=r"bad.arpa:\d+: "):
                read_lines(lines[:i] + lines[i + 1 :], tmp_path)


def test_damaged_binary_files_are_refused(model, tmp_path):
    path = tmp_path / "model.bin"
    model.save(path)
    whole = path.read_bytes()
    for length in (0, 7, 16, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(NGramError, match="no whole binary n-gram model"):
            WordModel.load(path)
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(NGramError, match="no whole binary n-gram model"):
            WordModel.load(path)


def test_a_failed_save_keeps_the_old_file(model, tmp_path, monkeypatch):
    for name in ("model.arpa", "model.bin"):
        model.save(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("No space left on device")))
            with pytest.raises(OSError, match="No space"):
                model.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.arpa", "model.bin"]


def test_what_the_formats_cannot_hold(model, tmp_path):
    with pytest.raises(NGramError, match="cannot hold add-k"):
        WordModel.fit(SENTENCES, 2, "add-k").save(tmp_path / "m.arpa")
    with pytest.raises(NGramError, match=r"must end in \.arpa"):
        model.save(tmp_path / "m.txt")
    with pytest.raises(NGramError, match="does not exist"):
        WordModel.load(tmp_path / "none.arpa")
    with pytest.raises(NGramError, match="white space"):
        write_arpa(tmp_path / "m.arpa", BackoffModel.fit(np.array([0]), 1, 2), ["a b", "c"])
    WordModel.fit(SENTENCES, 2, "add-k").save(tmp_path / "m.bin")
    assert WordModel.load(tmp_path / "m.bin").model.uniform
    WordModel.fit(SENTENCES, 2, "mle").save(tmp_path / "mle.arpa")  # p = 0 is written as -99, as SRILM does
    assert WordModel.load(tmp_path / "mle.arpa").score("mat the").log10[1] <= -99
