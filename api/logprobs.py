"""Log probabilities in the two shapes OpenAI has for them."""

from collections.abc import Sequence
from typing import Protocol

from sirocco.api.schemas.chat import ChoiceLogprobs, ContentLogprob, TopLogprob
from sirocco.api.schemas.completions import CompletionLogprobs
from sirocco.runtime.request import TokenLogprob


class TokenNames(Protocol):
    """The part of a tokenizer that names single tokens."""

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


def chat_logprobs(entries: Sequence[TokenLogprob], names: TokenNames) -> ChoiceLogprobs:
    """The chat shape: text and exact bytes of each token and its alternatives."""
    return ChoiceLogprobs(
        [
            ContentLogprob(
                names.token_text(entry.token_id),
                entry.logprob,
                list(names.token_bytes(entry.token_id)),
                [
                    TopLogprob(names.token_text(token_id), logprob, list(names.token_bytes(token_id)))
                    for token_id, logprob in _by_rank(entry)
                ],
            )
            for entry in entries
        ]
    )


class LegacyLogprobs:
    """The completions shape, piece by piece: `text_offset` counts on from one piece to the next."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0

    def skip(self, text: str) -> None:
        """Count a text that comes without log probabilities."""
        self._offset += len(text)

    def add(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The next tokens of the text."""
        piece = CompletionLogprobs([], [], [], [])
        for entry in entries:
            self._append(piece, entry.token_id, entry)
        return piece

    def add_prompt(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """The tokens of an echoed prompt, of which the first has no probability."""
        piece = CompletionLogprobs([], [], [], [])
        for token_id, entry in zip(token_ids, entries, strict=True):
            self._append(piece, token_id, entry)
        return piece

    def _append(self, piece: CompletionLogprobs, token_id: int, entry: TokenLogprob | None) -> None:
        text = self._names.token_text(token_id)
        piece.tokens.append(text)
        piece.text_offset.append(self._offset)
        self._offset += len(text)
        if entry is None:
            piece.token_logprobs.append(None)
            piece.top_logprobs.append(None)
            return
        piece.token_logprobs.append(entry.logprob)
        top = {text: entry.logprob}
        for other, logprob in _by_rank(entry):
            top.setdefault(self._names.token_text(other), logprob)  # texts may coincide; the likelier one stays
        piece.top_logprobs.append(top)


def join(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Two pieces as one."""
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def _by_rank(entry: TokenLogprob) -> list[tuple[int, float]]:
    return sorted(entry.top.items(), key=lambda item: -item[1])
