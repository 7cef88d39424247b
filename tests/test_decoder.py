"""The decoder: the same text under every policy, exact accounting, stops, and errors."""

import numpy as np
import pytest
import torch

from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import LMDrafter, NGramDrafter
from tdraft.models.decoding.record import record
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.session import ContextTooLong
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGram

V = 6


@pytest.fixture(scope="module")
def target():
    """A small random target in float64, so that no token hangs on the last bits; weights so
    large that it doesn't repeat its last token."""
    model = LanguageModel(LMConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, max_length=128), seed=1).double().eval()
    with torch.no_grad():
        model.embedding.mul_(2.0)
        for weight in model.backbone.parameters():
            weight.mul_(6.0 if weight.dim() == 2 else 1.0)
    return model


@pytest.fixture(scope="module")
def drafters(target):
    plain = SpeculativeDecoder(target).generate(np.array([1, 2]), 100, key=3).tokens
    ngram = NGram.fit(np.array(plain * 3), order=3, vocab_size=V)
    small = LanguageModel(LMConfig(vocab_size=V, d_model=8, n_layers=1, n_heads=2, max_length=128), seed=2).double().eval()
    return {"n-gram": NGramDrafter(ngram), "LM": LMDrafter(small)}


def random_policy(seed):
    rng = np.random.default_rng(seed)
    return lambda obs: int(rng.choice([0, 1, 1, 1, 2]))


PROMPT = np.array([0, 3, 1, 4, 2])


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.8), Sampling(1.2, top_k=3), Sampling(1.0, top_p=0.7)])
@pytest.mark.parametrize("name", ["n-gram", "LM"])
def test_every_policy_emits_the_text_of_plain_decoding(target, drafters, name, sampling):
    plain = SpeculativeDecoder(target, sampling=sampling).generate(PROMPT, 40, key=7)
    assert plain.account.target_calls == 40 and plain.reason == "length" and len(set(plain.tokens)) > 2
    for seed in range(4):
        decoder = SpeculativeDecoder(target, drafters[name], random_policy(seed), sampling=sampling, max_drafted=4)
        generation = decoder.generate(PROMPT, 40, key=7)
        assert generation.tokens == plain.tokens
        account = generation.account
        assert account.tokens == 40 == len(generation.tokens)
        assert account.accepted <= account.verified <= account.drafted
        assert len(account.rounds) == account.target_calls
        assert sum(a for _, a in account.rounds) == account.accepted
        assert account.bonus == sum(v == a for v, a in account.rounds)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["n-gram", "LM"])
def test_the_trace_foretells_every_round(target, drafters, name, temperature):
    """Accepted lengths of live decoding are the trace's, for static and random policies, and so are features and texts."""
    sampling, prompts, keys = Sampling(temperature), np.stack([PROMPT, PROMPT[::-1]]), np.array([7, 8])
    trace = record(target, drafters[name], prompts, 30, 4, sampling, keys)
    for c in range(2):
        plain = SpeculativeDecoder(target, sampling=sampling).generate(prompts[c], 30, key=keys[c])
        assert plain.tokens == trace.tokens[c].tolist()
        for policy in (lambda obs: 1, random_policy(0), random_policy(1)):
            decoder = SpeculativeDecoder(target, drafters[name], policy, sampling=sampling, max_drafted=4)
            session = decoder.session(prompts[c], 30, key=keys[c])
            while not session.done:
                position = len(session.emitted)
                action = session.decide(policy)
                features = trace.features[c, position]
                assert session.drafts == trace.proposals[c, position, : len(session.drafts)].tolist()
                assert session.obs[ob.TARGET_ENTROPY] == pytest.approx(trace.target_entropy[c, position], abs=1e-6)
                if session.drafts:
                    assert session.obs[ob.CONFIDENCE] == pytest.approx(features[len(session.drafts) - 1, 0], abs=1e-6)
                session.act(ob.VERIFY if action == ob.DRAFT else action)
                verified, accepted = session.account.rounds[-1]
                assert min(accepted, 30 - position) == min(verified, trace.accepted[c, position], 30 - position)


