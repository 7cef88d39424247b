"""Text to learn from: what every CPython carries, or the user's own files; deduplicated first, then split.

The default text needs no download: the language reference (`pydoc_data.topics`), the docstrings of the standard library, the
docs of the built-ins, and a moderate amount of source. A fifth of the topics' paragraphs repeats, so repeats are dropped *before*
the split; and the split is by a hash of the document's group (a module with its accelerator and its package), so that no
paragraph, and few near-copies, stand in two splits.
"""

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # share of the bytes that goes to validation, and as much to test
SOURCE_CAP = 11000  # bytes of code taken from one file of the standard library, beside its docstrings
BLOCK = 4096  # a lone file is split in blocks of about this many bytes
MIN_BYTES = 4096  # less text than this is refused
MIN_FILES = 10  # a folder of fewer files is split block by block
MAX_UNDECODABLE = 0.05  # share of bytes that are not UTF-8, above which a file counts as binary

_SKIPPED_FOLDERS = set(
    "test tests idle_test idlelib lib2to3 encodings pydoc_data site-packages dist-packages lib-dynload ensurepip tkinter"
    " turtledemo distutils __pycache__ __phello__".split()
)
_SKIPPED_FILES = re.compile(
    r"_sysconfigdata|sitecustomize|usercustomize|turtle|_pylong|__hello__|antigravity|this|stringprep|.*\btables?\b"
)
_OPTIONAL = "math cmath array zlib binascii select unicodedata _struct _datetime _json _random _socket _csv _pickle".split()
_SAME_GROUP = {"posix": "os", "nt": "os", "posixpath": "path", "ntpath": "path", "genericpath": "path"}

Document = tuple[str, str, bytes]  # group, name, text


class CorpusError(ValueError):
    """The text is missing, empty, binary or too small; the message says which and what to do."""


@dataclass(frozen=True)
class Corpus:
    """A deduplicated text in three splits.

    :param name: where it comes from
    :param documents: split -> list of documents, bytes
    """

    name: str
    documents: dict[str, list[bytes]]

    @property
    def train(self) -> bytes:
        return b"\n\n".join(self.documents["train"])

    @property
    def validation(self) -> bytes:
        return b"\n\n".join(self.documents["validation"])

    @property
    def test(self) -> bytes:
        return b"\n\n".join(self.documents["test"])

    @property
    def hash(self) -> str:
        """sha256 (hex) of the three splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(len(split).to_bytes(8, "little") + split)
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {sum(map(len, self.documents[split]))} B" for split in SPLITS)
        return f"Corpus({self.name}: {sizes}, {self.hash[:16]})"


def default_corpus(max_bytes: int | None = None) -> Corpus:
    """The text that every CPython carries: about 4.2 MB for training and 0.24 MB each for validation and test.

    The same for the same CPython; another version has another text, and another `hash`.

    :param max_bytes: keep about this many bytes, the splits in proportion; None keeps all
    :raises CorpusError: where the standard library's source is stripped, or max_bytes is below 4096
    """
    if max_bytes is not None and max_bytes < MIN_BYTES:
        raise CorpusError(f"max_bytes must be at least {MIN_BYTES}, got {max_bytes}")
    documents = [*_topics(), *_builtin_docs(), *_standard_library(Path(sysconfig.get_path("stdlib")))]
    version = ".".join(map(str, sys.version_info[:3]))
    return _shortened(_build(f"cpython-{version}", documents), max_bytes)


def load_corpus(path: str | Path) -> Corpus:
    """The user's own text: a file, or a folder of files (binary and hidden ones in it are passed over).

    A file is split in blocks of whole paragraphs by the hash of each block's first words; a folder by the hash of the file's
    name.

    :raises CorpusError: missing, unreadable, empty, binary, or less than 4096 bytes after dropping repeated paragraphs
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        texts = [(p.relative_to(path).as_posix(), _read(p)) for p in files]
        documents = [(name, name, text) for name, text in texts if text.strip() and not _is_binary(text)]
        if not documents:
            raise CorpusError(f"{path} holds no text file ({len(files)} files seen); give a folder of UTF-8 text files")
    else:
        text = _read(path)
        if not text.strip():
            raise CorpusError(f"{path} is empty; give a file of at least {MIN_BYTES} bytes of text")
        if _is_binary(text):
            raise CorpusError(f"{path} is binary or not UTF-8; convert it to UTF-8 text")
        documents = [(path.name, path.name, text)]
    if len(documents) < MIN_FILES:
        documents = [block for _, _, text in documents for block in _blocks(text)]
    return _build(path.name or str(path.resolve()), documents)


