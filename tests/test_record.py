"""Traces of any drafter, drafted literally: the fast paths' where there are some, and live decoding round by round."""

import numpy as np
import pytest
import torch

from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.acceptance import predict
from tdraft.models.decoding.calibration import fit_calibration
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import (
    Drafter,
    DrafterError,
    LMDrafter,
    NGramDrafter,
    Proposal,
    greedy_features,
    load_drafter,
    read_target,
)
from tdraft.models.decoding.lookup_drafters import PromptLookupDrafter, SuffixDrafter
from tdraft.models.decoding.probe import DEPTHS, Probe, no_probe
from tdraft.models.decoding.record import Reading, measure_cost, read_text, record, sweep
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGram

V, CONTEXT = 6, 64
PROMPTS = np.array([[0, 3, 1, 4, 2], [2, 4, 1, 3, 0]])
KEYS = np.array([7, 8])


class Stub(Drafter):
    """Drafts from everything that the target has made of the text, so that one row too many, too few or out of place shows."""

    fingerprint = "stub"

    def __init__(self, target, taps):
        super().__init__()
        self.target, self.taps, self.vocab_size, self.parts = target, taps, V, 1 + len(taps)
        self.rows = []

    def watch(self, hidden):
        assert hidden.dim() == 2 and hidden.shape[1] == self.target.config.d_model * self.parts
        self.rows.append(hidden)

    def begin(self, tokens, room=1024):
        self.rows = self.rows[-1:]
        super().begin(tokens, room)

    def extend(self, tokens):
        super().extend(tokens)
        assert sum(map(len, self.rows)) == self.length - 1

    def _logits(self):
        memory = torch.zeros(self.rows[0].shape[1], dtype=torch.float64)
        for row in torch.cat(self.rows):
            memory = 0.5 * memory + row
        hidden = memory.view(self.parts, -1).sum(0)
        for token in self.buffer[self.length - 1 : self.length + self.drafted].tolist():
            hidden = hidden.roll(1) + self.target.embedding[token].detach()
        return self.target.logits(hidden).detach().numpy()

    def propose(self):
        token, confidence, entropy = greedy_features(self._logits())
        self.draw(int(token))
        return Proposal(int(token), float(confidence), float(entropy), 0.0, 0.0)

    def distribution(self):
        return Sampling()(self._logits())


class Disguised(Drafter):
    """Another drafter, of which nobody knows that it has a fast path."""

    def __init__(self, inner):
        self.inner, self.fingerprint, self.vocab_size = inner, inner.fingerprint, inner.vocab_size
        self.begin, self.extend, self.propose = inner.begin, inner.extend, inner.propose


@pytest.fixture(scope="module", params=["transformer", "mamba"])
def target(request):
    """Random, in float64, so that no token hangs on the last bits; weights so large that it doesn't repeat its last token."""
    sizes = {"n_heads": 2} if request.param == "transformer" else {}
    config = LMConfig(V, d_model=16, n_layers=2, max_length=CONTEXT, backbone=request.param, **sizes)
    model = LanguageModel(config, seed=1).double()
    with torch.no_grad():
        model.embedding.mul_(2.0)
        for weight in model.backbone.parameters():
            weight.mul_(6.0 if weight.dim() == 2 else 1.0)
    return model.eval()


@pytest.fixture(scope="module")
def text(target):
    return np.array(SpeculativeDecoder(target, sampling=Sampling(0.8)).generate(np.array([1, 2]), 60, key=3).tokens)


def lm():
    return LanguageModel(LMConfig(V, d_model=8, n_layers=1, n_heads=2, max_length=CONTEXT), seed=2).double().eval()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["n-gram", "LM"])
