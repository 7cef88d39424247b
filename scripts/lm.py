"""`tdraft lm`: train a language model on the corpus, count n-grams, evaluate either, or score sentences."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from tdraft.models.bpe import BPETokenizer
from tdraft.models.corpus import Corpus, default_corpus, load_corpus
from tdraft.models.distributed import process_group
from tdraft.models.language_model import LanguageModel, LMConfig, Tokenizer
from tdraft.models.ngram import NGram
from tdraft.models.ngrams.smoothing import Smoothing
from tdraft.models.ngrams.words import WordModel
from tdraft.models.pretrained import PRETRAINED, load_pretrained
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.models.training import TrainConfig, bits_per_byte, train_language_model
from tdraft.scripts.main import UsageError


@dataclass(frozen=True)
class LMTrain:
    """Train a language model; under `torchrun --nproc-per-node N -m tdraft.scripts.main lm train ...` in N processes."""

    run_dir: Path = Path("runs/lm")
    """Where config, progress, TensorBoard events, checkpoint and model.safetensors go."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    tokenizer: Path | None = None
    """A tokenizer.json of `tdraft lm tokenizer`; by default the tokens are bytes."""
    model: LMConfig = field(default_factory=LMConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    teacher: Path | None = None
    """A model to learn from beside the text: a .safetensors file, or the name of one that comes with tdraft."""
    model_seed: int = 0
    """Of the initial weights."""
    resume: bool = False
    """Go on from the checkpoint in run_dir."""
    changed_text: bool = False
    """With --resume: go on although the text is not that of the checkpoint."""
    threads: int | None = None
    """Threads torch may use; by default its own choice."""


@dataclass(frozen=True)
class LMEval:
    """Bits per byte of a model on one split of the corpus; for n-grams of words, their perplexity on its lines."""

    model: Path = Path("transformer")
    """A network (.safetensors, or the name of one that comes with tdraft: transformer, mamba, drafter), a byte n-gram (.npz),
    or an n-gram of words (.arpa, .arpa.gz, .bin)."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Part of the corpus; `all` takes the whole of a file as it is."""
    tokens: int = 200_000
    """Evaluate on at most this many tokens; n-grams of words take all."""
    length: int | None = None
    """Context length of a network; by default its longest."""


@dataclass(frozen=True)
class LMScore:
    """How plausible a sentence is, word by word (bytes for models of bytes): log10 p after what stands before it."""

    text: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Sentences, each in quotation marks."""
    model: Path = Path("transformer")
    """A network (.safetensors, or the name of one that comes with tdraft: transformer, mamba, drafter), a byte n-gram (.npz),
    or an n-gram of words (.arpa, .arpa.gz, .bin)."""
    words: bool = True
    """Print a line for each word or byte, not only the sums."""


@dataclass(frozen=True)
class LMNGram:
    """Count and smooth n-grams of words (or bytes) of a text."""

    output: Path
    """.arpa or .arpa.gz (other tools read it), .bin (mapped into memory), or .npz: modified Kneser-Ney of bytes, a drafter."""
    corpus: Path | None = None
    """A text file, each line a sentence; by default the training split of the Python documentation on this machine."""
    order: int = 5
    """Length of the longest n-grams."""
    smoothing: Smoothing = "kneser-ney"
    """How counts become probabilities."""
    k: float = 1.0
    """Of add-k."""
    prune: tuple[int, ...] = ()
    """By length, n-grams that stand at most so often are left out; `0 0 1`: those of three words and more that stand once."""
    min_count: int = 1
    """Words that stand less often are <unk>."""


class ScoreError(ValueError):
    """A model or a text that cannot be scored."""


def train(config: LMTrain) -> None:
    """Run `tdraft lm train`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    corpus = _corpus(config.corpus, config.max_bytes)
    sizes, tokenizer = config.model, ByteTokenizer()
    if config.tokenizer is not None:
        tokenizer = BPETokenizer.load(config.tokenizer)
        if sizes.vocab_size == LMConfig.vocab_size:  # not given
            sizes = replace(sizes, vocab_size=tokenizer.vocab_size)
    try:
        model = LanguageModel(sizes, config.model_seed, tokenizer)
    except ValueError as error:
        raise UsageError(str(error)) from None
    texts = tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)
    options: dict[str, Any] = {"resume": config.resume, "changed_text": config.changed_text}
    if config.teacher is not None:
        options["teacher"] = load_pretrained(config.teacher)
    with process_group() as rank:
        if rank == 0:
            print(f"{model.n_parameters:,} parameters, {len(texts[0]):,} training tokens of {corpus.name}")
        result = train_language_model(model, *texts, config.training, config.run_dir, **options)
    if rank == 0:
        print(
            f"{result.bits_per_byte:.3f} bits per byte on the first of the validation text after {result.step} steps, "
            f"{result.seconds:.0f} s; model {model.fingerprint} in {config.run_dir / 'model.safetensors'}"
        )