def test_target_probabilities_of_a_trace_are_the_targets(target, drafters):
    trace = record(target, drafters["n-gram"], PROMPT[None], 5, 3, Sampling(0.8), np.array([7]))
    for n in range(5):
        text = np.concatenate([PROMPT, trace.tokens[0, :n], trace.proposals[0, n]])
        logits = target(torch.from_numpy(text.astype(np.int64)[None]))[0][0].detach().numpy()
        p = Sampling(0.8)(logits)
        for k in range(3):
            assert trace.target_prob[0, n, k] == pytest.approx(p[len(PROMPT) + n + k - 1, trace.proposals[0, n, k]], abs=1e-10)


def test_sampled_drafts_follow_the_target_and_refuse_to_be_dropped(target, drafters):
    options = {"sampling": Sampling(1.0), "noise": "independent", "sampled_drafts": True, "max_drafted": 3}
    decoder = SpeculativeDecoder(target, drafters["LM"], lambda obs: 1, **options)
    assert len(decoder.generate(PROMPT, 20, key=1).tokens) == 20
    session = decoder.session(PROMPT, 20)
    session.draft()
    with pytest.raises(ValueError, match="not lossless"):
        session.act(ob.DROP)
    with pytest.raises(ValueError, match="independent"):
        SpeculativeDecoder(target, drafters["LM"], sampled_drafts=True).session(PROMPT, 5)


@pytest.mark.slow
def test_first_token_under_sampled_drafts_has_the_targets_law(target, drafters):
    """4000 runs with independent noise: chi-square of the first two tokens' joint counts, 35 degrees of freedom; the 99.9% point
    is 66.6. The exact enumeration is in test_verification.py; this one sees the decoder's plumbing."""
    runs = 4000
    decoder = SpeculativeDecoder(target, drafters["LM"], lambda obs: 1, noise="independent", sampled_drafts=True, max_drafted=2)
    counts = np.zeros((V, V))
    rng = np.random.default_rng(0)
    for _ in range(runs):
        a, b = decoder.generate(PROMPT, 2, rng=rng).tokens
        counts[a, b] += 1
    first = Sampling()(target(torch.from_numpy(PROMPT[None]))[0][0, -1].detach().numpy())
    second = [Sampling()(target(torch.tensor([[*PROMPT.tolist(), a]]))[0][0, -1].detach().numpy()) for a in range(V)]
    expected = runs * first[:, None] * np.array(second)
    likely = expected > 1
    rest = expected[~likely].sum()
    chi = ((counts - expected) ** 2 / expected)[likely].sum() + (counts[~likely].sum() - rest) ** 2 / max(rest, 1.0)
    assert chi < 66.6


@pytest.mark.parametrize("name", [None, "n-gram", "LM"])
def test_stops_behave_the_same_with_and_without_speculation(target, drafters, name):
    drafter = drafters[name] if name else None
    decoder = SpeculativeDecoder(target, drafter, (lambda obs: 1) if name else None, sampling=Sampling(0.8), max_drafted=4)
    full = decoder.generate(PROMPT, 40, key=7).tokens
    stop = full[10:12]
    first = next(i for i in range(len(full)) if full[i : i + 2] == stop)
    cut = decoder.generate(PROMPT, 40, key=7, stop=[stop])
    assert cut.tokens == full[:first] and cut.reason == "stop"
    token = full[5]
    ended = decoder.generate(PROMPT, 40, key=7, stop_tokens=[token])
    assert ended.tokens == full[: full.index(token) + 1] and ended.reason == "stop"
    assert list(decoder.stream(PROMPT, 40, key=7, stop=[[99, 98]])) == full
    long = decoder.generate(PROMPT, 1000, key=7)
    assert long.reason == "context" and len(long.tokens) == 128 - len(PROMPT)


def test_a_prompt_that_does_not_fit_is_refused(target):
    with pytest.raises(ContextTooLong, match="128"):
        SpeculativeDecoder(target).generate(np.zeros(128, np.int64), 5)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        SpeculativeDecoder(target).generate(np.zeros(1, np.int64), 5)
