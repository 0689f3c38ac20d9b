"""Log probabilities in the two shapes OpenAI has for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from sirocco.api.schemas.chat import ChoiceLogprobs, ContentLogprob, TopLogprob
from sirocco.api.schemas.completions import CompletionLogprobs
from sirocco.runtime.request import TokenLogprob
from sirocco.runtime.text.detokenize import Detokenizer
from sirocco.runtime.text.tokenizer import Tokenizer


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


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as the text in front of its completion, with or without its special tokens."""

    text: str = ""
    skip_special_tokens: bool = False

    def offsets(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
        """Where in the text each of the prompt's tokens begins."""
        detokenizer = Detokenizer(tokenizer, self.skip_special_tokens)
        pieces = [detokenizer.push((token_id,)) for token_id in token_ids]
        begins = accumulate(map(len, pieces[:-1]), initial=-self._begin(token_ids, pieces, tokenizer.special_ids))
        return [min(max(begin, 0), len(self.text)) for begin in begins]

    def _begin(self, token_ids: Sequence[int], pieces: Sequence[str], special_ids: frozenset[int]) -> int:
        """Where the text begins among the pieces: behind what the tokenizer put in front of it."""
        joined = "".join(pieces)
        at = 0
        for token_id, piece in zip(token_ids, pieces, strict=True):
            if token_id not in special_ids or joined.startswith(self.text, at):
                break
            at += len(piece)
        return max(joined.find(self.text, at), at)


class LegacyLogprobs:
    """The completions shape, piece by piece: `text_offset` counts on from one piece to the next.

    A token begins where the text of those before it ends, so it shares the offset of the character it completes.
    """

    def __init__(self, tokenizer: Tokenizer, echo: Echo) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, continues=True)
        self._echo = echo
        self._offset = len(echo.text)

    def add(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The next tokens of the text."""
        piece = CompletionLogprobs([], [], [], [])
        for entry in entries:
            self._append(piece, entry.token_id, entry, self._offset)
            self._offset += len(self._detokenizer.push((entry.token_id,)))
        return piece

    def prompt(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """The tokens of the echoed prompt, of which the first has no probability."""
        piece = CompletionLogprobs([], [], [], [])
        offsets = self._echo.offsets(token_ids, self._tokenizer)
        for token_id, entry, offset in zip(token_ids, entries, offsets, strict=True):
            self._append(piece, token_id, entry, offset)
        return piece

    def _append(self, piece: CompletionLogprobs, token_id: int, entry: TokenLogprob | None, offset: int) -> None:
        text = self._tokenizer.token_text(token_id)
        piece.tokens.append(text)
        piece.text_offset.append(offset)
        if entry is None:
            piece.token_logprobs.append(None)
            piece.top_logprobs.append(None)
            return
        piece.token_logprobs.append(entry.logprob)
        top = {text: entry.logprob}
        for other, logprob in _by_rank(entry):
            top.setdefault(self._tokenizer.token_text(other), logprob)  # texts may coincide; the likelier one stays
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
