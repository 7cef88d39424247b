"""Byte pair encoding: nothing is lost, the ids are those of Hugging Face's `tokenizers`, and bad files are refused by name."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.models.bpe import BPETokenizer, piece_pattern
from tdraft.models.bpe_format import TokenizerError
from tdraft.models.corpus import default_corpus
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.scripts.lm_tokenizer import LMTokenizer
from tdraft.scripts.lm_tokenizer import tokenizer as run_command

tokenizers = pytest.importorskip("tokenizers")

# What the pattern treats differently, and what its classes are easily wrong about: control characters that Python's \s holds,
# numbers that aren't digits, letters with numeric values, marks, unassigned and late code points.
HARD = "a Z 's 'll 've 'S é ß ſ 中 一 ३ ² ½ Ⅷ 〇 ー \u0301 \u093f _ - — 😀 \x00 \x1c \x1f \x85 \xa0 \u180e \u2003 \u2028 \u3000"
LATE = ["\U00031350", "\U0001e5f1", "\U0002ffff"]
HARD_TEXT = st.lists(st.sampled_from([*HARD.split(" "), *LATE, " ", "  ", "\n", "\t"])).map("".join)
TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), HARD_TEXT)


@pytest.fixture(scope="module")
def corpus():
    return default_corpus(400_000)


@pytest.fixture(scope="module")
def ours(corpus):
    more = " ".join(["naïve café — “quoted” 中文字 中文 ३३ ½½ 😀😀"] * 20).encode() + b"\xff\xfe\x80 " * 20
    return BPETokenizer.train([corpus.train, more], 1500)


@pytest.fixture(scope="module")
def theirs(ours):
    return tokenizers.Tokenizer.from_str(ours.to_json())


@given(st.one_of(st.binary(), st.lists(st.sampled_from([b"\xff\xfe\x80", b"\xf0\x9f", b" the", b"\xed\xb2\x80"])).map(b"".join)))
def test_any_bytes_come_back(ours, data):
    ids = ours.encode(data)
    assert ids.dtype == np.int64
    assert ours.decode_bytes(ids) == data
    assert b"".join(ours.token_bytes(i) for i in ids) == data
    assert ours.byte_lengths[ids].sum() == len(data)
    assert ours.decode(ids) == data.decode(errors="replace")
    assert ours.encode(data.decode(errors="surrogateescape")).tolist() == ids.tolist()


@settings(max_examples=300)
@given(TEXT)
def test_ids_are_those_of_tokenizers(ours, theirs, text):
    ids = ours.encode(text)
    assert ids.tolist() == theirs.encode(text).ids
    assert ours.decode(ids) == text == theirs.decode(ids.tolist())


def test_ids_of_the_corpus_are_those_of_tokenizers(ours, theirs, corpus):
    for text in (corpus.validation, corpus.test, b"\xc3\xa9" + corpus.validation):  # the last: not ASCII, the other pattern
        assert ours.encode(text).tolist() == theirs.encode(text.decode()).ids
    assert len(ours.encode(corpus.validation)) < 0.5 * len(corpus.validation)


@pytest.mark.parametrize("run", ["a" * 5000, " " * 5000, "ab" * 2500, "the" * 2000, "\n \t" * 1500, "é" * 3000])
def test_one_long_piece(ours, theirs, run):
    assert ours.encode(run).tolist() == theirs.encode(run).ids


def test_every_character_is_of_the_class_that_tokenizers_take_it_for():
    """Between a letter and a number: a letter joins the first, a number the second, white space and the rest neither."""
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    codes = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200)]  # nothing is assigned between the last two
    spaces = range(0x3100)  # where white space is: it joins no space before it, the rest does
    for words in ([f"a{chr(c)}1" for c in codes], [f"! {chr(c)}!" for c in spaces]):
        for start in range(0, len(words), 1000):
            text = "".join(words[start : start + 1000])
            assert piece_pattern(False).findall(text) == [text[a:b] for _, (a, b) in level.pre_tokenize_str(text)]


def test_bytes_keep_their_ids_and_merges_follow_counts():
    learned = BPETokenizer.train("abab abab abc " * 5, 259)
    assert learned.tokens[:256] == [bytes([b]) for b in range(256)]
    assert learned.merges[0] == (b"a", b"b")  # 25 times
    assert learned.tokens[256] == b"ab"
    assert BPETokenizer.train(b"", 256).encode(b"\x00\xff").tolist() == ByteTokenizer().encode(b"\x00\xff").tolist()


def test_training_is_deterministic_and_counts_bytes_that_are_no_text(corpus):
    assert BPETokenizer.train(corpus.validation, 400).fingerprint == BPETokenizer.train(corpus.validation, 400).fingerprint
    assert BPETokenizer.train(b"\xff\xfe " * 5, 257).tokens[256] == b"\xff\xfe"


def test_file_round_trip(ours, tmp_path):
    path = tmp_path / "new" / "tokenizer.json"
    ours.save(path)
    read = BPETokenizer.load(path)
    assert read.to_json() == ours.to_json() == path.read_text(encoding="utf-8")
    assert read.fingerprint == ours.fingerprint != BPETokenizer(ours.tokens, ours.merges[:-1]).fingerprint
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert theirs.get_vocab_size() == read.vocab_size == 1500
    assert theirs.encode("the parser").ids == read.encode("the parser").tolist()
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.encode("the parser").tolist() == ours.encode("the parser").tolist()


@pytest.fixture(scope="module")
def made_by_them(corpus):
    """A file that `tokenizers` made by itself, as GPT-2's: a special token first, ids in the alphabet's order."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus.train.decode()], trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|end|>er", "\n\n"])
    return tokenizer, BPETokenizer.from_json(tokenizer.to_str())


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.sampled_from(["<|end|>", "<|end|>er", "<|end", "|>", "\n\n", "the ", " a", "\n"]), TEXT)).map("".join)
)
def test_a_file_made_by_tokenizers(made_by_them, text):
    theirs, read = made_by_them
    ids = read.encode(text)
    assert ids.tolist() == theirs.encode(text).ids
    assert read.decode(ids) == text


