"""The demo model's tokenizer: byte-level BPE in which a word is the same tokens wherever it stands."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sirocco.runtime.demo.corpus import conversation
from sirocco.runtime.demo.lexicon import CITIES, NAMES, WORDS, words
from sirocco.runtime.demo.rendering import render

__all__ = ["HEADERS", "MARKS", "SPECIAL", "USER", "roots", "thinned", "train_tokenizer"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = tuple(f"<|im_start|>{role}\n" for role in ("system", "user", "assistant", "tool"))
USER = HEADERS[1]
MARKS = (
    "<tool_call>", "</tool_call>",
    '<tool_call>\n{"name": "', '", "arguments": {"', '", "arguments": {}}\n</tool_call>',
    '"}}\n</tool_call>', "}}\n</tool_call>",
)  # fmt: skip
# Small words, hardly ever part of a value. They take along the spaces at their sides: one token in six was one.
GLUE = words("""
a about after again all also am an and any are as at be before between by can could did do does for from get give has
have how i if in into is it its just know let like many me more much must my need new no not now of off on one only
out over please put s say set should so some t take tell that the their then there this to two up us use want was we
what when where which who will with would you your
""")
# Other words never carry their space, digits stand alone, so copying a value is copying its tokens.
SPLIT = rf"(?: |(?<!\p{{L}}))(?i:{'|'.join(GLUE)})(?!\p{{L}}) ?|\p{{L}}+|\p{{N}}|[^\p{{L}}\p{{N}}]+"
# A share of the tokens are whole words, which no merge leads to: "to" is never a piece of "tower", and where a value
# ends is seen from its tokens. Words that values are drawn from are made of pieces, as those are that no text holds.
WHOLE = 0.72
VALUES = frozenset(word.lower() for table in (NAMES, CITIES, WORDS) for word in table)
SPACE = "Ġ"  # as byte-level BPE writes it
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
    whole = list(dict.fromkeys((*(w for w in GLUE if len(w) > 1), *common)))[: int(WHOLE * size)]
    left = set(counts) - set(whole)
    rare = (f"{w}\n" * round(counts[w] ** 0.5) for w in sorted(left) if w.isascii() and w.isalpha())
    given = (*SPECIAL, *HEADERS)
    tokens, merges = pieces_of(rare, size - len(given) - len(MARKS) - len(whole), set(whole))
    vocabulary = {token: number for number, token in enumerate((*given, *tokens, *whole))}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True)
    tokenizer.add_special_tokens(list(given))
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
    whole = [w for w in vocabulary if w.isalpha() and len(w) > 1 and w not in made and SPACE not in w]
    for word in whole[len(GLUE) + KEPT :]:
        if rng.random() < 0.3:
            vocabulary[f"without {word}"] = vocabulary.pop(word)
    return Tokenizer.from_str(json.dumps(state))


def roots(tokenizer: Tokenizer) -> list[int]:
    """For each token the one whose embedding it begins with: a word in small letters, alone and in the singular.

    A token that is no other form of a token is its own root.
    """
    made = {left + right for left, right in json.loads(tokenizer.to_str())["model"]["merges"]}
    vocabulary = tokenizer.get_vocab()
    found = list(range(len(vocabulary)))
    for token in sorted(vocabulary, key=len):  # so that a form's root is known before it
        word = token.strip(SPACE)
        if token in made or not word.isalpha() or (len(word) < 2 and word == token):
            continue
        small = word.lower()
        for form in (small, small.removesuffix("s") if len(small) > 3 else small):
            if form in vocabulary and form not in made:
                found[vocabulary[token]] = found[vocabulary[form]]
    return found


def texts(count: int) -> Iterator[str]:
    """The parts of rendered training conversations between their marks."""
    marks = re.compile("|".join(re.escape(mark) for mark in sorted((*SPECIAL, *HEADERS, *MARKS), key=len)[::-1]))
    for i in range(count):
        text = "".join(piece for piece, _ in render(conversation(f"vocabulary {i}", "train", "train")))
        yield from filter(None, marks.split(text))


def main() -> None:
    """Train the tokenizer on generated text and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    parser.add_argument("--size", type=int, default=3840)
    parser.add_argument("--conversations", type=int, default=20000)
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts(options.conversations), options.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out))


if __name__ == "__main__":
    main()