def evaluate(config: LMEval) -> float:
    """Run `tdraft lm eval`."""
    model = _load(config.model)
    text, name = _split(config)
    if isinstance(model, WordModel):
        found = model.perplexity(line for line in text.decode(errors="surrogateescape").split("\n") if line.strip())
        print(
            f"perplexity {found.with_unknown:.4f} with unknown words, {found.without_unknown:.4f} without, on {found.tokens:,} "
            f"words ({found.unknown:,} unknown; {found.sentences:,} lines, whose ends count) of {name}"
        )
        return found.with_unknown
    tokenizer, unit = _tokenizer(model)
    tokens = tokenizer.encode(text)[: config.tokens]
    bits = model.bits_per_token(tokens) if isinstance(model, NGram) else bits_per_byte(model, tokens, length=config.length)
    print(f"{bits:.4f} bits per byte on {len(tokens):,} {unit}s of {name}, model {model.fingerprint}")
    return bits


def ngram(config: LMNGram) -> None:
    """Run `tdraft lm ngram`."""
    if config.corpus is None:
        text = default_corpus().train
    else:
        text = _read(config.corpus)
    if config.output.suffix == ".npz":
        if config.smoothing != "kneser-ney" or config.prune or config.min_count != 1:
            raise ScoreError(
                ".npz holds modified Kneser-Ney of bytes, without prune and min_count; give .arpa or .bin for others"
            )
        model = NGram.fit(_tokens(text), config.order)
    else:
        lines = (line for line in text.decode(errors="surrogateescape").split("\n") if line.strip())
        model = WordModel.fit(
            lines, config.order, config.smoothing, k=config.k, prune=config.prune, min_count=config.min_count
        )  # fmt: skip
    model.save(config.output)
    print(f"{model!r} in {config.output}")


def score(config: LMScore) -> None:
    """Run `tdraft lm score`."""
    model = _load(config.model)
    if not config.text:
        raise ScoreError('nothing to score; give a sentence in quotation marks: tdraft lm score "a sentence" --model FILE')
    for text in config.text:
        if isinstance(model, WordModel):
            found = model.score(text)
            pieces, log10, unit = found.words, found.log10, "word"
            notes = ["unknown" if u else f"{m}-gram" for u, m in zip(found.unknown, found.matched)]
        else:
            tokenizer, unit = _tokenizer(model)
            tokens = tokenizer.encode(text)
            if not len(tokens):
                raise ScoreError("an empty text has no bytes to score; give a sentence")
            log10 = np.log10(model.probabilities(tokens)) if isinstance(model, NGram) else _log10(model, tokens)
            pieces = [repr(tokenizer.decode_bytes([t]))[2:-1] for t in tokens.tolist()]
            notes = [""] * len(pieces)
        if config.words:
            for piece, p, note in zip(pieces, log10, notes):
                print(f"{p:9.4f}  {piece}  {note}".rstrip())
        unknown = sum(note == "unknown" for note in notes)
        print(
            f"{log10.sum():9.4f}  log10 p of {text!r}; {log10.mean():.4f} a {unit}, perplexity {10 ** -log10.mean():.4g}"
            + (f", {unknown} unknown" if unit == "word" else "")
        )


def _log10(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """log10 p of each token after those before it; the first, of which a network says nothing, is taken as one of V."""
    longest = model.config.max_length
    if len(tokens) > longest:
        raise ScoreError(f"the text has {len(tokens)} tokens, the model reads {longest} at most; give a shorter one")
    with torch.inference_mode():
        logits, _ = model(torch.from_numpy(tokens[None]))
    p = torch.log_softmax(logits[0, :-1].double(), -1).gather(1, torch.from_numpy(tokens[1:, None]))[:, 0]
    return np.concatenate([[-np.log10(model.config.vocab_size)], p.numpy() / np.log(10)])


def _tokenizer(model: LanguageModel | NGram) -> tuple[Tokenizer, str]:
    """What makes a model's tokens, and what one of them is called."""
    tokenizer = ByteTokenizer() if isinstance(model, NGram) else model.tokenizer
    return tokenizer, "byte" if isinstance(tokenizer, ByteTokenizer) else "token"


def _load(path: Path) -> LanguageModel | NGram | WordModel:
    if path.suffix == ".npz":
        return NGram.load(path)
    if path.suffix == ".safetensors" or str(path) in PRETRAINED:
        return load_pretrained(path)
    if path.name.endswith((".arpa", ".arpa.gz", ".bin")):
        return WordModel.load(path)
    names = ", ".join(PRETRAINED)
    raise ScoreError(f"{path} is no language model: give .safetensors, .npz, .arpa, .arpa.gz or .bin, or one of {names}")


def _split(config: LMEval) -> tuple[bytes, str]:
    """The text to evaluate on, and its name."""
    if config.split == "all":
        if config.corpus is None:
            raise ScoreError("--split all takes a file: give it as --corpus")
        return _read(config.corpus), config.corpus.name
    corpus = _corpus(config.corpus, config.max_bytes)
    return getattr(corpus, config.split), f"the {config.split} split of {corpus.name}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ScoreError(f"{path} cannot be read ({error.strerror}); give a text file") from None


def _corpus(path: Path | None, max_bytes: int | None) -> Corpus:
    return default_corpus(max_bytes) if path is None else load_corpus(path)


def _tokens(text: bytes | str) -> np.ndarray:
    return ByteTokenizer().encode(text)
