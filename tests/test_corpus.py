"""The corpus: deterministic, deduplicated before the split, and clear about what it cannot read; and the byte tokenizer."""

import ast
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdraft.models.corpus import SPLITS, CorpusError, default_corpus, load_corpus
from tdraft.models.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def corpus():
    return default_corpus()


def paragraphs(text: bytes) -> list[bytes]:
    return [b" ".join(p.split()) for p in re.split(rb"\n\s*\n", text) if p.strip()]


def prose(n: int, name: str = "") -> str:
    """n different paragraphs."""
    return "\n\n".join(f"Paragraph {i} of {name}: " + " ".join(f"word{(i * j) % 97}" for j in range(30)) for i in range(n))


def test_default_splits_are_large_enough(corpus):
    assert 3_500_000 < len(corpus.train) < 8_000_000
    assert len(corpus.validation) > 150_000
    assert len(corpus.test) > 150_000
    assert corpus.train == b"\n\n".join(corpus.documents["train"])


def test_default_is_mainly_documentation(corpus):
    assert b"Format Specification Mini-Language" in corpus.train + corpus.validation + corpus.test
    everything = b"\n".join(getattr(corpus, split) for split in SPLITS)
    assert b"Return a string representation" in everything or b"Return True if" in everything
    code = sum(len(line) for line in everything.split(b"\n") if re.match(rb"\s*(def|return|if|for|import|self\.)\b", line))
    assert code < 0.3 * len(everything)


def test_no_paragraph_stands_twice(corpus):
    found = [paragraph for split in SPLITS for paragraph in paragraphs(getattr(corpus, split))]
    assert len(set(found)) == len(found)


def test_same_in_another_process(corpus):
    command = "from tdraft.models.corpus import default_corpus as c; print(c().hash)"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == corpus.hash
    assert len(corpus.hash) == 64


def test_max_bytes_keeps_the_proportions(corpus):
    small = default_corpus(400_000)
    assert abs(sum(len(getattr(small, split)) for split in SPLITS) - 400_000) < 4_000
    assert len(small.validation) > 10_000
    assert corpus.train.startswith(small.documents["train"][0])
    with pytest.raises(CorpusError, match="at least 4096, got 10"):
        default_corpus(10)


def test_a_file_is_split_by_blocks_without_repeats(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(prose(300) + "\n\n" + prose(300))
    corpus = load_corpus(path)
    assert corpus.name == "book.txt"
    found = [paragraph for split in SPLITS for paragraph in paragraphs(getattr(corpus, split))]
    assert sorted(found) == sorted(paragraphs(prose(300).encode()))
    assert 0.03 < len(corpus.test) / path.stat().st_size * 2 < 0.12
    assert load_corpus(path).hash == corpus.hash


def test_a_file_without_blank_lines_is_cut(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text(" ".join(f"number{i}" for i in range(5000)))
    corpus = load_corpus(path)
    assert all(getattr(corpus, split) for split in SPLITS)


def test_a_folder_is_split_by_file(tmp_path):
    for i in range(40):
        (tmp_path / f"doc{i}.txt").write_text(prose(12, f"doc{i}"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0" * 100)
    (tmp_path / ".hidden").write_text(prose(30, "hidden"))
    corpus = load_corpus(tmp_path)
    assert sum(len(documents) for documents in corpus.documents.values()) == 40
    assert all(len(set(re.findall(rb"of (doc\d+):", text))) == 1 for split in SPLITS for text in corpus.documents[split])
    assert all(corpus.documents[split] for split in SPLITS)
    assert b"hidden" not in corpus.train


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"  \n\n ", "is empty"),
        (b"text\0" * 5000, "is binary"),
        (bytes(range(128, 256)) * 100, "is binary"),
        (b"short text", "at least 4096"),
        (b"the same paragraph\n\n" * 5000, "at least 4096"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as error:
        load_corpus(path)
    assert "\n" not in str(error.value)


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0" * 10_000)
    with pytest.raises(CorpusError, match="holds no text file"):
        load_corpus(tmp_path)


def test_docstrings_are_taken_out_of_the_code(corpus):
    everything = b"\n\n".join(getattr(corpus, split) for split in SPLITS).decode()
    import json

    first = ast.get_docstring(ast.parse(open(json.__file__).read())).split("\n\n")[0]
    assert everything.count(first) == 1
    assert "json.dumps(obj, *, skipkeys=False" in everything


@given(st.binary())
def test_tokenizer_round_trip(data):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(data)
    assert ids.dtype == np.int64
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode(errors="replace")


def test_tokenizer_text_and_errors():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("na\u00efve \u2192 caf\u00e9")) == "na\u00efve \u2192 caf\u00e9"
    assert tokenizer.encode("").shape == (0,)
    with pytest.raises(ValueError, match=r"0\.\.255, got 256"):
        tokenizer.decode([65, 256])