# Splitting


def _build(name: str, documents: Iterable[Document]) -> Corpus:
    """Drop repeated paragraphs, order the groups by the hash of their names, and deal them out: test, validation, train.

    A group too large for a held-out split goes to train.
    """
    groups: dict[str, list[bytes]] = defaultdict(list)
    for group, _, text in _deduplicated(documents):
        groups[group].append(text)
    total = sum(len(text) for texts in groups.values() for text in texts)
    if total < MIN_BYTES or len(groups) < 3:
        raise CorpusError(
            f"{name} has {total} bytes without repeated paragraphs, at least {MIN_BYTES} are needed; give more text"
        )
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    filled: dict[str, int] = dict.fromkeys(SPLITS, 0)
    quota = HELD_OUT * total
    for group in sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest()):
        size = sum(map(len, groups[group]))
        fits = [split for split in ("test", "validation") if filled[split] < quota and filled[split] + size < 2 * quota]
        split: str = fits[0] if fits else "train"
        splits[split] += groups[group]
        filled[split] += size
    for split in ("test", "validation"):  # few, large groups: the smallest that is left will do
        if not splits[split]:
            splits[split].append(splits["train"].pop(min(range(len(splits["train"])), key=lambda i: len(splits["train"][i]))))
    return Corpus(name, splits)


def _paragraphs(text: bytes) -> list[bytes]:
    """The text split at blank lines."""
    return [part.strip(b"\r\n").rstrip() for part in re.split(rb"\n[ \t\r]*\n", text) if part.strip()]


