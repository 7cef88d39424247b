"""The `tdraft` command. A command's module is imported only when it is called, so that `tdraft --help` is fast."""

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

# Adding a command is adding a line. Its module has `main(argv) -> int | None`, or a dict `COMMANDS` of subcommand -> (dataclass
# with the options, function that takes one).
COMMANDS = {
    "train": ("tdraft.scripts.train", "train an agent on a Gymnasium env"),
    "evaluate": ("tdraft.scripts.evaluate", "play episodes with trained agents"),
    "plot": ("tdraft.scripts.plot", "draw learning curves of runs"),
    "lm": ("tdraft.scripts.lm", "train, evaluate and sample language models; n-grams, tokenizers, embeddings, drafting heads"),
    "trace": ("tdraft.scripts.trace", "record the exact outcome of every decoding policy on a text"),
    "policies": ("tdraft.scripts.policies", "compare decoding policies with the best rules and bounds"),
    "decode": ("tdraft.scripts.decode", "continue a prompt under a decoding policy"),
    "demo": ("tdraft.scripts.demo", "learn when to stop drafting, and compare with every baseline"),
    "bench": ("tdraft.scripts.bench", "measure speeds against peers on this machine"),
    "reproduce": ("tdraft.scripts.reproduce.command", "run a textbook's experiments, with standard errors"),
}
# Modules that keep their dataclasses and functions plain: subcommand -> (dataclass, function) or (dataclass, function, module
# of its own); "" where there is no subcommand.
SUBCOMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "lm": {
        "train": ("LMTrain", "train"),
        "ngram": ("LMNGram", "ngram"),
        "eval": ("LMEval", "evaluate"),
        "score": ("LMScore", "score"),
        "sample": ("LMSample", "sample", "tdraft.scripts.lm_sample"),
        "tokenizer": ("LMTokenizer", "tokenizer", "tdraft.scripts.lm_tokenizer"),
        "embed": ("LMEmbed", "embed", "tdraft.scripts.lm_embed"),
        "embed-start": ("LMEmbedStart", "start", "tdraft.scripts.lm_embed"),
        "heads": ("LMHeads", "heads", "tdraft.scripts.lm_heads"),
    },
    "trace": {"": ("RecordTrace", "run")},
    "policies": {
        "trace": ("TraceTable", "trace"),
        "simulator": ("SimulatorTable", "simulator", "tdraft.scripts.policies_simulator"),
        "accept": ("AcceptTable", "accept", "tdraft.scripts.policies_accept"),
    },
    "decode": {"": ("Decode", "run")},
    "evaluate": {"": ("Evaluate", "run")},
    "plot": {"": ("Plot", "run")},
    "demo": {"": ("Demo", "run")},
    "bench": {
        "env": ("Bench", "env"),
        "tabular": ("TabularBench", "tabular", "tdraft.scripts.bench_tabular"),
        "linear": ("LinearBench", "linear", "tdraft.scripts.bench_linear"),
        "decode": ("DecodeBench", "decode", "tdraft.scripts.bench_decode"),
        "ngram": ("NGramBench", "ngram", "tdraft.scripts.bench_ngram"),
        "backbones": ("BackboneBench", "run", "tdraft.scripts.bench_backbones"),
        "drafters": ("DraftersBench", "run", "tdraft.scripts.bench_drafters"),
        "embed": ("EmbedBench", "embed", "tdraft.scripts.bench_embed"),
        "lm": ("LMBench", "run", "tdraft.scripts.bench_lm"),
        "hippo": ("HippoBench", "hippo", "tdraft.scripts.bench_hippo"),
        "scan": ("ScanBench", "run", "tdraft.scripts.bench_scan"),
    },
    "reproduce": {"": ("Reproduce", "run")},
}


class UsageError(ValueError):
    """A command line that cannot be run; its text is for the user."""


def unknown(kind: str, given: str, known: Sequence[str], where: str) -> UsageError:
    """`no agent "q-lerning"; did you mean "q-learning"? (tdraft train --help lists all)`"""
    near = difflib.get_close_matches(given, known, 1, 0.5)
    meant = f'; did you mean "{near[0]}"?' if near else ";"
    return UsageError(f'no {kind} "{given}"{meant} ({where} lists all)')


def usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: tdraft COMMAND [OPTIONS]", "", *lines, "", "tdraft COMMAND --help lists a command's options."])


def load(module: str, command: str) -> ModuleType:
    """Import a command's module."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UsageError(f'the command "{command}" is not in this installation') from None


def run(command: str, argv: list[str]) -> int | None:
    """Import a command's module and run it."""
    name, text = COMMANDS[command]
    if command not in SUBCOMMANDS:
        return load(name, command).main(argv)
    import tyro

    options = SUBCOMMANDS[command]
    where = f"tdraft {command}"
    if "" not in options:
        if not argv or argv[0] in ("-h", "--help"):
            print(f"usage: {where} {{{','.join(options)}}} [OPTIONS]\n\n{text}")
            return 0 if argv else 2
        if argv[0] not in options:
            raise unknown("subcommand", argv[0], list(options), f"{where} --help")
        sub, argv = argv[0], argv[1:]
        where = f"{where} {sub}"
    else:
        sub = ""
    kind, function, *elsewhere = options[sub]
    module = load(elsewhere[0] if elsewhere else name, f"{command} {sub}".strip())
    result = getattr(module, function)(tyro.cli(getattr(module, kind), prog=where, args=argv))
    return result if isinstance(result, int) and not isinstance(result, bool) else None


def is_user_error(error: Exception) -> bool:
    """Whether an error's text is meant for the user: ours, a file's, or Gymnasium's about an env; any other is a bug."""
    ours = isinstance(error, ValueError | RuntimeError) and type(error).__module__.startswith("tdraft.")
    return ours or isinstance(error, OSError) or type(error).__module__.startswith("gymnasium.error")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 2 an error that the user can mend (one line on stderr), 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("tdraft"))
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], list(COMMANDS), "tdraft --help")
        return run(argv[0], argv[1:]) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
