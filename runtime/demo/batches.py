"""Conversations made by a process of their own while the trainer works, and batches of those of like lengths."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import pickle
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full
from typing import TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sirocco.runtime.demo.corpus import conversation
from sirocco.runtime.demo.network import Targets
from sirocco.runtime.demo.rendering import encode
from sirocco.runtime.demo.vocabulary import thinned

__all__ = ["PARTS", "Batch", "Document", "Recipe", "Step", "batches", "pools", "queues", "steps"]

POOL = 2400  # conversations sorted together: enough for rows of one length and a mixed order
THINNED = 12  # ways of a pool to cut words into smaller pieces
LONGEST = 1024
PATIENCE = 600.0  # seconds to wait for text from a process that may have died
PARTS = 2  # batches of a step, mostly of different lengths
IGNORED = -100  # a label that adds nothing to the loss


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make batches of: the tokenizer's file, the seed, the tokens of a step, the manner of speech.

    `late` is the text of the end of training.
    """

    tokenizer: Path
    seed: str
    tokens: int
    manner: str = "plain"
    late: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations of about one length as rows ids [B, L], padded on the right, and what to predict."""

    ids: Tensor
    targets: Targets
    tokens: int
    labels: int  # targets that count
    documents: list[int]  # the rows' numbers in their pool


@dataclass(frozen=True, slots=True)
class Step:
    """One process's batches of one optimizer step, and the whole step's counts."""

    batches: list[Batch]
    tokens: int
    labels: int


Queue: TypeAlias = "multiprocessing.queues.Queue[bytes]"
Document = tuple[list[int], list[bool]]
STRIDE = 32  # lengths are rounded up to it: few shapes, so that products are prepared once and memory is reused


def rounded(count: int, stride: int) -> int:
    """The next multiple of stride."""
    return -(-count // stride) * stride


def collate(documents: list[Document], numbers: list[int], length: int) -> Batch:
    """The documents of these numbers as rows of `length`; every said token is predicted from the one before it."""
    ids = torch.zeros(len(numbers), length, dtype=torch.long)
    index: list[int] = []
    labels: list[int] = []
    count = 0
    for row, number in enumerate(numbers):
        tokens, said = documents[number]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        count += len(tokens)
        for i in range(1, len(tokens)):
            if said[i]:
                index.append(row * length + i - 1)
                labels.append(tokens[i])
    spare = rounded(len(index), 4 * STRIDE) - len(index)
    targets = Targets(torch.tensor(index + [0] * spare), torch.tensor(labels + [IGNORED] * spare))
    return Batch(ids, targets, count, len(labels), numbers)


def batches(documents: list[Document], chosen: Iterable[int], tokens: int) -> list[Batch]:
    """The chosen documents, those of like length together, about `tokens` tokens a batch; a few are left over."""
    out: list[Batch] = []
    lengths: dict[int, list[int]] = defaultdict(list)
    for number in chosen:
        lengths[rounded(len(documents[number][0]), STRIDE)].append(number)
    left: list[int] = []
    for length in sorted(lengths):
        rows = max(1, tokens // length)
        found = left + lengths[length]
        whole = len(found) // rows * rows
        out += [collate(documents, found[at : at + rows], length) for at in range(0, whole, rows)]
        left = found[whole:]  # go with the next longer ones
    return out


def steps(documents: list[Document], chosen: Iterable[int], recipe: Recipe, number: int) -> list[list[Batch]]:
    """All steps of one pool's chosen documents, each as its batches."""
    found = batches(documents, chosen, recipe.tokens // PARTS)
    random.Random(f"{recipe.seed}/{number}").shuffle(found)
    return [found[i : i + PARTS] for i in range(0, len(found) - PARTS + 1, PARTS)]


def share(step: list[Batch], rank: int, ranks: int) -> Step:
    """A process's part of a step."""
    return Step(step[rank::ranks], sum(b.tokens for b in step), sum(b.labels for b in step))


def pool_of(recipe: Recipe, tokenizer: Tokenizer, number: int) -> list[Document]:
    """One pool of conversations, in a mixed order."""
    name = f"{recipe.seed}/{number}"
    # Half of the text as the tokenizer has it, half in smaller pieces, of other words in every part.
    ways = [tokenizer] * THINNED + [thinned(tokenizer, f"{name}/{i}") for i in range(THINNED)]
    documents: list[Document] = []
    for way, part in enumerate(range(0, POOL, POOL // len(ways))):
        conversations = [
            conversation(f"{name}/{i}", "train", "train", manner=recipe.manner, late=recipe.late)
            for i in range(part, part + POOL // len(ways))
        ]
        documents += [document for document in encode(conversations, ways[way]) if len(document[0]) <= LONGEST]
    random.Random(name).shuffle(documents)
    return documents


def produce(recipe: Recipe, queues: list[Queue], first: int) -> None:
    """Put pool after pool into the queues, as long as the trainer lives."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(recipe.tokenizer))
    parent = multiprocessing.parent_process()
    number = first
    while True:
        pool = pickle.dumps((number, pool_of(recipe, tokenizer, number)))
        for queue in queues:
            while True:
                if parent is None or not parent.is_alive():
                    queue.cancel_join_thread()
                    return
                try:
                    queue.put(pool, timeout=5)
                    break
                except Full:
                    continue
        number += 1


def queues(recipe: Recipe, ranks: int, first: int = 0) -> list[Queue]:
    """A queue for each process of pool after pool, starting at pool `first`, filled by a new process."""
    context = multiprocessing.get_context("spawn")
    filled: list[Queue] = [context.Queue(maxsize=3) for _ in range(ranks)]
    context.Process(target=produce, args=(recipe, filled, first), daemon=True).start()
    return filled


def pools(queue: Queue, first: int) -> Iterator[tuple[int, list[Document]]]:
    """The pools of a queue without end and their numbers. RuntimeError where pools are late or missing."""
    number = first
    while True:
        try:
            found, pool = pickle.loads(queue.get(timeout=PATIENCE))
        except Empty:
            raise RuntimeError(f"no text has been made for {PATIENCE:g} s") from None
        if found != number:
            raise RuntimeError(f"pool {found} came in place of pool {number}")
        yield number, pool
        number += 1
