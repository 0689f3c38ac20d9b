"""Batches of like lengths, made by a process of its own while the trainer works."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import pickle
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from queue import Empty, Full
from typing import TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sirocco.runtime.demo.corpus import bundle
from sirocco.runtime.demo.network import Places, Targets
from sirocco.runtime.demo.rendering import encode
from sirocco.runtime.demo.vocabulary import USER, thinned

__all__ = ["PARTS", "Batch", "Recipe", "Step", "queues", "steps"]

POOL = 2400  # documents sorted together: enough for rows of one length and a mixed order
WAYS = 24  # equal parts of a pool
THINNED = 6  # of its parts have words cut into smaller pieces, each part other words
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
    """Documents of about one length as rows ids [B, L], padded on the right, and what to predict."""

    ids: Tensor
    places: Places
    targets: Targets
    tokens: int
    labels: int  # targets that count


@dataclass(frozen=True, slots=True)
class Step:
    """One process's batches of one optimizer step, and the whole step's counts."""

    batches: list[Batch]
    tokens: int
    labels: int


Queue: TypeAlias = "multiprocessing.queues.Queue[bytes]"
STRIDE = 16  # lengths are rounded up to it: few shapes, so that products are prepared once and memory is reused


def rounded(count: int, stride: int) -> int:
    """The next multiple of stride."""
    return -(-count // stride) * stride


@dataclass(frozen=True, slots=True)
class Document:
    """Conversations that begin alike, one after another behind what they share.

    Each is a branch: it sees the beginning and itself, and its positions go on from the beginning's end.
    """

    ids: list[int]
    said: list[bool]  # by the model
    positions: list[int]
    branches: list[int]  # 0 for what they share


def document(conversations: list[tuple[list[int], list[bool]]], user: int) -> Document:
    """Conversations' tokens, equal up to the first of token `user`, as one document."""
    first, _ = conversations[0]
    shared = first.index(user)
    ids, said = first[:shared], [False] * shared
    positions, branches = list(range(shared)), [0] * shared
    for number, (tokens, mine) in enumerate(conversations, 1):
        if tokens[:shared] != first[:shared]:
            raise ValueError("the conversations of a document do not begin alike")
        ids += tokens[shared:]
        said += mine[shared:]
        positions += range(shared, len(tokens))
        branches += [number] * (len(tokens) - shared)
    return Document(ids, said, positions, branches)


def collate(documents: list[Document], rows: int, length: int) -> Batch:
    """Documents as `rows` rows of `length`; every said token is predicted from the one before it."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    positions, branches = torch.zeros(rows, length, dtype=torch.int32), torch.zeros(rows, length, dtype=torch.int32)
    index: list[int] = []
    labels: list[int] = []
    for row, found in enumerate(documents):
        count = len(found.ids)
        ids[row, :count] = torch.tensor(found.ids)
        positions[row, :count] = torch.tensor(found.positions)
        branches[row, :count] = torch.tensor(found.branches)
        for i in range(1, count):
            if found.said[i]:
                index.append(row * length + i - 1)
                labels.append(found.ids[i])
    spare = rounded(len(index), 8 * STRIDE) - len(index)
    targets = Targets(torch.tensor(index + [0] * spare), torch.tensor(labels + [IGNORED] * spare))
    return Batch(ids, Places(positions, branches), targets, sum(len(found.ids) for found in documents), len(labels))


def by_length(documents: list[Document], tokens: int) -> list[Batch]:
    """Documents of like length together, about `tokens` tokens a batch."""
    out: list[Batch] = []
    lengths: dict[int, list[Document]] = defaultdict(list)
    for found in documents:
        lengths[rounded(len(found.ids), STRIDE)].append(found)
    left: list[Document] = []
    for length in sorted(lengths):
        rows = max(1, round(tokens / length))
        alike = left + lengths[length]
        whole = len(alike) // rows * rows
        out += [collate(alike[at : at + rows], rows, length) for at in range(0, whole, rows)]
        left = alike[whole:]  # go with the next longer ones
    return out


def documents_of(recipe: Recipe, tokenizer: Tokenizer, number: int) -> list[Document]:
    """One pool of documents, in a mixed order."""
    name = f"{recipe.seed}/{number}"
    ways = [tokenizer] * (WAYS - THINNED) + [thinned(tokenizer, f"{name}/{i}") for i in range(THINNED)]
    each, user = POOL // WAYS, tokenizer.encode(USER).ids[0]
    documents: list[Document] = []
    for part, way in enumerate(ways):
        bundles = [
            bundle(f"{name}/{i}", manner=recipe.manner, late=recipe.late) for i in range(part * each, (part + 1) * each)
        ]
        encoded = iter(encode(list(chain.from_iterable(bundles)), way))
        made = [document(list(islice(encoded, len(some))), user) for some in bundles]
        documents += [found for found in made if len(found.ids) <= LONGEST]
    random.Random(name).shuffle(documents)
    return documents


def pool_of_steps(recipe: Recipe, tokenizer: Tokenizer, number: int) -> list[list[Batch]]:
    """All steps of one pool of documents, each as its batches, which take about as long as each other."""
    found = by_length(documents_of(recipe, tokenizer, number), recipe.tokens // PARTS)
    rng = random.Random(f"{recipe.seed}/{number}")
    rng.shuffle(found)
    found.sort(key=lambda batch: batch.ids.numel())
    pool = [found[i : i + PARTS] for i in range(0, len(found) - PARTS + 1, PARTS)]
    rng.shuffle(pool)
    return pool


def shares(pool: list[list[Batch]], ranks: int) -> list[list[Step]]:
    """For each process its part of every step."""
    counts = [(sum(b.tokens for b in batches), sum(b.labels for b in batches)) for batches in pool]
    return [
        [Step(batches[rank::ranks], *count) for batches, count in zip(pool, counts, strict=True)]
        for rank in range(ranks)
    ]


def produce(recipe: Recipe, queues: list[Queue], first: int) -> None:
    """Put pool after pool into the queues, as long as the trainer lives."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(recipe.tokenizer))
    parent = multiprocessing.parent_process()
    number = first
    while True:
        for queue, share in zip(queues, shares(pool_of_steps(recipe, tokenizer, number), len(queues)), strict=True):
            # As bytes: tensors would each go through a file of shared memory, and a pool has hundreds.
            pool = pickle.dumps((number, share))
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
    """A queue of each process's part of pool after pool, starting at pool `first`, filled by a new process."""
    context = multiprocessing.get_context("spawn")
    filled: list[Queue] = [context.Queue(maxsize=3) for _ in range(ranks)]
    context.Process(target=produce, args=(recipe, filled, first), daemon=True).start()
    return filled


def steps(queue: Queue, first: int) -> Iterator[tuple[int, Step]]:
    """The steps of a queue without end, with their pool's number. RuntimeError where pools are late or missing."""
    number = first
    while True:
        try:
            found, pool = pickle.loads(queue.get(timeout=PATIENCE))
        except Empty:
            raise RuntimeError(f"no text has been made for {PATIENCE:g} s") from None
        if found != number:
            raise RuntimeError(f"pool {found} came in place of pool {number}")
        for step in pool:
            yield number, step
        number += 1
