"""The demo model's tokenizer: byte-level BPE in which a word is the same tokens wherever it stands."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sirocco.runtime.demo.corpus import conversation
from sirocco.runtime.demo.lexicon import CITIES, NAMES, WORDS
from sirocco.runtime.demo.rendering import render

__all__ = ["MARKS", "SPECIAL", "thinned", "train_tokenizer"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# Words never carry their space, digits stand alone, so copying a value is copying its tokens.
SPLIT = r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+"
# A share of the tokens are whole words, which no merge leads to: "to" is never a piece of "tower", and where a value
# ends is seen from its tokens. Words that values are drawn from are made of pieces, as those are that no text holds.
WHOLE = 0.72
VALUES = frozenset(word.lower() for table in (NAMES, CITIES, WORDS) for word in table)
KEPT = 300  # the commonest words: tokens whatever else they are


def untrained() -> Tokenizer:
    """A tokenizer of bytes alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces_of(words: Iterator[str], size: int, whole: set[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Up to `size` tokens and the merges that make them: bytes, and runs of letters that are no whole word."""
    tokenizer = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    made, merges = set(tokens), []
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        token = left + right
        if len(tokens) < size and left in made and right in made and token not in whole and token not in made:
            made.add(token)
            tokens.append(token)
            merges.append((left, right))
    return tokens, merges


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of up to `size` tokens learned from texts."""
    tokenizer = untrained()
    split: Any = tokenizer.pre_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    ranked = [w for w, count in counts.most_common() if len(w) > 1 and count > 1]
    common = [w for rank, w in enumerate(ranked) if rank < KEPT or w.lower() not in VALUES]
    whole = common[: int(WHOLE * size)]
    left = set(counts) - set(whole)
    rare = (f"{w}\n" * round(counts[w] ** 0.5) for w in sorted(left) if w.isascii() and w.isalpha())
    tokens, merges = pieces_of(rare, size - len(SPECIAL) - len(MARKS) - len(whole), set(whole))
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *tokens, *whole))}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return tokenizer


def thinned(tokenizer: Tokenizer, seed: str) -> Tokenizer:
    """The same tokens without part of the rarer whole words, which so fall into pieces as unknown ones do.

    Which they are depends on the seed alone: a word is the same tokens wherever it stands in a text.
    """
    rng = random.Random(seed)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    made = {left + right for left, right in state["model"]["merges"]}
    whole = [w for w in vocabulary if w.isalpha() and len(w) > 1 and w not in made]
    for word in whole[KEPT:]:
        if rng.random() < 0.3:
            vocabulary[f"without {word}"] = vocabulary.pop(word)
    return Tokenizer.from_str(json.dumps(state))


def texts(count: int) -> Iterator[str]:
    """Rendered training conversations without their marks."""
    for i in range(count):
        text = "".join(piece for piece, _ in render(conversation(f"vocabulary {i}", "train", "train")))
        for mark in (*SPECIAL, *MARKS):
            text = text.replace(mark, "")
        yield text


def main() -> None:
    """Train the tokenizer on generated text and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    parser.add_argument("--size", type=int, default=3584)
    parser.add_argument("--conversations", type=int, default=20000)
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts(options.conversations), options.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out))


if __name__ == "__main__":
    main()