def _deduplicated(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without the paragraphs that stood before, in any of them, apart from white space."""
    seen: set[bytes] = set()
    for group, name, text in documents:
        kept = []
        for paragraph in _paragraphs(text):
            key = b" ".join(paragraph.split())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            yield group, name, b"\n\n".join(kept)


def _blocks(text: bytes) -> Iterator[Document]:
    """The text in blocks of whole paragraphs, each a group of its own; a paragraph longer than a block is cut."""
    size = max(256, min(BLOCK, len(text) // 60))
    block: list[bytes] = []
    length = 0
    for paragraph in _paragraphs(text):
        for start in range(0, len(paragraph), size):
            block.append(paragraph[start : start + size])
            length += len(block[-1])
            if length >= size:
                yield _as_block(block)
                block, length = [], 0
    if block:
        yield _as_block(block)


def _as_block(paragraphs: list[bytes]) -> Document:
    text = b"\n\n".join(paragraphs)
    name = hashlib.sha256(text).hexdigest()
    return name, name, text


def _shortened(corpus: Corpus, max_bytes: int | None) -> Corpus:
    """The first documents of each split, so that the whole has about max_bytes."""
    total = sum(len(text) for texts in corpus.documents.values() for text in texts)
    if max_bytes is None or max_bytes >= total:
        return corpus
    documents = {}
    for split, texts in corpus.documents.items():
        room = int(max_bytes * sum(map(len, texts)) / total)
        documents[split] = []
        for text in texts:
            if room <= 0:
                break
            documents[split].append(text[:room])
            room -= len(text)
    return Corpus(corpus.name, documents)


# Reading


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"{path} does not exist; give a text file or a folder of text files") from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _is_binary(text: bytes) -> bool:
    """A NUL byte, or many bytes that are not UTF-8."""
    return b"\0" in text or text.decode(errors="ignore").encode().__len__() < (1 - MAX_UNDECODABLE) * len(text)


# What CPython carries


def _group(module: str) -> str:
    """What must stay in one split: the top-level package, with its accelerator (_io, _pyio and io are one)."""
    top = module.split(".")[0]
    top = _SAME_GROUP.get(top, top)
    return re.sub(r"^_(py)?", "", top) or top


def _topics() -> Iterator[Document]:
    """The chapters of the language reference that `help()` shows."""
    topics = import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield f"topic {name}", f"topics/{name}", topics[name].encode()


def _builtin_docs() -> Iterator[Document]:
    """The docs of modules written in C: what `help()` says on each function, class and method."""
    for module_name in sorted({*sys.builtin_module_names, *_OPTIONAL}):
        try:
            module = import_module(module_name)
        except ImportError:
            continue
        for name, member in sorted(vars(module).items()):
            member = getattr(module, f"__{name}__", member)  # a hook of sys that a program may have replaced
            text = "\n\n".join(_member_docs(name, member))
            if text and not name.startswith("__"):
                group = f"builtin {name}" if module_name == "builtins" else _group(module_name)
                yield group, f"{module_name}.{name}", text.encode()


def _member_docs(name: str, member: object) -> Iterator[str]:
    doc = getattr(member, "__doc__", None)
    documented = inspect.isclass(member) or inspect.isbuiltin(member) or inspect.ismethoddescriptor(member)
    if not isinstance(doc, str) or not (documented or inspect.isgetsetdescriptor(member)):
        return
    signature = getattr(member, "__text_signature__", None) or ""
    yield f"{name}{signature.replace('$', '')}\n{inspect.cleandoc(doc)}"
    if inspect.isclass(member):
        for key, value in sorted(vars(member).items()):
            if key not in ("__doc__", "__class__"):
                yield from _member_docs(f"{name}.{key}", value)


def _standard_library(root: Path) -> Iterator[Document]:
    """Each module's docstrings, then the beginning of its code."""
    count = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-"))
        for file in sorted(files):
            if not file.endswith(".py") or _SKIPPED_FILES.match(file):
                continue
            path = Path(folder, file)
            module = path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
            docs, code = _docs_and_code(path.read_text(encoding="utf-8", errors="replace"), module)
            count += 1
            yield _group(module), module, f"{docs}\n\n{_cut(code, SOURCE_CAP)}".encode(errors="replace")
    if count < 100:
        raise CorpusError(f"{root} holds {count} modules of the standard library's source; give a text of your own with --text")


def _docs_and_code(source: str, module: str) -> tuple[str, str]:
    """A module's docstrings, each under its signature, and its source without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a template, not a module
            return "", source
    docs: list[str] = []
    lines: list[str | None] = list(source.split("\n"))

    def visit(node, name: str, signature: str) -> None:
        doc = ast.get_docstring(node)
        if doc:
            docs.append(f"{name}{signature}\n{doc}")
            first = node.body[0]
            for row in range(first.lineno - 1, first.end_lineno):
                lines[row] = None
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                visit(child, f"{name}.{child.name}", "")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}.{child.name}", f"({ast.unparse(child.args)})")

    visit(tree, module, "")
    return "\n\n".join(docs), "\n".join(line for line in lines if line is not None)


def _cut(text: str, length: int) -> str:
    """The beginning of the text, up to the last blank line before `length` characters."""
    if len(text) <= length:
        return text
    end = text.rfind("\n\n", 0, length)
    return text[: end if end > 0 else length]


def draw_prompts(text: bytes, count: int, length: int, seed: int) -> np.ndarray:
    """(count, length) int64 windows of a text, at random places that don't overlap where there is room."""
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    places = max(len(tokens) // length, 1)
    rng = np.random.default_rng(seed)
    starts = rng.choice(places, size=count, replace=count > places) * length
    return np.stack([tokens[s : s + length] for s in np.minimum(starts, len(tokens) - length)])
