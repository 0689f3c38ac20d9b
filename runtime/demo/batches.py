"""Batches of like lengths, made by a process of its own while the trainer works."""

from __future__ import annotations

import multiprocessing
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Full

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sirocco.runtime.demo.corpus import conversation
from sirocco.runtime.demo.network import Targets
from sirocco.runtime.demo.rendering import encode

__all__ = ["Batch", "Recipe", "batches"]

POOL = 1200  # conversations sorted together: enough for rows of one length and a mixed order
LONGEST = 1024
IGNORED = -100  # a label that adds nothing to the loss


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make batches of: the tokenizer's file, the seed, the tokens of a step, the manner of speech."""

    tokenizer: Path
    seed: str
    tokens: int
    manner: str = "plain"


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations of about one length as rows ids [B, L], padded on the right, and what to predict."""

    ids: Tensor
    targets: Targets
    tokens: int
    labels: int  # targets that count


Document = tuple[list[int], list[bool]]
STRIDE = 32  # lengths are rounded up to it: few shapes, so that products are prepared once and memory is reused


def rounded(count: int, stride: int) -> int:
    """The next multiple of stride."""
    return -(-count // stride) * stride


def collate(documents: list[Document], rows: int, length: int) -> Batch:
    """Documents as `rows` rows of `length`; every said token is predicted from the one before it."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    index: list[int] = []
    labels: list[int] = []
    for row, (tokens, said) in enumerate(documents):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for i in range(1, len(tokens)):
            if said[i]:
                index.append(row * length + i - 1)
                labels.append(tokens[i])
    spare = rounded(len(index), 4 * STRIDE) - len(index)
    targets = Targets(torch.tensor(index + [0] * spare), torch.tensor(labels + [IGNORED] * spare))
    return Batch(ids, targets, sum(len(tokens) for tokens, _ in documents), len(labels))


def by_length(documents: list[Document], tokens: int) -> list[Batch]:
    """Documents of like length together, about `tokens` tokens a batch."""
    out: list[Batch] = []
    lengths: dict[int, list[Document]] = defaultdict(list)
    for document in documents:
        lengths[rounded(len(document[0]), STRIDE)].append(document)
    left: list[Document] = []
    for length in sorted(lengths):
        rows = max(1, tokens // length)
        found = left + lengths[length]
        whole = len(found) // rows * rows
        out += [collate(found[at : at + rows], rows, length) for at in range(0, whole, rows)]
        left = found[whole:]  # go with the next longer ones
    return out


def pool_of_batches(recipe: Recipe, tokenizer: Tokenizer, number: int) -> list[list[Batch]]:
    """All steps of one pool of conversations; a step is two batches, mostly of different lengths."""
    conversations = [
        conversation(f"{recipe.seed}/{number}/{i}", "train", "train", manner=recipe.manner) for i in range(POOL)
    ]
    documents = [document for document in encode(conversations, tokenizer) if len(document[0]) <= LONGEST]
    found = by_length(documents, recipe.tokens // 2)
    random.Random(f"{recipe.seed}/{number}").shuffle(found)
    return [found[i : i + 2] for i in range(0, len(found) - 1, 2)]


def produce(recipe: Recipe, queue: multiprocessing.Queue[list[list[Batch]]], first: int) -> None:
    """Put pool after pool into the queue, as long as the trainer lives."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(recipe.tokenizer))
    number = first
    parent = multiprocessing.parent_process()
    pool = pool_of_batches(recipe, tokenizer, number)
    while parent is not None and parent.is_alive():
        try:
            queue.put(pool, timeout=5)
        except Full:
            continue
        number += 1
        pool = pool_of_batches(recipe, tokenizer, number)
    queue.cancel_join_thread()


def batches(recipe: Recipe, first: int = 0) -> Iterator[tuple[int, list[Batch]]]:
    """The batches of each step without end, with their pool's number, starting at pool `first`."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[list[Batch]]] = context.Queue(maxsize=3)
    worker = context.Process(target=produce, args=(recipe, queue, first), daemon=True)
    worker.start()
    try:
        number = first
        while True:
            for step in queue.get():
                yield number, step
            number += 1
    finally:
        worker.terminate()
