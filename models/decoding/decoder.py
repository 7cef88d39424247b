"""Speculative decoding that asks a policy at every decision point.

The live env steps a `Session` by an agent's actions, `SpeculativeDecoder` by a policy's; both see the observation of
`observation.py`, and the text is the same under every policy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..language_model import LanguageModel
from . import observation as ob
from .drafters import Drafter
from .session import Accounting, Session


@dataclass(frozen=True)
class Generation:
    """A finished text: its new tokens, why it ended ("length", "stop", "context") and what it cost."""

    tokens: list[int]
    reason: str
    account: Accounting


class SpeculativeDecoder:
    """Decode texts under a policy, any callable from an observation to VERIFY, DRAFT or DROP.

    :param options: those of `Session`: calibration, sampling, max_drafted, sampled_drafts
    """

    def __init__(self, target: LanguageModel, drafter: Drafter | None = None, policy: Callable | None = None, **options):
        self.target, self.drafter, self.policy, self.options = target, drafter, policy, options

    def session(self, prompt, max_new_tokens: int, **options) -> Session:
        return Session(self.target, self.drafter, prompt, max_new_tokens, **(self.options | options))

    def rounds(self, session: Session) -> Iterator[list[int]]:
        """Decode round by round; yields the tokens of each."""
        policy = self.policy
        if policy is not None and hasattr(policy, "fresh"):
            policy = policy.fresh()
        while not session.done:
            action = ob.VERIFY if policy is None else session.decide(policy)
            yield session.act(ob.VERIFY if action == ob.DRAFT else action)

    def stream(
        self,
        prompt,
        max_new_tokens: int,
        *,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[Sequence[int]] = (),
        **options,
    ) -> Iterator[int]:
        """Yield tokens as they are decided; nothing past a stop.

        A stop token is emitted and ends the text. A stop sequence ends it and is not emitted: tokens that may begin one are held
        back until they cannot.
        """
        session = self.session(prompt, max_new_tokens, **options)
        yield from until_stop(self.rounds(session), stop_tokens, stop)

    def generate(
        self,
        prompt,
        max_new_tokens: int,
        *,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[Sequence[int]] = (),
        **options,
    ) -> Generation:
        """Decode a whole text."""
        session = self.session(prompt, max_new_tokens, **options)
        tokens = list(until_stop(self.rounds(session), stop_tokens, stop))
        stopped = len(tokens) < len(session.emitted) or (bool(tokens) and tokens[-1] in stop_tokens)
        reason = "stop" if stopped else "length" if len(tokens) >= max_new_tokens else "context"
        return Generation(tokens, reason, session.account)


def until_stop(rounds: Iterator[list[int]], stop_tokens: Sequence[int], stop: Sequence[Sequence[int]]) -> Iterator[int]:
    """The tokens of `SpeculativeDecoder.rounds` up to a stop, as `SpeculativeDecoder.stream` yields them.

    :raises ValueError: an empty stop sequence
    """
    stops = [list(s) for s in stop]
    if any(not s for s in stops):
        raise ValueError("a stop sequence must hold at least one token")
    held: list[int] = []
    for tokens in rounds:
        for token in tokens:
            held.append(token)
            for s in stops:
                if held[-len(s) :] == s:
                    yield from held[: -len(s)]
                    return
            if token in stop_tokens:
                yield from held
                return
            keep = max((n for s in stops for n in range(1, len(s)) if held[-n:] == s[:n]), default=0)
            yield from held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield from held
