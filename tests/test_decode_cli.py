"""`tdraft trace`, `policies` and `decode` on tiny models: the same text under every policy, and errors in one line."""

import io
import json
import re
import sys

import numpy as np
import pytest
import torch

from tdraft.agents import decoding_baselines
from tdraft.agents.decoding_baselines import static
from tdraft.agents.policy_files import load_policy, save_policy
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import load_drafter
from tdraft.models.decoding.observation import empty_calibration
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.trace import Trace
from tdraft.models.language_model import LanguageModel, LMConfig, predict_argmax
from tdraft.models.ngram import NGram
from tdraft.scripts import decode as decode_command
from tdraft.scripts.main import main

CONTEXT = 96
PROMPT = "some words of a prompt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, a random target in float64 (so that no token hangs on the last bits), an n-gram drafter that has read its choices,
    and a one-layer drafter."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(26, size=n)) for n in rng.integers(2, 8, size=60)]
    paragraphs = [" ".join(rng.choice(words, size=40)) for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    target = LanguageModel(LMConfig(d_model=16, n_layers=1, n_heads=2, max_length=CONTEXT), seed=1).double()
    with torch.no_grad():
        target.embedding.mul_(8.0)
        for weight in target.backbone.parameters():
            weight.mul_(4.0 if weight.dim() > 1 else 1.0)  # smaller ones say the same byte again and again
    target.save(folder / "target.safetensors")
    LanguageModel(LMConfig(d_model=8, n_layers=1, n_heads=2, max_length=CONTEXT), seed=2).double().save(folder / "lm.safetensors")
    LanguageModel(LMConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=1)).save(folder / "seven.safetensors")
    emitted = (
        SpeculativeDecoder(target, sampling=Sampling(0.0))
        .generate(np.frombuffer(PROMPT.encode(), np.uint8), CONTEXT, key=0)
        .tokens
    )
    assert len(set(emitted)) > 10
    tokens = np.array([*PROMPT.encode(), *emitted, *paragraphs[0].encode()])
    NGram.fit(tokens, order=3).distill(tokens, predict_argmax(target, tokens)).save(folder / "ngram.npz")
    return folder


def command(folder, name, **options) -> list[str]:
    """The arguments of a command, files taken from the folder."""
    argv = [name]
    for key, value in options.items():
        path = folder / str(value)
        argv += [f"--{key.replace('_', '-')}", str(path) if path.suffix and path.exists() else str(value)]
    return argv


