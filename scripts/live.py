"""Decoding test contexts live under the policies of a comparison: the wall clock, and what replay and live must agree on."""

import numpy as np

from tdraft.agents import decoding_evaluation as ev
from tdraft.envs.decoding.draft import Replay
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import Drafter
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.trace import Trace
from tdraft.models.language_model import LanguageModel
from tdraft.models.threads import one_thread
from tdraft.scripts.comparison import Comparison

NEAR_TIE = 1e-4


def decode_live(
    target: LanguageModel,
    drafter: Drafter,
    test: Trace,
    keys: np.ndarray,
    calibration: ob.Calibration,
    found: Comparison,
    section: dict,
    *,
    contexts: int,
) -> None:
    """Every policy decodes the first test contexts; its row of the section gets `identical`, `rounds_equal` and `differences`
    from the plain text and the trace. Plain decoding, the best static length and the three best policies are timed:
    `wall_speedup` and `own_cost`.

    :param keys: (C,) of the noise that the trace was recorded with
    :param contexts: how many of them to decode
    """
    rows = {row["name"]: row for row in section["policies"] if row["kind"] != "bound" and row["name"] in found.policies}
    ranked = sorted(rows.values(), key=lambda row: -row["speedup"])
    timed = {"no speculation", *found.best.values(), *(row["name"] for row in ranked[:3])}
    options = {
        "calibration": calibration,
        "sampling": Sampling(temperature=section["temperature"]),
        "max_drafted": found.cost.max_drafted,
    }
    decoders = {name: SpeculativeDecoder(target, drafter, found.policies[name], **options) for name in rows}
    decoders["plain"] = SpeculativeDecoder(target, None, None, **options)
    test, keys, n_tokens = test.select(slice(0, contexts)), keys[:contexts], test.shape[1]
    prompts = test.prompts.astype(np.int64)
    with one_thread():
        for decoder in decoders.values():
            decoder.generate(prompts[0], 16, key=0)  # compile and warm up
        runs = ev.play_live({name: decoders[name] for name in ("plain", *timed)}, prompts, keys, n_tokens)
        rest = {name: decoder for name, decoder in decoders.items() if name not in runs}
        runs |= ev.play_live(rest, prompts, keys, n_tokens)
    replay = Replay(test, calibration, found.cost, shuffle=False)
    for name, row in rows.items():
        run = runs[name]
        if name in timed:
            row["wall_speedup"], row["own_cost"] = runs["plain"].seconds / run.seconds, run.own_cost
        row["differences"] = differences(run, [runs["plain"].tokens, test.tokens.tolist()], test.margin < NEAR_TIE)
        row["identical"] = all(difference["near_tie"] for difference in row["differences"])
        replayed = ev.replayed_rounds(replay, found.policies[name], texts=len(test.tokens))
        parted = {difference["context"] for difference in row["differences"]}  # another text has other rounds
        row["rounds_equal"] = all(
            inside(run.accounts[context].rounds, n_tokens) == rounds
            for context, rounds in enumerate(replayed)
            if context not in parted
        )


def differences(run: ev.LiveRun, references: list[list[list[int]]], near: np.ndarray) -> list[dict]:
    """Where texts part from those that they should equal; near (C, N) marks tokens chosen by a hair's breadth."""
    found = []
    for reference in references:
        for context, tokens in enumerate(run.tokens):
            place = ev.first_difference(tokens, np.array(reference[context]))
            if place is not None:
                near_tie = bool(near[context, min(place, near.shape[1] - 1)])
                found.append({"context": context, "position": place, "near_tie": near_tie})
    return found


def inside(rounds: list[tuple[int, int]], n_tokens: int) -> list[tuple[int, int]]:
    """(verified, accepted) rounds, without accepted drafts past the end of the text, where a trace knows nothing."""
    clipped, position = [], 0
    for verified, accepted in rounds:
        clipped.append((verified, min(accepted, n_tokens - position)))
        position += accepted + 1
    return clipped