def test_a_file_made_by_tokenizers_is_written_again(made_by_them):
    theirs, read = made_by_them
    assert read.vocab_size == theirs.get_vocab_size() == 602
    again = tokenizers.Tokenizer.from_str(read.to_json())
    assert again.get_vocab() == theirs.get_vocab()
    assert again.encode("the <|end|>er, \n\n").ids == theirs.encode("the <|end|>er, \n\n").ids
    assert BPETokenizer.from_json(read.to_json()).fingerprint == read.fingerprint


def test_ids_of_another_vocabulary_are_refused(ours):
    for wrong in ([0, 1500], [-1], np.array([3, 2000])):
        with pytest.raises(ValueError, match=r"in 0\.\.1499, got (1500|-1|2000)"):
            ours.decode_bytes(wrong)


def changed(ours, path: str, value) -> str:
    """`ours` as JSON with one field changed."""
    content = json.loads(ours.to_json())
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "Unigram", r'model\.type "Unigram" is not supported, only "BPE" is'),
        ("model.dropout", 0.1, r"model\.dropout 0\.1"),
        ("model.ignore_merges", True, r"model\.ignore_merges true"),
        ("model.end_of_word_suffix", "</w>", r'model\.end_of_word_suffix "</w>"'),
        ("normalizer", {"type": "NFC"}, r"normalizer .*NFC.* only null is"),
        ("truncation", {"max_length": 5}, "truncation"),
        ("pre_tokenizer", {"type": "Metaspace"}, 'pre_tokenizer .*Metaspace.* only one of type "ByteLevel"'),
        ("pre_tokenizer", None, "pre_tokenizer null"),
        ("pre_tokenizer.add_prefix_space", True, r"pre_tokenizer\.add_prefix_space true"),
        ("pre_tokenizer.use_regex", False, r"pre_tokenizer\.use_regex false"),
        ("decoder", {"type": "Fuse"}, 'decoder "Fuse"'),
        ("post_processor", {"type": "TemplateProcessing"}, 'post_processor "TemplateProcessing"'),
        ("added_tokens", [{"id": 0, "content": "\x00", "lstrip": True}], "added_tokens .* lstrip true"),
        ("added_tokens", [{"id": 1500, "content": ""}], "added_tokens 1500 content"),
        ("added_tokens", "x", "added_tokens must be a list"),
        ("model.vocab", {"a": 0}, "lacks the byte 0x00"),
        ("model.vocab", {"a": 1}, r"model\.vocab: no token has id 0"),
        ("model.vocab", {"a": "0"}, r"model\.vocab: 'a' has id '0'"),
        ("model.vocab", {"a b": 0}, r"model\.vocab: ' ' in 'a b' is no byte"),
        ("model.vocab", None, 'must have a "vocab"'),
        ("model.merges", ["a b", "ab"], r'model\.merges 1: "ab" must be two tokens'),
        ("model.merges", [["\u0100", "q"]], r"merge 0 \(Ā q\): Āq is not in the vocabulary"),
        ("model", [], 'an object with a "model"'),
    ],
)
def test_unsupported_files_are_refused_by_the_name_of_the_field(ours, path, value, message):
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer.from_json(changed(ours, path, value))


def test_damaged_files_are_refused_with_their_place(ours, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0",\n  "model": oops}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no JSON at line 2, column 12"):
        BPETokenizer.load(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 7"):
        BPETokenizer.load(path)
    path.write_text(ours.to_json()[:-100], encoding="utf-8")
    with pytest.raises(TokenizerError, match="no JSON at line 1"):
        BPETokenizer.load(path)
    with pytest.raises(TokenizerError, match="no JSON at line 1, column 1"):
        BPETokenizer.from_json("")
    with pytest.raises(TokenizerError, match="nested too deeply"):
        BPETokenizer.from_json("[" * 200_000)
    with pytest.raises(TokenizerError, match="cannot be read"):
        BPETokenizer.load(tmp_path / "none.json")


def test_impossible_trainings_are_refused():
    with pytest.raises(TokenizerError, match="at least 256"):
        BPETokenizer.train("text", 255)
    with pytest.raises(TokenizerError, match="min_count must be at least 1, got -1"):
        BPETokenizer.train("text", 300, -1)
    for text in ("", [], "abc"):
        with pytest.raises(TokenizerError, match="2 times"):
            BPETokenizer.train(text, 300)


def test_reading_and_encoding_need_no_library(ours, tmp_path):
    ours.save(tmp_path / "t.json")
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from tdraft.models.bpe import BPETokenizer as T\n"
        f"t = T.load({str(tmp_path / 't.json')!r}); print(t.decode(t.encode('the parser')))\n"
        "try: T.train('aa aa', 300)\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["the parser", 'learning a BPE vocabulary needs tokenizers; pip install "tdraft[hf]"']


def test_command(corpus, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(corpus.validation * 2)
    run_command(LMTokenizer(tmp_path / "t.json", tmp_path / "text.txt", vocab_size=100_000))
    learned = BPETokenizer.load(tmp_path / "t.json")
    out = capsys.readouterr().out
    assert f"{learned.vocab_size} tokens, not 100000" in out
    assert "bytes a token on the validation split" in out