def one_line(capsys, argv) -> str:
    """The error of a command that the user got wrong: exit status 2, one line on stderr and nothing on stdout."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def decoded(capsys, argv) -> tuple[str, str]:
    """(text, accounting)"""
    assert main(argv) == 0
    out, err = capsys.readouterr()
    return out, err


POLICY = {
    "calibration": empty_calibration(),
    "cost": CostModel(np.array([0.0, 1.0, 1.2, 1.3, 1.4]), 0.02, 1e-3),
    "temperature": 0.8,
}


@pytest.fixture(scope="module")
def policies(folder):
    """A policy file a drafter, of a rule that drafts and drops, for drafts of up to 3."""
    target = LanguageModel.load(folder / "target.safetensors").fingerprint
    for name, drafter in (("ngram", NGram.load(folder / "ngram.npz")), ("lm", LanguageModel.load(folder / "lm.safetensors"))):
        policy = DraftPolicy("two thresholds", decoding_baselines.two_thresholds, np.array([0.1, 0.2]))
        save_policy(folder / f"{name}-policy.npz", policy, **POLICY, drafter=drafter.fingerprint, target=target)
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_policy_prints_the_text_of_plain_decoding(policies, capsys, temperature):
    common = {"target": "target.safetensors", "prompt": PROMPT, "max_tokens": 40, "temperature": temperature, "key": 5}
    plain, err = decoded(capsys, command(policies, "decode", **common))
    assert re.fullmatch(
        r"40 bytes \(length\) in 40 target calls: 0 drafted, 0 accepted, 40 bonus; [\d.]+ s \(verify [\d.]+\), \d+ bytes/s\n", err
    )
    model = LanguageModel.load(policies / "target.safetensors")
    sampling = decode_command.Sampling(temperature)
    tokens = SpeculativeDecoder(model, sampling=sampling).generate(np.frombuffer(PROMPT.encode(), np.uint8), 40, key=5).tokens
    assert plain == bytes(tokens).decode(errors="replace")
    accepted = 0
    for drafter in ("ngram.npz", "lm.safetensors"):
        for how in ({"static": 2}, {"static": 4}, {"policy": f"{drafter.split('.')[0]}-policy.npz"}):
            text, err = decoded(capsys, command(policies, "decode", **common, drafter=drafter, **how))
            assert text == plain
            account = re.search(r"40 bytes \(length\) in (\d+) target calls: (\d+) drafted, (\d+) accepted, (\d+) bonus;", err)
            assert account is not None
            calls, drafted, hits, bonus = map(int, account.groups())
            assert hits <= drafted and bonus <= calls and calls + hits >= 40
            assert ("note: " in err) == ("policy" in how and temperature == 0.0)
            accepted += hits
    assert accepted > 20 or temperature > 0


def test_a_stop_string_ends_identically(policies, capsys):
    common = {"target": "target.safetensors", "prompt": PROMPT, "max_tokens": 40, "temperature": 0.8, "key": 5}
    whole, _ = decoded(capsys, command(policies, "decode", **common))
    place = next(i for i in range(12, 36) if whole[i : i + 2].isascii() and whole.find(whole[i : i + 2]) == i)
    stop = whole[place : place + 2]
    argv = ["--stop", stop, "never said"]
    plain, err = decoded(capsys, command(policies, "decode", **common) + argv)
    assert plain == whole[:place] and " (stop) in " in err
    for how in ({"static": 4}, {"policy": "ngram-policy.npz"}):
        text, err = decoded(capsys, command(policies, "decode", **common, drafter="ngram.npz", **how) + argv)
        assert text == plain and " (stop) in " in err


def test_prompts_come_from_a_file_or_stdin(folder, capsys, monkeypatch, tmp_path):
    common = {"target": "target.safetensors", "max_tokens": 10}
    text, _ = decoded(capsys, command(folder, "decode", **common, prompt=PROMPT))
    (tmp_path / "prompt.txt").write_text(PROMPT)
    assert decoded(capsys, command(folder, "decode", **common, prompt_file=tmp_path / "prompt.txt"))[0] == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert decoded(capsys, command(folder, "decode", **common))[0] == text


def test_a_text_ends_where_the_context_is_full(folder, capsys):
    common = {"target": "target.safetensors", "prompt": PROMPT, "max_tokens": 200}
    text, err = decoded(capsys, command(folder, "decode", **common))
    assert f"{CONTEXT - len(PROMPT)} bytes (the target's context of {CONTEXT} is full)" in err
    for drafter in ("ngram.npz", "lm.safetensors"):
        assert decoded(capsys, command(folder, "decode", **common, drafter=drafter, static=4))[0] == text


def test_characters_are_printed_whole(folder, capsys, monkeypatch):
    """Bytes that end a round in the middle of a character wait for the rest of it; what is no UTF-8 becomes U+FFFD."""
    rounds = [[0xA9], [0x61, 0xE2], [0x82], [0xAC, 0xFF], [0x62, 0xF0, 0x9F]]  # the prompt ends in the first byte of an e acute

    def replayed(self, session):
        for tokens in rounds:
            session.emitted.extend(tokens)
            session.account.verify_seconds += 1.0
            yield tokens

    pieces = []
    monkeypatch.setattr(SpeculativeDecoder, "rounds", replayed)
    monkeypatch.setattr(decode_command, "emit", pieces.append)
    (folder / "half.txt").write_bytes(b"caf\xc3")
    assert main(command(folder, "decode", target="target.safetensors", prompt_file="half.txt", max_tokens=8)) == 0
    assert pieces == ["\xe9", "a", "", "", "\u20ac", "\ufffd", "b", "", "", "\ufffd"]


TARGET = {"target": "target.safetensors", "prompt": PROMPT}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**TARGET, "static": 2}, "--policy and --static need a --drafter; without one, decoding is plain"),
        ({**TARGET, "drafter": "ngram.npz"}, "a --drafter needs --policy FILE or --static K, which say how far to draft"),
        ({**TARGET, "drafter": "ngram.npz", "static": 2, "policy": "x.npz"}, "give --policy or --static, not both"),
        ({**TARGET, "drafter": "ngram.npz", "static": 0}, "--static must be at least 1, got 0"),
        ({**TARGET, "prompt_file": "x"}, "give --prompt or --prompt-file, not both"),
        ({**TARGET, "prompt": "a"}, "the prompt must hold at least 2 bytes, got 1"),
        (
            {**TARGET, "prompt": "a" * 96},
            "the prompt has 96 tokens, the target's context holds 96: shorten the prompt",
        ),
        ({**TARGET, "max_tokens": 0}, "--max-tokens must be at least 1, got 0"),
        ({**TARGET, "temperature": -1}, "temperature must be >= 0 and finite, got -1.0 (0 is greedy)"),
        ({**TARGET, "top_p": 0}, "top_p must be in (0, 1], got 0.0 (1 keeps every token)"),
        ({**TARGET, "stop": ""}, "a --stop string must not be empty"),
        (
            {**TARGET, "target": "seven.safetensors"},
            "the target must predict bytes, FOLDER/seven.safetensors has a vocabulary of 7",
        ),
        (
            {**TARGET, "drafter": "text.txt", "static": 2},
            "FOLDER/text.txt is no drafter: give an n-gram model (.npz), a language model or heads (.safetensors), or a name: "
            "prompt-lookup, suffix, suffix:FILE, transformer, mamba, drafter, medusa, mtp",
        ),
        (
            {**TARGET, "drafter": "seven.safetensors", "static": 2},
            "FOLDER/seven.safetensors has a vocabulary of 7, the target one of 256: give another drafter",
        ),
        (
            {**TARGET, "drafter": "ngram.npz", "policy": "ngram.npz"},
            "FOLDER/ngram.npz is no policy, or it is damaged (KeyError: 'meta'): make it again with tdraft policies trace --save",
        ),
        ({**TARGET, "drafter": "ngram.npz", "policy": "none.npz"}, "no policy none.npz"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, options, message):
    assert one_line(capsys, command(folder, "decode", **options)) == message.replace("FOLDER", str(folder))


@pytest.mark.parametrize("name", ["prompt-lookup", "suffix", "suffix:FOLDER/text.txt"])
def test_drafters_that_go_by_name(folder, capsys, tmp_path, name):
    name = name.replace("FOLDER", str(folder))
    plain, _ = decoded(capsys, command(folder, "decode", **TARGET, max_tokens=30))
    text, err = decoded(capsys, command(folder, "decode", **TARGET, max_tokens=30, drafter=name, static=3))
    assert text == plain and " 0 drafted" not in err
    sizes = {"contexts": 2, "prompt": 20, "tokens": 10, "depth": 3, "corpus": "text.txt"}
    out = tmp_path / "trace.npz"
    assert main(command(folder, "trace", target=TARGET["target"], drafter=name, out=out, **sizes)) == 0
    assert Trace.load(out, drafter=load_drafter(name).fingerprint).shape == (2, 10, 3)


def test_a_policy_of_other_models_or_another_clock_is_refused(policies, capsys, tmp_path):
    common = {**TARGET, "drafter": "ngram.npz"}
    message = one_line(capsys, command(policies, "decode", **common, policy="lm-policy.npz"))
    assert re.search(r"lm-policy.npz was made for the drafter \w{16}, not \w{16}: give that drafter, or make it again", message)
    POLICY["cost"].with_draft(0.5).save(tmp_path / "cost.json")
    message = one_line(capsys, command(policies, "decode", **common, policy="ngram-policy.npz", cost=tmp_path / "cost.json"))
    assert re.search(r"ngram-policy.npz was made for the cost model \w{16}, not \w{16}: give that one, or make it again", message)
    other = LanguageModel(LMConfig(d_model=16, n_layers=1, n_heads=2, max_length=CONTEXT), seed=9)
    other.save(tmp_path / "other.safetensors")
    options = {**common, "target": tmp_path / "other.safetensors", "policy": "ngram-policy.npz"}
    assert "was made for the target" in one_line(capsys, command(policies, "decode", **options))
    small = LanguageModel(LMConfig(d_model=8, n_layers=1, n_heads=2, max_length=32))
    small.save(tmp_path / "small.safetensors")
    options = {**TARGET, "drafter": tmp_path / "small.safetensors", "static": 2, "max_tokens": 20}
    message = "the drafter's context holds 32 bytes, prompt, text and draft may take 44: ask for less, or give another drafter"
    assert one_line(capsys, command(policies, "decode", **options)) == message


RECORD = {"target": "target.safetensors", "corpus": "text.txt", "prompt": 12, "tokens": 16, "depth": 4, "temperature": 0.8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "trace.json"}, "--out must end in .npz, got trace.json"),
        ({"contexts": 0}, "--contexts must be at least 1, got 0"),
        ({"tokens": 90}, "the target's context holds 96 bytes, this takes 106: lower --prompt, --tokens or --depth"),
        (
            {"depth": 14, "cost": "c.json"},
            "the target's context holds 96 bytes, this takes 132: lower --prompt, --tokens or --depth",
        ),
        ({"corpus": "none.txt"}, "none.txt does not exist; give a text file or a folder of text files"),
    ],
)
def test_wrong_recordings_are_one_line(folder, capsys, options, message):
    options = {**RECORD, "drafter": "ngram.npz", "out": "x.npz", "contexts": 4} | options
    assert one_line(capsys, command(folder, "trace", **options)) == message


def test_contexts_that_do_not_fit_are_refused(folder, capsys):
    options = {**RECORD, "drafter": "ngram.npz", "out": "x.npz", "contexts": 4, "skip": 5000}
    assert "prompts of 12 bytes, 5004 are asked for: lower --contexts or --prompt" in one_line(
        capsys, command(folder, "trace", **options)
    )


@pytest.mark.parametrize("drafter", ["ngram.npz", "lm.safetensors"])
def test_from_trace_to_policy_to_text(folder, capsys, tmp_path, monkeypatch, drafter):
    """Three traces and a clock, a table of a few rules and agents, and decoding under the files that it saved."""
    common = {**RECORD, "drafter": drafter}
    splits = {"train": {"contexts": 8}, "validation": {"contexts": 6, "skip": 8}, "test": {"contexts": 7, "split": "test"}}
    for name, options in splits.items():
        extra = {"cost": tmp_path / "cost.json"} if name == "train" else {}
        assert main(command(folder, "trace", **common, **options, **extra, out=tmp_path / f"{name}.npz")) == 0
    out, _ = capsys.readouterr()
    assert "8 contexts of 16 bytes from text.txt (validation), drafts of 4" in out and "plain step" in out
    traces = {name: Trace.load(tmp_path / f"{name}.npz") for name in splits}
    assert [t.shape for t in traces.values()] == [(8, 16, 4), (6, 16, 4), (7, 16, 4)]
    assert traces["test"].meta["split"] == "test" and traces["validation"].meta["skip"] == 8
    cost = CostModel.load(tmp_path / "cost.json")
    assert cost.max_drafted == 4

    everything = decoding_baselines.candidates
    few = ("no speculation", "static", "two thresholds")
    monkeypatch.setattr(decoding_baselines, "candidates", lambda cost: {name: everything(cost)[name] for name in few})
    files = {name: tmp_path / f"{name}.npz" for name in splits} | {"cost": tmp_path / "cost.json"}
    options = {**files, "seeds": "0,1", "timesteps": 3000, "save": tmp_path / "saved", "json": tmp_path / "rows.json"}
    assert main(command(folder, "policies", **options)[:1] + ["trace"] + command(folder, "policies", **options)[1:]) == 0
    out, _ = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert {"clairvoyant", "informed", "no speculation", "two thresholds"} <= set(rows)
    assert rows["no speculation"]["value"] == 1.0 and rows["no speculation"]["runs"] == 7
    assert all(row["value"] <= rows["clairvoyant"]["value"] for row in rows.values())
    assert all(f"| {name} |" in out for name in rows)
    assert {"bound", "learned", "baseline"} == {row["kind"] for row in rows.values()}

    common = {"target": "target.safetensors", "prompt": PROMPT, "max_tokens": 30, "temperature": 0.8, "key": 3}
    plain, _ = decoded(capsys, command(folder, "decode", **common))
    for kind in ("static", "baseline", "learned"):
        path = tmp_path / "saved" / f"best-{kind}.npz"
        saved = load_policy(path, cost=cost, drafter=traces["test"].meta["drafter"], target=traces["test"].meta["target"])
        assert f"{path}: {saved.policy.name}" in out and saved.temperature == 0.8
        text, err = decoded(
            capsys, command(folder, "decode", **common, drafter=drafter, policy=path, cost=tmp_path / "cost.json")
        )
        assert text == plain and "note" not in err and re.search(r"\(verify [\d.]+, draft [\d.]+, policy [\d.]+\)", err)


def table_error(capsys, tmp_path, **traces) -> str:
    argv = ["policies", "trace", "--cost", str(tmp_path / "cost.json"), "--seeds", "0", "--timesteps", "1000"]
    for name in ("train", "validation", "test"):
        argv += [f"--{name}", str(traces.get(name, tmp_path / "a.npz"))]
    return one_line(capsys, argv)


def test_tables_of_traces_that_do_not_belong_together_are_refused(folder, capsys, tmp_path):
    for name, temperature in (("a", 0.8), ("b", 0.0)):
        options = {**RECORD, "temperature": temperature, "drafter": "ngram.npz", "contexts": 2, "out": tmp_path / f"{name}.npz"}
        assert main(command(folder, "trace", **options)) == 0
    capsys.readouterr()
    assert table_error(capsys, tmp_path).endswith("No such file or directory: '" + str(tmp_path / "cost.json") + "'")
    (tmp_path / "cost.json").write_text("{}")
    assert table_error(capsys, tmp_path).startswith(f"{tmp_path}/cost.json: not a cost model written by tdraft")
    CostModel(np.array([0.0, 1.0, *np.full(9, 1.5)]), 0.1, 1e-3).save(tmp_path / "cost.json")
    assert "prices drafts of 9 bytes, the traces hold 4: measure it with the same --depth" in table_error(capsys, tmp_path)
    message = f"{tmp_path}/a.npz was recorded with temperature 0.8, {tmp_path}/b.npz with 0.0: record them alike"
    assert table_error(capsys, tmp_path, test=tmp_path / "b.npz") == message
    assert "is no complete tdraft trace" in table_error(capsys, tmp_path, validation=folder / "ngram.npz")


def test_subcommands_are_listed_and_suggested(capsys):
    assert main(["policies", "--help"]) == 0
    assert "usage: tdraft policies {trace,simulator,accept} [OPTIONS]" in capsys.readouterr().out
    assert one_line(capsys, ["policies", "trac"]).startswith('no subcommand "trac"; did you mean "trace"?')


def test_static_policies_draft_as_told():
    policy = DraftPolicy("static k=2", static, np.array([2.0]))
    seen = [np.array([float(k)] + [0.0] * 13 + [64.0]) for k in range(4)]
    assert [policy(obs) for obs in seen] == [1, 1, 0, 0]
    assert policy(np.array([1.0] + [0.0] * 13 + [2.0])) == 0  # a second draft could not be emitted
