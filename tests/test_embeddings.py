"""Word vectors: one-hot products, Word2Vec's loops against autograd and their sampling laws, the files, the errors."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tdraft.kernels import word2vec as kernels
from tdraft.kernels.rng import seed_state
from tdraft.models.embeddings import (
    EmbeddingError,
    Word2VecConfig,
    WordVectors,
    keep_probabilities,
    train_ids,
    words_by_paragraph,
)

TINY = Word2VecConfig(size=8, min_count=1, epochs=2, seed=3)


def test_a_one_hot_product_is_a_lookup():
    """Values bit for bit; gradients too, with whole numbers, of which any order of adding gives the same sum."""
    generator = torch.Generator().manual_seed(0)
    matrix, ids = torch.randn(50, 7, generator=generator), torch.randint(50, (4, 30), generator=generator)
    upstream = torch.randint(-9, 10, (4, 30, 7), generator=generator).float()
    results = []
    for layer in (lambda w: F.embedding(ids, w), lambda w: F.one_hot(ids, 50).float() @ w):
        weight = matrix.clone().requires_grad_()
        out = layer(weight)
        out.backward(upstream)
        results.append((out.detach(), weight.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][0], matrix[ids])


def sgns_loss(h, out, word, negatives):
    """The loss of the kernel's docstring; negatives that are the word don't count."""
    others = [k for k in negatives if k != word]
    return -F.logsigmoid(h @ out[word]) - F.logsigmoid(-(out[others] @ h)).sum()


@pytest.mark.parametrize("loop", [kernels.skip_gram, kernels.cbow])
@pytest.mark.parametrize("seed", range(5))
def test_one_prediction_goes_down_the_gradient_of_the_loss(loop, seed):
    """float64 tables, whose step shows the gradient to the precision of the float32 rate and slopes."""
    rng, size, rate = np.random.default_rng(seed), 19, 0.25
    start = [rng.normal(size=(1000, size)) for _ in range(2)]
    keep, other = kernels.alias_table(rng.random(1000))
    # A text of two words makes two steps, skip-gram's and CBOW's being the same: 9 predicts 5, then 5 predicts 9.
    ids, draws = np.array([5, 9], np.int32), seed_state(seed)
    expected = [torch.tensor(a) for a in start]
    for middle, context in ((5, 9), (9, 5)):
        tables = [a.clone().requires_grad_() for a in expected]
        kernels.randint(draws, 1)  # the half width
        negatives = [int(kernels.draw_negative(keep, other, draws)) for _ in range(4)]
        assert len(set(negatives)) == 4  # one drawn twice would be a step of second order
        gradients = torch.autograd.grad(sgns_loss(tables[0][context], tables[1], middle, negatives), tables)
        expected = [a.detach() - rate * slope for a, slope in zip(tables, gradients)]
    loop(ids, np.array([2]), *start, keep, other, 1, 4, rate, rate, seed_state(seed))
    for ours, theirs in zip(start, expected):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-6)


def test_cbow_descends_the_loss_of_a_mean():
    """Every step of a sentence of three words, whose contexts have one or two."""
    rng = np.random.default_rng(1)
    start = [rng.normal(size=(1000, 6)) for _ in range(2)]
    law, draws = kernels.alias_table(np.ones(1000)), seed_state(2)
    expected = [torch.tensor(a) for a in start]
    ids, window = np.array([1, 3, 4], np.int32), 2
    for i, middle in enumerate(ids):
        half = 1 + kernels.randint(draws, window)
        context = [int(w) for j, w in enumerate(ids) if j != i and abs(j - i) <= half]
        negatives = [int(kernels.draw_negative(*law, draws)) for _ in range(3)]
        tables = [a.clone().requires_grad_() for a in expected]
        gradients = torch.autograd.grad(sgns_loss(tables[0][context].mean(0), tables[1], middle, negatives), tables)
        expected = [a.detach() - 0.5 * slope for a, slope in zip(tables, gradients)]
    kernels.cbow(ids, np.array([3]), *start, *law, window, 3, 0.5, 0.5, seed_state(2))
    for ours, theirs in zip(start, expected):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-6)


def test_a_step_leaves_all_other_rows():
    tables = [np.ones((6, 4), np.float32) for _ in range(2)]
    keep, other = kernels.alias_table(np.array([0.0, 0, 1, 0, 0, 0]))  # every negative is word 2
    kernels.skip_gram(np.array([0, 1], np.int32), np.array([2]), *tables, keep, other, 3, 5, 0.1, 0.1, seed_state(0))
    assert [np.flatnonzero((t != 1).any(axis=1)).tolist() for t in tables] == [[0, 1], [0, 1, 2]]


def test_windows_stay_inside_sentences():
    """Sentences of one word predict nothing."""
    for loop in (kernels.skip_gram, kernels.cbow):
        tables = [np.ones((4, 4), np.float32) for _ in range(2)]
        law = kernels.alias_table(np.ones(4))
        loop(np.arange(4, dtype=np.int32), np.arange(1, 5), *tables, *law, 5, 5, 0.1, 0.1, seed_state(0))
        assert all((t == 1).all() for t in tables)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e6)))
def test_the_alias_table_has_the_law_of_its_weights(weights):
    weights[0] += 1.0
    keep, other = kernels.alias_table(weights)
    law = np.minimum(keep, 1.0)
    total = law + np.bincount(other, 1 - law, len(weights))
    np.testing.assert_allclose(total / len(weights), weights / weights.sum(), atol=1e-12)


def test_negatives_follow_counts_to_the_three_quarters():
    """200,000 draws; each frequency within 4 standard errors of sqrt(p (1 - p) / n), 20 words."""
    counts = np.arange(1, 21) ** 2.0
    law, n = counts**0.75 / (counts**0.75).sum(), 200_000
    keep, other = kernels.alias_table(counts**0.75)
    rng = seed_state(11)
    drawn = np.bincount([kernels.draw_negative(keep, other, rng) for _ in range(n)], minlength=20) / n
    assert (np.abs(drawn - law) < 4 * np.sqrt(law * (1 - law) / n)).all()


def test_subsampling_keeps_words_by_the_closed_form():
    """400,000 tokens of 4 words; each kept share within 4 standard errors. The rarest is always kept."""
    ids = np.repeat(np.arange(4, dtype=np.int32), [300_000, 90_000, 9_900, 100])
    counts = np.bincount(ids)
    law = keep_probabilities(counts, 1e-3)
    t = 1e-3 * len(ids)
    np.testing.assert_allclose(law, [np.sqrt(t / c) + t / c if np.sqrt(t / c) + t / c < 1 else 1 for c in counts])
    ends, kept, kept_ends = np.array([1000, 1000, len(ids)]), np.empty_like(ids), np.empty(3, np.int64)
    kernels.subsample(ids, ends, law, seed_state(5), kept, kept_ends)
    found = np.bincount(kept[: kept_ends[-1]], minlength=4)
    assert (np.abs(found / counts - law) <= 4 * np.sqrt(law * (1 - law) / counts)).all() and found[3] == 100
    assert kept_ends[0] == kept_ends[1] and (np.diff(kept[: kept_ends[-1]]) >= 0).all()
    assert (keep_probabilities(counts, 0) == 1).all()


SENTENCES = [["a", "b", "c", "d"], ["b", "a", "d", "c", "e"], ["c", "c", "a"]] * 20


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_a_seed_gives_the_same_vectors_and_another_others(architecture):
    first, same, other = (
        WordVectors.train(SENTENCES, Word2VecConfig(architecture, size=10, min_count=1, seed=s)) for s in (1, 1, 2)
    )
    assert np.array_equal(first.vectors, same.vectors) and not np.array_equal(first.vectors, other.vectors)
    assert first.words == ["c", "a", "b", "d", "e"] and first.counts is not None and first.counts.tolist() == [80, 60, 40, 40, 20]
    assert first.vectors.dtype == np.float32 and np.isfinite(first.vectors).all()


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_words_of_the_same_contexts_come_together(architecture):
    """Two topics of 10 words each: 3 seeds, all 20 words nearest to one of their own topic (by chance 10^-19 a seed)."""
    rng = np.random.default_rng(0)
    sentences = [[f"w{topic}{i}" for i in rng.integers(10, size=12)] for topic in rng.integers(2, size=600)]
    for seed in range(3):
        vectors = WordVectors.train(sentences, Word2VecConfig(architecture, size=16, sample=0, epochs=10, seed=seed))
        assert all(vectors.nearest(word, 1)[0][0][:2] == word[:2] for word in vectors.words)


def test_ids_that_stand_nowhere_keep_a_vector():
    vectors = train_ids(np.array([3, 1, 3, 1, 1]), 6, TINY)
    assert vectors.shape == (6, 8) and (np.abs(vectors[[0, 2, 4, 5]]) <= 1 / 8).all() and vectors.any(axis=1).all()


def planted() -> WordVectors:
    """king - man + woman = queen; walk, walks, walking at known cosines."""
    words = {"man": (1, 0, 0, 0), "woman": (0, 1, 0, 0), "king": (1, 0, 1, 0), "queen": (0, 1, 1, 0)}
    words |= {"walk": (0, 0, 0, 1), "walks": (0, 0.1, 0, 1), "walking": (0, 0.3, 0, 1), "tree": (0, 0.15, 0, 1)}
    return WordVectors(list(words), np.array(list(words.values())))


def test_neighbours_and_analogies():
    vectors = planted()
    assert vectors.analogy("man", "king", "woman", 1)[0][0] == "queen"
    (first, second, *rest) = vectors.nearest("king", 99)
    assert first == ("man", pytest.approx(0.5**0.5)) and second == ("queen", pytest.approx(0.5))
    assert [cosine for _, cosine in rest] == [pytest.approx(0)] * 5


def test_inflection_ranks_by_hand():
    """Tangents of the angles: walk 0, walks 0.1, tree 0.15, walking 0.3. So walk -> walks 1, walk -> walking 3, walks -> walk 2
    (tree is nearer), walking -> walk 3."""
    vectors = planted()
    assert {tuple(vectors.words[i] for i in pair) for pair in vectors.inflection_pairs()} == {
        ("walk", "walks"),
        ("walk", "walking"),
    }
    rank = vectors.inflection_rank()
    assert rank == (2, 2.5, pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 3) / 4))
    with pytest.raises(EmbeddingError, match="no word of the 2"):
        WordVectors(["one", "two"], np.ones((2, 2))).inflection_rank()


words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\t\n\v\f\r "), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_text_format_keeps_every_bit(tmp_path_factory, data):
    names = data.draw(st.lists(words, min_size=1, max_size=5, unique=True))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vectors = data.draw(arrays.arrays(np.float32, (len(names), data.draw(st.integers(1, 4))), elements=finite))
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    WordVectors(names, vectors).save(path)
    loaded = WordVectors.load(path)
    assert loaded.words == names and loaded.vectors.tobytes() == vectors.tobytes() and loaded.counts is None


def test_files_of_other_tools_are_read(tmp_path):
    """word2vec.c ends its lines with a space, others with CR LF."""
    path = tmp_path / "theirs.txt"
    path.write_bytes("2 2\nna\u00efve 1.5 -2 \r\nb 0 1e-3".encode())
    assert WordVectors.load(path).words == ["na\u00efve", "b"]
    assert WordVectors.load(path).vectors.tolist() == [[1.5, -2], [0, pytest.approx(1e-3)]]


@pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="gensim is not installed")
def test_gensim_reads_our_file(tmp_path):
    planted().save(tmp_path / "v.txt")
    theirs = importlib.import_module("gensim.models").KeyedVectors.load_word2vec_format(str(tmp_path / "v.txt"))
    assert theirs.index_to_key == planted().words and np.array_equal(theirs.vectors, planted().vectors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: the first line must be"),
        ("two 2\n", r":1: the first line must be"),
        ("1 0\na\n", r":1: the first line must be"),
        ("2 2\na 1 2\nb 1\n", r":3: expected a word and 2 finite numbers"),
        ("2 2\na 1 2\nb 1 x\n", r":3: expected UTF-8 with a word and 2 numbers"),
        ("1 2\na nan 2\n", r":2: expected a word and 2 finite"),
        ("1 2\n 1 2\n", r":2: expected a word and 2 finite"),
        ("2 1\na 1\na 2\n", r":3: 'a' stands in line 2 already"),
        ("1 1\n\xff 1\n", r":2: expected UTF-8"),
        ("3 1\na 1\nb 1\n", r":1: 3 words are announced, 2 follow"),
        ("99999999999 99999999999\na 1\n", r":2: expected a word"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(EmbeddingError, match=r"bad\.txt" + message):
        WordVectors.load(path)
    with pytest.raises(EmbeddingError, match="cannot be read"):
        WordVectors.load(tmp_path / "none.txt")


@pytest.mark.parametrize("counts", [None, [5, 2]])
def test_tensorboard_reads_the_projector_files(tmp_path, counts):
    """As its projector does: the configuration, the tensor, and one line of metadata a word, under a head where there are two."""
    plugin = importlib.import_module("tensorboard.plugins.projector.projector_plugin")
    proto = importlib.import_module("tensorboard.plugins.projector.projector_config_pb2")
    vectors = WordVectors(["a", "\u00e9"], np.array([[0.1, 2], [3, 1 / 3]]), None if counts is None else np.array(counts))
    vectors.export_projector(tmp_path / "log")
    config = proto.ProjectorConfig()
    importlib.import_module("google.protobuf.text_format").Parse((tmp_path / "log/projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    read = plugin._read_tensor_tsv_file(str(tmp_path / "log" / embedding.tensor_path))
    assert embedding.tensor_name and np.array_equal(read, vectors.vectors)
    lines = (tmp_path / "log" / embedding.metadata_path).read_text(encoding="utf-8").splitlines()
    assert lines == (["a", "\u00e9"] if counts is None else ["word\tcount", "a\t5", "\u00e9\t2"])


def test_errors_say_what_to_do():
    with pytest.raises(EmbeddingError, match="has 0 words and none stands 5 times; give more text"):
        WordVectors.train([])
    with pytest.raises(EmbeddingError, match="has 3 words and none"):
        WordVectors.train([["a", "b", "c"]])
    with pytest.raises(EmbeddingError, match="'walkin' is not among the 8 words; near in spelling: 'walking'"):
        planted().nearest("walkin")
    with pytest.raises(EmbeddingError, match="k must be positive, got 0"):
        planted().nearest("walk", 0)
    for words in (["a b"], [""], ["a\n"]):
        with pytest.raises(EmbeddingError, match="a word has no white space"):
            WordVectors(words, np.ones((1, 2)))
    with pytest.raises(EmbeddingError, match="'a' stands twice"):
        WordVectors(["a", "a"], np.ones((2, 2)))
    with pytest.raises(EmbeddingError, match="1 words need"):
        WordVectors(["a"], np.ones((2, 2)))
    for ids in ([], [0, 5], [-1]):
        with pytest.raises(EmbeddingError, match=r"ids must be at least one token in 0\.\.4"):
            train_ids(np.array(ids, np.int64), 5, TINY)
    with pytest.raises(EmbeddingError, match="ends must ascend to the number of tokens 2"):
        train_ids(np.array([0, 1]), 5, TINY, ends=np.array([2, 1]))


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"window": 0}, {"negative": 0}, {"sample": 1.0}, {"alpha": 0.0}, {"epochs": 0}, {"architecture": "sg"}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(EmbeddingError, match=f"{next(iter(wrong))} must be"):
        WordVectors.train(SENTENCES, Word2VecConfig(**wrong))


def test_words_of_a_text_by_paragraph():
    text = "The cat's 2 hats_on.\nAnd \u00c9t\u00e9!\n \n***\n\nEnd"
    assert words_by_paragraph(text) == [["the", "cat", "s", "hats", "on", "and", "\u00e9t\u00e9"], ["end"]]
    assert words_by_paragraph("") == []