def test_literal_drafting_records_the_trace_of_the_fast_path(target, text, kind, temperature):
    drafter = NGramDrafter(NGram.fit(text, order=3, vocab_size=V)) if kind == "n-gram" else LMDrafter(lm())
    fast = record(target, drafter, PROMPTS, 12, 3, Sampling(temperature), KEYS)
    literal = record(target, Disguised(drafter), PROMPTS, 12, 3, Sampling(temperature), KEYS)
    for name in ("tokens", "proposals", "accepted", "target_prob", "target_entropy", "margin"):
        np.testing.assert_array_equal(getattr(literal, name), getattr(fast, name), name)
    np.testing.assert_allclose(literal.features, fast.features, rtol=2e-7)  # of float64 to float32
    assert literal.meta == fast.meta and fast.accepted.max() > 0
    read = read_text(target, text)
    swept = sweep(read, drafter, Sampling(temperature))
    again = sweep(read, Disguised(drafter), Sampling(temperature))
    for one, other in zip(swept, again):
        np.testing.assert_allclose(other[1:], one[1:], rtol=1e-6)


def drafter_of(kind, target, text):
    return {
        "lookup": lambda: PromptLookupDrafter(5, V),
        "suffix": lambda: SuffixDrafter(vocab_size=V),
        "suffix and corpus": lambda: SuffixDrafter(text, V),
        "heads": lambda: Stub(target, ()),
        "heads with taps": lambda: Stub(target, (1, 0)),
    }[kind]()


