"""Trees of drafts: the best ones by brute force, and texts decoded with them against plain decoding."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import LMDrafter, NGramDrafter
from tdraft.models.decoding.lookup_drafters import PromptLookupDrafter, SuffixDrafter
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.trees import best_first, depths
from tdraft.models.decoding.verification import choose, verify_greedy_drafts, verify_tree
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGram

V, CONTEXT = 6, 60
PROMPT = np.array([0, 3, 1, 4, 2])


def make_target(backbone: str) -> LanguageModel:
    """Random, in float64, so that no token hangs on the last bits; weights so large that it doesn't repeat its last token."""
    sizes = {"n_heads": 2} if backbone == "transformer" else {}
    model = LanguageModel(LMConfig(V, d_model=16, n_layers=2, max_length=CONTEXT, backbone=backbone, **sizes), seed=1).double()
    with torch.no_grad():
        model.embedding.mul_(2.0)
        for weight in model.backbone.parameters():
            weight.mul_(6.0 if weight.dim() == 2 else 1.0)
    return model.eval()


@pytest.fixture(scope="module", params=["transformer", "mamba"])
def target(request):
    return make_target(request.param)


@cache
def text_of(target: LanguageModel) -> np.ndarray:
    return np.array(SpeculativeDecoder(target, sampling=Sampling(0.8)).generate(np.array([1, 2]), 90, key=3).tokens)


def make_drafter(kind: str, target: LanguageModel):
    text = text_of(target)
    small = LMConfig(V, d_model=8, n_layers=1, n_heads=2, max_length=CONTEXT + 8)
    return {
        "n-gram": lambda: NGramDrafter(NGram.fit(text, order=3, vocab_size=V)),
        "LM": lambda: LMDrafter(LanguageModel(small, seed=2).double().eval()),
        "suffix": lambda: SuffixDrafter(text, V),
        "lookup": lambda: PromptLookupDrafter(5, V),
    }[kind]()


@pytest.mark.parametrize("seed", range(5))
def test_the_best_tree_is_that_of_brute_force(seed):
    depth, nodes = 3, 1 + 4 * seed
    rng = np.random.default_rng(seed)
    tables = {path: rng.dirichlet(np.full(3, 0.5)) for n in range(depth) for path in product(range(3), repeat=n)}
    asked = []

    def distribution(path):
        asked.append(tuple(path))
        return tables[tuple(path)]

    tree = best_first(distribution, nodes, depth)
    value = {
        path: sum(np.log(tables[path[:i]][path[i]]) for i in range(len(path)))
        for n in range(1, depth + 1)
        for path in product(range(3), repeat=n)
    }
    paths = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist()):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert paths == sorted(value, key=lambda path: -value[path])[:nodes]
    np.testing.assert_allclose(tree.log_q, [value[path] for path in paths])
    assert depths(tree.parents).tolist() == [len(path) for path in paths] and tree.depth == max(map(len, paths))
    assert len(asked) == len(set(asked)) <= nodes


def test_a_tree_holds_no_path_that_cannot_be():
    tree = best_first(lambda path: np.eye(4)[2], 9, 3)  # one-hot: a chain
    assert (tree.tokens.tolist(), tree.parents.tolist(), tree.log_q.tolist()) == ([2, 2, 2], [-1, 0, 1], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="nodes=0"):
        best_first(lambda path: np.eye(4)[2], 0, 3)


def test_the_longest_path_that_agrees_is_accepted():
    rng = np.random.default_rng(0)
    p, noise = rng.dirichlet(np.ones(4), 6), rng.random(4)
    a, b = choose(p[0], noise[0]), choose(p[2], noise[1])
    other = [(a + 1) % 4, (b + 1) % 4]
    # a wrong token, the right one, two children of it, of which the second is right, and one of the wrong child
    path, token = verify_tree(p, [other[0], a, other[1], b, 0], [-1, -1, 1, 1, 2], noise)
    assert (path, token) == ([1], choose(p[2], noise[1])) if b == other[1] else ([1, 3], choose(p[4], noise[2]))
    assert verify_tree(p, [], [], noise) == ([], a)
    drafts = [a, choose(p[1], noise[1]), (choose(p[2], noise[2]) + 1) % 4]
    accepted, token = verify_greedy_drafts(p[:4], drafts, noise)
    assert verify_tree(p, drafts, [-1, 0, 1], noise) == (list(range(accepted)), token) and accepted == 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["n-gram", "LM", "suffix", "lookup"])
