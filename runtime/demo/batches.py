"""Batches of like lengths, made by a process of its own while the trainer works."""

from __future__ import annotations

import multiprocessing
import random
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


Document = tuple[list[int], list[bool]]


def collate(documents: list[Document]) -> Batch:
    """Documents as rows; every said token is predicted from the one before it."""
    length = max(len(tokens) for tokens, _ in documents)
    ids = torch.zeros(len(documents), length, dtype=torch.long)
    index: list[int] = []
    labels: list[int] = []
    for row, (tokens, said) in enumerate(documents):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for i in range(1, len(tokens)):
            if said[i]:
                index.append(row * length + i - 1)
                labels.append(tokens[i])
    targets = Targets(torch.tensor(index), torch.tensor(labels))
    return Batch(ids, targets, sum(len(tokens) for tokens, _ in documents))


def by_length(documents: list[Document], tokens: int) -> list[Batch]:
    """Documents of like length together, about `tokens` tokens a batch."""
    out: list[Batch] = []
    group: list[Document] = []
    for document in sorted(documents, key=lambda d: len(d[0])):
        if group and len(document[0]) * (len(group) + 1) > tokens:
            out.append(collate(group))
            group = []
        group.append(document)
    return [*out, collate(group)]


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