def some_calibration() -> ob.Calibration:
    """With a probe of the targets here."""
    rng = np.random.default_rng(4)
    shapes = ((16, 5), (V, 5), (V, 5), (DEPTHS, 5), (5,), (5,), (2,))
    probe = Probe(*(0.3 * rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    weights = rng.standard_normal(1 << ob.HASH_BITS).astype(np.float32)
    return ob.empty_calibration()._replace(weights=weights, probe=probe)


def test_a_probe_of_another_target_is_refused(target):
    with pytest.raises(ValueError, match="reads hidden states of 9 and 6 tokens, the target has 16 and 6"):
        probe = some_calibration().probe
        calibration = some_calibration()._replace(probe=probe._replace(state=probe.state[:9]))
        SpeculativeDecoder(target, calibration=calibration).session(PROMPTS[0], 4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["lookup", "suffix", "suffix and corpus", "heads", "heads with taps"])
def test_the_trace_foretells_every_round(target, text, kind, temperature):
    drafter, sampling, n_tokens = drafter_of(kind, target, text), Sampling(temperature), 24
    trace = record(target, drafter, PROMPTS, n_tokens, 4, sampling, KEYS)
    assert trace.accepted.max() > 0 and len(np.unique(trace.tokens)) > 2
    calibration = some_calibration()
    foretold = predict(calibration, trace)
    assert np.abs(foretold - predict(calibration._replace(probe=no_probe()), trace)).max() > 0.1
    for c in range(len(PROMPTS)):
        assert SpeculativeDecoder(target, sampling=sampling).generate(PROMPTS[c], n_tokens, key=KEYS[c]).tokens == list(
            trace.tokens[c]
        )
        rng = np.random.default_rng(c)
        policy = lambda obs, rng=rng: int(rng.choice([0, 1, 1, 1, 2]))  # noqa: E731
        decoder = SpeculativeDecoder(target, drafter, sampling=sampling, max_drafted=4, calibration=calibration)
        session = decoder.session(PROMPTS[c], n_tokens, key=KEYS[c])
        while not session.done:
            position = len(session.emitted)
            action = session.decide(policy)
            drafted = len(session.drafts)
            assert session.drafts == trace.proposals[c, position, :drafted].tolist()
            if drafted:
                shown = session.obs[[ob.CONFIDENCE, ob.ENTROPY, ob.ORDER, ob.LOG_COUNT]]
                np.testing.assert_allclose(shown, trace.features[c, position, drafted - 1], rtol=1e-6, atol=1e-7)
                assert session.obs[ob.ACCEPTANCE] == pytest.approx(foretold[c, position, drafted - 1], rel=1e-5)
            session.act(ob.VERIFY if action == ob.DRAFT else action)
            verified, accepted = session.account.rounds[-1]
            assert min(accepted, n_tokens - position) == min(verified, trace.accepted[c, position])
        assert session.emitted == trace.tokens[c].tolist()


@pytest.mark.parametrize("taps", [(), (0, 1)])
def test_trees_of_a_drafter_that_reads_hidden_states(target, taps):
    drafter, sampling = Stub(target, taps), Sampling(0.8)
    plain = SpeculativeDecoder(target, sampling=sampling).generate(PROMPTS[0], 24, key=7).tokens
    session = SpeculativeDecoder(target, drafter, sampling=sampling, max_drafted=3).session(PROMPTS[0], 24, key=7)
    while not session.done:
        tree = session.draft_tree(6, 3)
        session.verify_tree(tree.tokens, tree.parents)
    assert session.emitted == plain and session.account.accepted > 0


def test_what_the_target_gives_a_drafter_is_its_own(target):
    """Logits as ever, and the last hidden states make them."""
    tokens = torch.from_numpy(PROMPTS[:1])
    with torch.inference_mode():
        plain = target(tokens, target.initial_state(1))[0]
        for taps in ((), (1, 0)):
            logits, _, hidden = read_target(target, tokens, target.initial_state(1), taps)
            torch.testing.assert_close(logits, plain)
            assert hidden is not None and hidden.shape[-1] == 16 * (1 + len(taps))
            torch.testing.assert_close(target.logits(hidden[..., :16]), plain)
        assert read_target(target, tokens, target.initial_state(1), None)[2] is None


@pytest.mark.parametrize("target", ["transformer"], indirect=True)
def test_sweeps_and_calibrations_of_drafters_without_a_fast_path(target, text):
    tokens = text[:40]
    read = Reading(*(array[:40] for array in read_text(target, text)))
    with pytest.raises(TypeError, match="target="):
        sweep(read, Stub(target, ()), Sampling())
    for drafter in (Stub(target, ()), SuffixDrafter(vocab_size=V)):
        swept = sweep(read, drafter, Sampling(), target=target, window=16)
        for end in (2, 9, 40):
            start = 0 if end <= 16 else 12 * ((end - 5) // 12)  # windows of 16 begin every 12, and bring what is new
            context = tokens[start:end]
            if drafter.taps is not None:
                whole = torch.from_numpy(context[None, :-1])
                hidden = read_target(target, whole, target.initial_state(1), drafter.taps)[2]
                assert hidden is not None
                drafter.watch(hidden[0])
            drafter.begin(context)
            assert swept.proposals[end - 1] == drafter.propose().token
        cost = measure_cost(target, drafter, PROMPTS, 2, Sampling(), repeats=2)
        assert cost.draft > 0 and cost.verify.shape == (4,)
    trace = record(target, Stub(target, ()), PROMPTS, 12, 3, Sampling(), KEYS)
    assert np.isfinite(fit_calibration(trace, bins=2).weights).all()  # needs no sweep


def test_drafters_by_name(tmp_path, target):
    assert isinstance(load_drafter("prompt-lookup"), PromptLookupDrafter)
    plain, path = load_drafter("suffix", target), tmp_path / "corpus.txt"
    assert isinstance(plain, SuffixDrafter) and plain.vocab_size == V
    path.write_bytes(b"abcabd")
    drafter = load_drafter(f"suffix:{path}")
    drafter.begin(np.frombuffer(b"xxab", np.uint8).astype(np.int64))
    assert drafter.propose().token == ord("d") and drafter.fingerprint != load_drafter("suffix").fingerprint
    with pytest.raises(DrafterError, match="suffix:file looks into a file too"):
        load_drafter("prompt-lookup:file")
    with pytest.raises(DrafterError, match="or a name"):
        load_drafter("n-gram")
    with pytest.raises(FileNotFoundError):
        load_drafter("suffix:none.txt")
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(1)}, tmp_path / "heads.safetensors", {"class": "Medusa"})
    with pytest.raises(DrafterError, match="only with their target"):
        load_drafter(tmp_path / "heads.safetensors")
