"""The demo model's tokenizer: byte-level BPE in which a word is the same tokens wherever it stands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sirocco.runtime.demo.corpus import conversation
from sirocco.runtime.demo.rendering import render

__all__ = ["MARKS", "SPECIAL", "train_tokenizer"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# Words never carry their space, digits stand alone, so copying a value is copying its tokens.
PIECES = r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+"


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `size` tokens learned from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trainer.vocab_size -= len(MARKS)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return tokenizer


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
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--conversations", type=int, default=20000)
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts(options.conversations), options.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out))


if __name__ == "__main__":
    main()
