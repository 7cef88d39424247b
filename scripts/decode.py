"""`tdraft decode`: continue a prompt under a policy. The text is that of plain decoding with the same key, only sooner."""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdraft.agents.decoding_baselines import static
from tdraft.agents.policy_files import load_policy
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.decoder import SpeculativeDecoder, until_stop
from tdraft.models.decoding.drafters import NGramDrafter
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.session import Session
from tdraft.models.language_model import LanguageModel
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.scripts.loading import at_least, check_context, load_drafter_of, load_target
from tdraft.scripts.main import UsageError

WARM_UP = 8  # bytes decoded before the clock starts, so that it doesn't count compiling


@dataclass(frozen=True)
class Decode:
    """Continue a prompt: text on stdout as it is decided, one line of what it cost on stderr."""

    target: Path
    """A language model: .safetensors, or the name of one that comes with tdraft (transformer, mamba)."""
    drafter: str | None = None
    """An n-gram model (.npz), a one-layer language model or the target's heads (.safetensors), prompt-lookup, suffix, or
    suffix:FILE, which looks into a file as well; none decodes plainly."""
    policy: Path | None = None
    """When to stop drafting: a file of `tdraft policies trace --save`."""
    static: int | None = None
    """In place of --policy: always draft so many bytes."""
    cost: Path | None = None
    """The clock of this machine (`tdraft trace --cost`); a policy that was made for another one is refused."""
    prompt: str | None = None
    """The text to continue; by default stdin."""
    prompt_file: Path | None = None
    """In place of --prompt: a file with the text to continue."""
    max_tokens: int = 256
    """Bytes to decode at most."""
    stop: tuple[str, ...] = ()
    """Strings before which the text ends."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest bytes; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest bytes that make up this probability."""
    key: int = 0
    """Seed of the noise: the same key gives the same text under every policy."""
    threads: int = 1
    """Threads torch may use: decoding so small a model is slower on two."""


def run(options: Decode) -> None:
    """Run `tdraft decode`."""
    check(options)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    torch.set_num_threads(options.threads)
    prompt = read_prompt(options)
    decoder = make_decoder(options, load_target(options.target), sampling, len(prompt))
    tokens = ByteTokenizer().encode(prompt)
    decoder.generate(tokens, min(WARM_UP, options.max_tokens), key=options.key)
    session = decoder.session(tokens, options.max_tokens, key=options.key)
    text = codecs.getincrementaldecoder("utf-8")("replace")
    text.decode(prompt)  # a character that the prompt began is whole when the text completes it
    count = 0
    for token in until_stop(decoder.rounds(session), (), [ByteTokenizer().encode(s).tolist() for s in options.stop]):
        emit(text.decode(bytes([token])))
        count += 1
    emit(text.decode(b"", final=True))
    if sys.stdout.isatty():
        emit("\n")
    print(accounting(session, count, options.max_tokens), file=sys.stderr)


def check(options: Decode) -> None:
    """Refuse options that contradict each other or are out of range."""
    at_least(1, max_tokens=options.max_tokens, threads=options.threads)
    at_least(0, key=options.key)
    if options.policy is not None and options.static is not None:
        raise UsageError("give --policy or --static, not both")
    decides = options.policy is not None or options.static is not None
    if decides and options.drafter is None:
        raise UsageError("--policy and --static need a --drafter; without one, decoding is plain")
    if options.drafter is not None and not decides:
        raise UsageError("a --drafter needs --policy FILE or --static K, which say how far to draft")
    if options.static is not None:
        at_least(1, static=options.static)
    if options.prompt is not None and options.prompt_file is not None:
        raise UsageError("give --prompt or --prompt-file, not both")
    if "" in options.stop:
        raise UsageError("a --stop string must not be empty")


def read_prompt(options: Decode) -> bytes:
    """The prompt's bytes, at least two."""
    if options.prompt is not None:
        prompt = options.prompt.encode(errors="surrogateescape")
    elif options.prompt_file is not None:
        prompt = options.prompt_file.read_bytes()
    else:
        prompt = sys.stdin.buffer.read()
    if len(prompt) < 2:
        raise UsageError(f"the prompt must hold at least 2 bytes, got {len(prompt)}")
    return prompt


def make_decoder(options: Decode, target: LanguageModel, sampling: Sampling, length: int) -> SpeculativeDecoder:
    """The decoder that the options ask for, for a prompt of `length` bytes."""
    if options.drafter is None:
        return SpeculativeDecoder(target, sampling=sampling)
    drafter = load_drafter_of(options.drafter, target)
    cost = None if options.cost is None else CostModel.load(options.cost)
    if options.policy is None:
        k = int(options.static or 0)
        policy, calibration, depth = DraftPolicy(f"static k={k}", static, np.array([float(k)])), None, k
    else:
        saved = load_policy(options.policy, drafter=drafter.fingerprint, target=target.fingerprint, cost=cost)
        policy, calibration, depth, cost = saved.policy, saved.calibration, saved.cost.max_drafted, saved.cost
        if saved.temperature != sampling.temperature:
            print(
                f"note: {options.policy} was made at temperature {saved.temperature:g}; the text is exact at any, but another "
                "policy may be faster",
                file=sys.stderr,
            )
    check_context(drafter, min(target.config.max_length, length + options.max_tokens + depth))
    if isinstance(drafter, NGramDrafter) and cost is not None:
        drafter.token_seconds = cost.draft * cost.unit_seconds
    return SpeculativeDecoder(target, drafter, policy, calibration=calibration, sampling=sampling, max_drafted=depth)


def emit(text: str) -> None:
    """Write to stdout at once, as UTF-8 whatever the locale is."""
    if text:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def accounting(session: Session, count: int, asked: int) -> str:
    """What `count` bytes have cost, and why they are no more."""
    account = session.account
    if count < len(session.emitted):
        reason = "stop"
    else:
        reason = "length" if count >= asked else f"the target's context of {session.target.config.max_length} is full"
    parts = [f"verify {account.verify_seconds:.3f}"]
    if isinstance(session.drafter, NGramDrafter) and session.drafter.token_seconds == 0.0:
        parts.append(f"draft and policy {account.policy_seconds:.3f}")  # one compiled call: only a measured clock parts them
    elif session.drafter is not None:
        parts += [f"draft {account.draft_seconds:.3f}", f"policy {account.policy_seconds:.3f}"]
    drafts = f"{account.drafted} drafted, {account.accepted} accepted, {account.bonus} bonus"
    seconds = f"{account.seconds:.3f} s ({', '.join(parts)}), {count / account.seconds:.0f} bytes/s"
    return f"{count} bytes ({reason}) in {account.target_calls} target calls: {drafts}; {seconds}"
