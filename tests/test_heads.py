"""Heads that draft: their equations, their losses, live drafting against the parallel form, files, training, decoding."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdraft.models.backbones.taps import tapped
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import LMDrafter, load_drafter, read_target
from tdraft.models.decoding.head_drafters import make_head_drafter
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.heads.base import read_trunk
from tdraft.models.heads.eagle import Eagle, Eagle3
from tdraft.models.heads.files import KINDS, load_heads, make_heads, save_heads
from tdraft.models.heads.training import HeadTraining, agreement, greedy_windows, train_heads
from tdraft.models.language_model import CheckpointError, LanguageModel, LMConfig
from tdraft.models.training import TrainingDiverged

V, D = 7, 16
FAMILIES = ("transformer", "mamba")
CHAINS = ("mtp", "eagle", "eagle3")
PROMPT = np.array([0, 3, 1, 4, 2, 6])


@pytest.fixture(scope="module")
def trunks():
    return {family: LanguageModel(LMConfig(V, D, 3, max_length=64, backbone=family), seed=1).double() for family in FAMILIES}


def heads_of(kind, trunk, depth=None):
    """Heads whose weights are all random, Medusa's and the exit's too."""
    made = make_heads(kind, trunk, depth, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in made.own().items():
            if name.endswith(("linear.weight", "linear.bias", "exit.weight")):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return made


def norm(x):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6)


def naive(kind, made, trunk, tokens, i, k):
    """h^k_i of a text (T,), by the equations alone: each module reads its whole sequence, nothing is shared or cached."""
    hidden = read_trunk(trunk, tokens[None], made.taps)[0]
    embedded = trunk.embed(tokens)
    if kind == "medusa":
        linear = made.heads[k - 1].linear
        return hidden[i] + F.silu(linear.weight @ hidden[i] + linear.bias)
    if kind == "parallel":
        return made.heads[k - 1](hidden[None, : i + 1])[0][0, -1]
    first = hidden if kind != "eagle3" else hidden @ made.mix.weight.T

    def enter(module, h, token):
        return module.fuse.weight @ torch.cat((norm(h), norm(embedded[token])))

    if kind == "mtp":

        def deep(j, depth):
            if depth == 0:
                return first[j]
            module = made.chain[depth - 1]
            return module.block(torch.stack([enter(module, deep(m, depth - 1), m + depth) for m in range(j + 1)])[None])[0][0, -1]

        return deep(i, k)
    module = made.chain[0]
    inputs = [enter(module, first[m], m + 1) for m in range(i + 1)]
    for step in range(1, k + 1):
        y = module.block(torch.stack(inputs)[None])[0][0, -1]
        if step < k:
            inputs.append(enter(module, y, i + step + 1))
    return y


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "early-exit"])
def test_the_parallel_form_and_its_loss_are_those_of_the_equations(trunks, family, kind):
    trunk, T = trunks[family], 9
    made = heads_of(kind, trunk, 3)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, V, (2, T + 1)))
    labels, tokens = tokens[:, 1:], tokens[:, :-1]
    with torch.no_grad():
        hidden = read_trunk(trunk, tokens, made.taps)
        outputs = made(hidden, trunk.embed(tokens))
        assert [y.shape for y in outputs] == [(2, T - k, D) for k in (1, 2, 3)]
        slow = [torch.stack([naive(kind, made, trunk, row, i, k) for row in tokens for i in range(T - k)]) for k in (1, 2, 3)]
        for y, z in zip(outputs, slow):
            torch.testing.assert_close(y.flatten(0, 1), z, rtol=0, atol=1e-12)
        if isinstance(made, Eagle):
            return
        each = [F.cross_entropy(trunk.logits(z), labels[:, k:].flatten()) for k, z in enumerate(slow, 1)]
        weights = [0.8**k if isinstance(made, Eagle3) else 1.0 for k in range(3)]
        expected = sum(w * loss for w, loss in zip(weights, each)) / 3
        torch.testing.assert_close(
            made.loss(hidden, trunk.embed(tokens), labels, trunk.logits), expected.float(), rtol=1e-5, atol=0
        )


def test_the_loss_of_eagle_is_that_of_features_and_distributions(trunks, monkeypatch):
    trunk = trunks["transformer"]
    made = heads_of("eagle", trunk)
    monkeypatch.setattr("tdraft.models.heads.eagle.NOISE", 0.0)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, V, (1, 8)))
    with torch.no_grad():
        hidden = read_trunk(trunk, tokens)
        features, soft = 0.0, 0.0
        for i in range(7):
            y = naive("eagle", made, trunk, tokens[0], i, 1)
            error = (y - hidden[0, i + 1]).abs()
            features += torch.where(error < 1, 0.5 * error**2, error - 0.5).mean() / 7
            soft -= (trunk.logits(hidden[0, i + 1]).softmax(-1) * trunk.logits(y).log_softmax(-1)).sum() / 7
        loss = made.loss(hidden, trunk.embed(tokens), tokens, trunk.logits)
    assert loss.item() == pytest.approx((features + 0.1 * soft).item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_early_exit_is_the_trunks_first_layers(trunks, family):
    trunk = trunks[family]
    made = heads_of("early-exit", trunk, 2)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, V, (2, 8)))
    with torch.no_grad():
        _, _, (layer,) = tapped(trunk.backbone, trunk.embed(tokens), None, (1,))
        scale = layer.square().mean(-1, keepdim=True)
        x = layer / (scale.sqrt() + 1e-6) if family == "transformer" else layer / (scale + 1e-5).sqrt()
        logits = x @ made.model.exit.weight.T @ trunk.embedding.T
        torch.testing.assert_close(made.model(tokens)[0], logits, rtol=0, atol=1e-12)
        (y,) = made(read_trunk(trunk, tokens), trunk.embed(tokens))
        torch.testing.assert_close(trunk.logits(y), logits, rtol=0, atol=1e-12)
    assert made.n_parameters == D * D + D
    trunk_ids = {p.data_ptr() for p in trunk.parameters()}
    assert sum(p.data_ptr() in trunk_ids for p in made.parameters()) > 2  # shared, not copied


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_live_proposals_are_those_of_the_parallel_form(trunks, family, kind):
    """Whatever was accepted or rejected before, and whether drafts were looked at, drawn freely, forgotten or never made."""
    trunk = trunks[family]
    made = heads_of(kind, trunk, 2 if kind == "early-exit" else 3)
    drafter = make_head_drafter(made, trunk)
    rng = np.random.default_rng(5)

    def expected(text, k):
        """Logits of the proposal t_{n+k} by the whole parallel form on text and drafts."""
        with torch.no_grad():
            tokens = torch.tensor(text)
            if kind == "early-exit":
                return made.model(tokens[None])[0][0, -1]
            if kind in CHAINS:
                depth, made.depth = made.depth, k
                y = made(read_trunk(trunk, tokens[None], made.taps), trunk.embed(tokens)[None])[k - 1][0, -1]
                made.depth = depth
                return trunk.logits(y)
            seen = tokens[: len(text) - k]
            return trunk.logits(made.read(read_trunk(trunk, seen[None]))[0][k - 1][0, -1])

    for start in (2, 6):
        text = rng.integers(0, V, start).tolist()
        state, new = None, text[:-1]
        for turn in range(7):
            _, state, hidden = read_target(trunk, torch.tensor([new]), state, made.taps)
            with torch.inference_mode():
                if drafter.taps is not None:
                    drafter.watch(hidden[0])
            drafter.begin(np.array(text)) if turn == 0 else drafter.extend(text[-len(new) :])
            for attempt in range(2):
                drafts = []
                for k in range(1, int(rng.integers(0, 6)) + 1):
                    if kind in ("medusa", "parallel") and k > 3:
                        assert np.array_equal(drafter.distribution(), np.full(V, 1 / V))
                        drafter.draw(0)
                        continue
                    logits = expected(text + drafts, k)
                    np.testing.assert_allclose(drafter.distribution(), logits.softmax(-1).numpy(), rtol=0, atol=1e-12)
                    if rng.random() < 0.7:
                        proposal = drafter.propose()
                        assert proposal.token == int(logits.argmax())
                        assert proposal.confidence == pytest.approx(logits.softmax(-1).max().item(), abs=1e-12)
                        drafts.append(proposal.token)
                    else:
                        drafts.append(int(rng.integers(0, V)))
                        drafter.draw(drafts[-1])
                if attempt == 0:
                    drafter.forget()
            accepted = int(rng.integers(0, len(drafts) + 1))
            new = [text[-1], *drafts[:accepted]]
            text = text + drafts[:accepted] + [int(rng.integers(0, V))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_heads_emits_the_text_of_plain_decoding(trunks, family, kind):
    trunk = trunks[family]
    sampling = Sampling(0.7)
    plain = SpeculativeDecoder(trunk, sampling=sampling).generate(PROMPT, 30).tokens
    assert len(set(plain)) > 2
    rng = np.random.default_rng(0)
    drafter = make_head_drafter(heads_of(kind, trunk, 2), trunk)
    decoder = SpeculativeDecoder(trunk, drafter, lambda obs: int(rng.choice([0, 1, 1, 1])), sampling=sampling, max_drafted=4)
    for _ in range(2):
        generation = decoder.generate(PROMPT, 30)
        assert generation.tokens == plain and generation.account.drafted > 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_keeps(tmp_path, trunks, kind):
    trunk, other = trunks["transformer"], LanguageModel(LMConfig(V, D, 3, max_length=64), seed=9).double()
    made, path = heads_of(kind, trunk, 2), tmp_path / "heads.safetensors"
    save_heads(made, path)
    again = load_heads(path, trunk)
    assert type(again) is type(made) and again.depth == 2 and again.fingerprint == made.fingerprint
    assert again.n_parameters == made.n_parameters
    assert all(torch.equal(tensor, again.own()[name]) for name, tensor in made.own().items())
    drafter = load_drafter(path, trunk)
    assert drafter.fingerprint == made.fingerprint and isinstance(drafter, LMDrafter) == (kind == "early-exit")
    with pytest.raises(CheckpointError, match="belongs to target"):
        load_heads(path, other)
    save_heads(made, path, bf16=True)
    assert load_heads(path, trunk).own().keys() == made.own().keys()


def test_foreign_files_are_refused(tmp_path, trunks):
    trunk, path = trunks["mamba"], tmp_path / "file.safetensors"
    with pytest.raises(CheckpointError, match="cannot read"):
        load_heads(path, trunk)
    path.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_heads(path, trunk)
    trunk.save(path)
    with pytest.raises(CheckpointError, match=r"must hold heads .*it holds LanguageModel"):
        load_heads(path, trunk)
    with pytest.raises(ValueError, match='no heads "hydra"'):
        make_heads("hydra", trunk)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        make_heads("mtp", trunk, 0)
    with pytest.raises(ValueError, match="must be below the trunk's 3"):
        make_heads("early-exit", trunk, 3)


def text(n=1200):
    """A text that repeats itself: after three tokens there is no doubt."""
    return np.tile(np.array([0, 1, 2, 3, 2, 1, 4, 5, 6, 5]), n // 10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_leaves_the_trunk_alone(trunks, family, kind):
    trunk = trunks[family]
    made, before = make_heads(kind, trunk, 2), trunk.fingerprint
    result = train_heads(made, trunk, text(), HeadTraining(steps=25, batch=2, length=24, lr=1e-2, distil=False))
    assert result.losses[-5:].mean() < 0.85 * result.losses[:3].mean()
    assert trunk.fingerprint == before == made.trunk_fingerprint
    assert all(parameter.grad is None for parameter in trunk.parameters())


def test_distilled_and_joint_training():
    trunk = LanguageModel(LMConfig(V, D, 2, max_length=64), seed=1)
    made, before = make_heads("parallel", trunk, 2), trunk.fingerprint
    joint = HeadTraining(steps=60, batch=2, length=24, lr=1e-2, distil=False, joint=True, joint_lr=1.0)
    assert len(train_heads(made, trunk, text(), joint).losses) == 60
    assert trunk.fingerprint != before and made.trunk_fingerprint == trunk.fingerprint
    learned = text()[:96].reshape(4, 24)
    windows = greedy_windows(trunk, learned[:, :8], 16)
    assert np.array_equal(windows, learned)  # the trunk has learned the text too
    made, before = make_heads("mtp", trunk, 2), trunk.fingerprint
    train_heads(made, trunk, text(), HeadTraining(steps=40, batch=2, length=24, lr=1e-2, distil=True))
    agreed = agreement(made, trunk, windows)
    assert agreed.shape == (4, 22, 2) and agreed[:, 4:].mean() > 0.9 and trunk.fingerprint == before


def test_what_training_refuses():
    trunk = LanguageModel(LMConfig(V, D, 2, max_length=32), seed=1)
    made = make_heads("medusa", trunk)
    for settings, message in (
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"length": 64}, "exceeds the trunk's max_length 32"),
        ({"length": 32, "lr": -1.0}, "lr must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            train_heads(made, trunk, text(), HeadTraining(**settings))
    with pytest.raises(ValueError, match="more than length=32 tokens, got 20"):
        train_heads(made, trunk, text(20), HeadTraining(length=32))
    with torch.no_grad():
        made.heads[0].linear.weight[0, 0] = torch.nan
    with pytest.raises(TrainingDiverged, match="step 1"):
        train_heads(made, trunk, text(), HeadTraining(length=32))


def check_taps(trunk, tolerance):
    """The taps of a call are those of the call in parts and of a tree, and the backbone's own output is what it was."""
    backbone, x, fused = trunk.backbone, trunk.embed(torch.tensor([[1, 2, 3, 4]])).detach(), []
    layers = next(module for module in backbone.children() if isinstance(module, torch.nn.ModuleList))
    spy = layers[1].register_forward_pre_hook(lambda *_: fused.append(backbone.fused))
    with torch.inference_mode():
        y, _, taps = tapped(backbone, x, None, (0, 2))
        spy.remove()
        before = backbone.fused
        plain, _ = backbone(x)
        torch.testing.assert_close(y, plain, rtol=0, atol=tolerance)
        assert [layer.shape for layer in taps] == [(1, 4, D)] * 2
        _, state, more = tapped(backbone, x[:, 1:], backbone(x[:, :1])[1], (0, 2), parents=[-1, 0, 0])
        torch.testing.assert_close(more[1][:, :2], taps[1][:, 1:3], rtol=0, atol=tolerance)
        assert state.length == 4
    assert fused == [False] and backbone.fused is before


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_are_the_layers_outputs_and_change_nothing(trunks, family):
    trunk = deepcopy(trunks[family])
    trunk.backbone.fused = True
    check_taps(trunk, 1e-12)
    with pytest.raises(ValueError, match=r"taps must be layers of the backbone, got \(3,\)"):
        tapped(trunk.backbone, trunk.embed(torch.tensor([[1]])), None, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_taps_where_the_backbone_has_fused_steps(trunks, family):
    trunk = deepcopy(trunks[family]).float()
    trunk.backbone.fused = True
    check_taps(trunk, 1e-5)


def test_a_backbone_that_does_not_call_its_layers_says_so():
    model = LanguageModel(LMConfig(V, D, 2, backbone="retnet"))
    with pytest.raises(ValueError, match="RetNet cannot be tapped"):
        tapped(model.backbone, model.embed(torch.tensor([[1]])), None, (0,))