def test_trees_emit_the_text_of_plain_decoding(target, kind, temperature):
    sampling = Sampling(temperature)
    plain = SpeculativeDecoder(target, sampling=sampling).generate(PROMPT, 200, key=7).tokens
    assert len(plain) == CONTEXT - len(PROMPT) and len(set(plain)) > 2
    session = SpeculativeDecoder(target, make_drafter(kind, target), sampling=sampling, max_drafted=4).session(PROMPT, 200, key=7)
    nodes, deepest = 0, 0
    while not session.done:
        if session.room:
            tree = session.draft_tree(6, 4)
            assert tree.depth <= session.room and len(session.drafts) == 0
            nodes, deepest = nodes + len(tree.tokens), max(deepest, tree.depth)
            new = session.verify_tree(tree.tokens, tree.parents)
        else:
            new = session.verify(0)
        assert session.emitted[-len(new) :] == new
    account = session.account
    assert session.emitted == plain
    assert account.drafted == account.verified == nodes and account.tokens == len(plain)
    assert account.target_calls == len(account.rounds) < len(plain)
    assert account.accepted == sum(accepted for _, accepted in account.rounds) >= len(plain) - account.target_calls
    assert deepest > 1


def test_trees_and_chains_take_turns(target):
    """A round of either kind leaves drafter, target and observation where the next one needs them."""
    drafter = make_drafter("LM", target)
    plain = SpeculativeDecoder(target, sampling=Sampling(0.8)).generate(PROMPT, 40, key=1).tokens
    session = SpeculativeDecoder(target, drafter, sampling=Sampling(0.8), max_drafted=3).session(PROMPT, 40, key=1)
    turn = 0
    while not session.done:
        if turn % 2:
            tree = session.draft_tree(5, 3)
            session.verify_tree(tree.tokens, tree.parents)
        else:
            for _ in range(2):
                session.draft()
            session.verify(2)
        assert np.isfinite(session.obs).all()
        turn += 1
    assert session.emitted == plain


@pytest.mark.parametrize("kind", ["n-gram", "LM", "suffix", "lookup"])
def test_a_distribution_can_be_asked_after_any_path(target, kind):
    """The same as that of a drafter whose text it is; and asking changes nothing of what comes."""
    drafter, other = make_drafter(kind, target), make_drafter(kind, target)
    drafter.begin(PROMPT)
    other.begin(PROMPT)
    proposals = [other.propose() for _ in range(3)]
    for path in ([], [2], [1, 5], [2, 2, 0], []):
        found = drafter.after(path)
        assert drafter.drafted == len(path) and abs(found.sum() - 1.0) < 1e-9
        if kind in ("n-gram", "LM"):  # which don't count their drafts as text
            other.begin(np.concatenate([PROMPT, path]).astype(np.int64))
            np.testing.assert_allclose(found, other.distribution(), atol=1e-12)
    drafter.forget()
    assert [p.token for p in proposals] == [drafter.propose().token for _ in range(3)]


def test_a_tree_that_cannot_be_verified_is_refused(target):
    session = SpeculativeDecoder(target, make_drafter("lookup", target)).session(np.zeros(CONTEXT - 2, np.int64), 5)
    with pytest.raises(ValueError, match="3 deep does not fit: the target's context has room for 2"):
        session.verify_tree(np.array([1, 2, 3]), np.array([-1, 0, 1]))
    options = {"noise": "independent", "sampled_drafts": True}
    session = SpeculativeDecoder(target, make_drafter("LM", target), **options).session(PROMPT, 5)
    with pytest.raises(ValueError, match="greedy drafts"):
        session.verify_tree(np.array([1]), np.array([-1]))
