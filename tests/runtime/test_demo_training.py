"""A crew of trainer processes computes what one process alone does."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sirocco.runtime.demo import train
from sirocco.runtime.demo.batches import Batch, Document, Step, batches, pools, share
from sirocco.runtime.demo.crew import Crew
from sirocco.runtime.demo.network import LoraSettings, Shape, Targets
from sirocco.runtime.demo.train import Plan, Trainer

SHAPE = Shape(vocab=32, width=16, layers=2, heads=2, kv_heads=1, hidden=16, head_dim=8)
PLAN = Plan(SHAPE, steps=8, warmup=1)


def crew_of_two(elements: int) -> list[Crew]:
    """Both ends of a crew, for two threads."""
    first = Crew(2, elements)
    return [first, copy.copy(first).as_rank(1)]


def in_threads(calls: list[threading.Thread]) -> None:
    for call in calls:
        call.start()
    for call in calls:
        call.join(30)
        assert not call.is_alive()


def test_a_crew_adds_up_and_divides_work() -> None:
    crew = crew_of_two(6)
    sums: dict[int, list[list[float]]] = {0: [], 1: []}
    halves: dict[int, torch.Tensor] = {}

    def work(rank: int) -> None:
        for i in range(5):
            flat = torch.tensor([1.0 + i, 10.0 * rank])
            crew[rank].total(flat)
            sums[rank].append(flat.tolist())
        halves[rank] = crew[rank].divided(lambda part: part * 2, torch.arange(6.0).view(3, 2))

    in_threads([threading.Thread(target=work, args=(rank,)) for rank in range(2)])
    assert sums[0] == sums[1] == [[2.0 + 2 * i, 10.0] for i in range(5)]
    assert torch.equal(halves[0], torch.arange(6.0).view(3, 2) * 2) and torch.equal(halves[0], halves[1])


def random_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (3, 8), generator=generator)
    labels = torch.randint(0, 32, (7,), generator=generator)
    return Batch(ids, Targets(torch.arange(7), labels), 24, 7, [0, 1, 2])


@pytest.mark.parametrize(
    "plan", [PLAN, Plan(SHAPE, steps=8, warmup=1, lora=LoraSettings(rank=2), begins="base")], ids=["base", "lora"]
)
def test_two_processes_train_as_one_does(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.shutil, "which", lambda name: None)  # compiling takes longer than all of this
    if plan.lora is not None:
        base = Trainer(PLAN, tmp_path / "base.pt", Crew(1, 0), resume=False)
        base.save()
    pool = [[random_batch(2 * i), random_batch(2 * i + 1)] for i in range(3)]
    alone = Trainer(plan, tmp_path / "a.pt", Crew(1, 0), resume=False)
    losses = [alone.update(share(step, 0, 1)) for step in pool]
    crew = crew_of_two(sum(p.numel() for p in alone.network.parameters()) + 1)
    together = [Trainer(plan, tmp_path / "b.pt", crew[rank], resume=False) for rank in range(2)]
    found: dict[int, list[float]] = {}

    def work(rank: int, steps: list[Step]) -> None:
        found[rank] = [together[rank].update(step) for step in steps]

    parts = [[share(step, rank, 2) for step in pool] for rank in range(2)]
    in_threads([threading.Thread(target=work, args=(rank, steps)) for rank, steps in enumerate(parts)])
    assert found[0] == found[1] == pytest.approx(losses, rel=1e-2)
    for one, two, three in zip(*(t.network.parameters() for t in (alone, *together)), strict=True):
        assert torch.equal(two, three)
        torch.testing.assert_close(one, two, rtol=0.1, atol=0.02)
    assert all(trainer.tokens == 3 * 48 for trainer in (alone, *together))


def random_documents(count: int) -> list[Document]:
    generator = torch.Generator().manual_seed(9)
    lengths = torch.randint(4, 90, (count,), generator=generator).tolist()
    return [(torch.randint(0, 32, (n,), generator=generator).tolist(), [i % 3 > 0 for i in range(n)]) for n in lengths]


def test_batches_hold_documents_of_like_length_and_what_is_said_in_them() -> None:
    documents = random_documents(60)
    chosen = range(0, 60, 2)
    found = batches(documents, chosen, 256)
    numbers = [number for batch in found for number in batch.documents]
    assert len(set(numbers)) == len(numbers) > 20 and set(numbers) <= set(chosen)
    for batch in found:
        rows, length = batch.ids.shape
        assert rows * length <= 256 and batch.tokens <= rows * length
        said = [(row, i) for row, n in enumerate(batch.documents) for i, mine in enumerate(documents[n][1]) if mine]
        said = [(row, i) for row, i in said if i > 0]
        assert batch.labels == len(said)
        assert batch.targets.index[: batch.labels].tolist() == [row * length + i - 1 for row, i in said]
        assert batch.targets.labels[: batch.labels].tolist() == [batch.ids[row, i].item() for row, i in said]


def test_the_hardest_documents_are_kept_by_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.shutil, "which", lambda name: None)
    plan = replace(PLAN, kept=0.25)
    documents = random_documents(40)
    alone = Trainer(plan, tmp_path / "a.pt", Crew(1, 0), resume=False)
    for block in alone.network.blocks:  # which start as the identity
        torch.nn.init.normal_(block.down.weight, std=0.5)
    kept = alone.hardest(documents, 256)
    assert len(kept) == 10 and kept == sorted(kept)
    losses = torch.zeros(40)
    with torch.no_grad():
        for batch in batches(documents, range(40), 1):  # a document each
            losses[batch.documents] = alone.network(batch.ids, batch.targets)
    least = losses[kept].min()
    assert all(losses[n] <= least * 1.02 for n in range(40) if n not in kept)

    crew = crew_of_two(sum(p.numel() for p in alone.network.parameters()) + 1)
    together = [Trainer(plan, tmp_path / "b.pt", crew[rank], resume=False) for rank in range(2)]
    found: dict[int, list[int]] = {}
    for trainer in together:
        trainer.network.load_state_dict(alone.network.state_dict())

    def work(rank: int) -> None:
        found[rank] = together[rank].hardest(documents, 256)

    in_threads([threading.Thread(target=work, args=(rank,)) for rank in range(2)])
    assert found[0] == found[1] == kept


def test_a_pool_that_went_missing_is_noticed() -> None:
    queue = multiprocessing.get_context("spawn").Queue()
    documents = random_documents(3)
    queue.put(pickle.dumps((4, documents)))
    queue.put(pickle.dumps((6, documents)))
    found = pools(queue, 4)
    assert next(found) == (4, documents)
    with pytest.raises(RuntimeError, match="pool 6 came in place of pool 5"):
        next(found)
