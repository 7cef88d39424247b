"""Hugging Face's `tokenizer.json`, as far as byte-level BPE needs it: reading with every check, and writing."""

import json
import re
from collections.abc import Sequence
from typing import Any


class TokenizerError(ValueError):
    """A tokenizer.json that is damaged or asks for what is not supported, or a text that no tokenizer can be learned from."""


def write_json(tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], added: Sequence[dict[str, Any]]) -> str:
    """The text of a tokenizer.json with GPT-2's pieces; see `BPETokenizer` for the arguments."""
    contents = {entry["id"]: entry["content"] for entry in added}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
        "vocab": {contents.get(i, byte_name(token)): i for i, token in enumerate(tokens)},
        "merges": [f"{byte_name(a)} {byte_name(b)}" for a, b in merges],
    }
    content = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added), "normalizer": None},
        **{"pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model},
    }
    return json.dumps(content, ensure_ascii=False)


def read_json(text: str) -> tuple[list[bytes], list[tuple[bytes, bytes]], list[dict[str, Any]]]:
    """The tokens, merges and added tokens of a tokenizer.json.

    :raises TokenizerError: no JSON (with line and column), or what would give other ids than ours (with the field's name)
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise TokenizerError(f"no JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise TokenizerError("no tokenizer: the JSON is nested too deeply") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise TokenizerError('no tokenizer: a tokenizer.json is an object with a "model"')
    model, added = content["model"], content.get("added_tokens") or []
    _check_supported(content, model)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise TokenizerError('model must have a "vocab", string -> id, and a list of "merges"')
    return _tokens(vocab, _added(added)), read_merges(merges), added


def _check_supported(content: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse whatever would give other ids than ours."""
    level = content.get("pre_tokenizer")
    if not isinstance(level, dict) or level.get("type") != "ByteLevel":
        raise _unsupported("pre_tokenizer", level, 'one of type "ByteLevel"')
    wanted = [  # field, its value, what is supported
        *((name, content.get(name), (None,)) for name in ("truncation", "padding", "normalizer")),
        ("model.type", model.get("type", "BPE"), ("BPE",)),
        ("pre_tokenizer.add_prefix_space", level.get("add_prefix_space", True), (False,)),
        ("pre_tokenizer.use_regex", level.get("use_regex", True), (True,)),
        *((name, _type(content.get(name)), ("ByteLevel", None)) for name in ("post_processor", "decoder")),
        *((f"model.{name}", model.get(name), (None, "")) for name in ("continuing_subword_prefix", "end_of_word_suffix")),
        *((f"model.{name}", model.get(name), (None, False)) for name in ("dropout", "ignore_merges")),
    ]
    for field, value, supported in wanted:
        if value not in supported:
            raise _unsupported(field, value, " or ".join(map(json.dumps, supported)))


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else part


def _unsupported(field: str, value: object, supported: str) -> TokenizerError:
    return TokenizerError(f"{field} {json.dumps(value)[:80]} is not supported, only {supported} is")


def _added(entries: Any) -> dict[str, int]:
    """content -> id of added tokens, all of which must be plain."""
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), int) for e in entries):
        raise TokenizerError('added_tokens must be a list of objects with "id" and "content"')
    for entry in entries:
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag):
                raise _unsupported(f"added_tokens {entry.get('content')!r} {flag}", True, "false")
        if not isinstance(entry.get("content"), str) or not re.fullmatch("[^\ud800-\udfff]+", entry["content"]):
            raise _unsupported(f"added_tokens {entry['id']} content", entry.get("content"), "a text")
    if len({bool(entry.get("normalized")) for entry in entries}) > 1:  # they would be looked for in two rounds
        raise TokenizerError("added_tokens that differ in `normalized` are not supported, only all or none is")
    return {entry["content"]: entry["id"] for entry in entries}


def _tokens(vocab: dict[str, Any], added: dict[str, int]) -> list[bytes]:
    """The bytes of ids 0..V-1."""
    names: dict[Any, str] = {}
    for name, i in [*vocab.items(), *added.items()]:
        if type(i) is not int or names.setdefault(i, name) != name or vocab.get(name, i) != i:
            raise TokenizerError(f"model.vocab: {name!r} has id {i!r}; ids must be integers, one for each token")
    holes = [i for i in range(len(names)) if i not in names]
    if holes:
        raise TokenizerError(
            f"model.vocab: no token has id {holes[0]}; {len(names)} tokens must have the ids 0 to {len(names) - 1}"
        )
    ordered = [names[i] for i in range(len(names))]
    return [name.encode() if name in added else _token(name, "model.vocab") for name in ordered]


def read_merges(merges: Sequence[Any]) -> list[tuple[bytes, bytes]]:
    """The pairs of a list of merges, each written as "a b" or as ["a", "b"]."""
    pairs = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise TokenizerError(f'model.merges {rank}: {json.dumps(merge)[:80]} must be two tokens, "a b" or ["a", "b"]')
        pairs.append((_token(pair[0], f"model.merges {rank}"), _token(pair[1], f"model.merges {rank}")))
    return pairs


# Bytes as printable characters, which is how tokenizer.json writes tokens


def _alphabet() -> str:
    """GPT-2's character for each byte: itself where it is printable, the next unused one from U+0100 on where it is not."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return "".join(chr(b if b in printable else next(others)) for b in range(256))


ALPHABET = _alphabet()
_BYTES = {character: b for b, character in enumerate(ALPHABET)}


def byte_name(token: bytes) -> str:
    """A token as tokenizer.json writes it."""
    return token.decode("latin-1").translate(ALPHABET)


def _token(name: str, where: str) -> bytes:
    """The bytes that `byte_name` wrote."""
    try:
        return bytes(map(_BYTES.__getitem__, name))
    except KeyError as error:
        raise TokenizerError(
            f"{where}: {error.args[0]!r} in {name!r} is no byte; only byte-level vocabularies, like GPT-2's, are supported"
        ) from None
