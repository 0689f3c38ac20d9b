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
from tokenizers import Tokenizer
from torch import nn

from sirocco.runtime.demo import batches, train
from sirocco.runtime.demo.batches import Batch, Recipe, Step, collate, document, pool_of_steps, shares, steps
from sirocco.runtime.demo.crew import Crew
from sirocco.runtime.demo.export import model_tensors
from sirocco.runtime.demo.network import LoraSettings, Network, Places, Shape, Targets
from sirocco.runtime.demo.rendering import TEMPLATE
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
    places = Places(torch.arange(8).expand(3, 8), torch.zeros(3, 8, dtype=torch.int32))
    return Batch(ids, places, Targets(torch.arange(7), labels), 24, 7)


def test_a_branch_is_read_as_if_it_stood_alone() -> None:
    torch.manual_seed(0)
    network = Network(SHAPE)
    nn.init.normal_(network.embedding)
    for block in network.blocks:  # which begin as the identity
        nn.init.normal_(block.out.weight, std=0.3)
        nn.init.normal_(block.down.weight, std=0.3)
    user, head = 9, [3, 4, 5]
    talks = [([*head, user, *said], [False] * 5 + [True] * (len(said) - 1)) for said in ([7, 8, 6], [1, 2, 3, 4, 5])]

    def loss(*some: tuple[list[int], list[bool]]) -> float:
        batch = collate([document(list(some), user)], 2, 16)
        assert batch.labels == sum(sum(mine) for _, mine in some)
        total: torch.Tensor = network(batch.ids, batch.places, batch.targets)
        return total.item()

    apart = [loss(talk) for talk in talks]
    assert loss(*talks) == pytest.approx(sum(apart), rel=2e-3)
    joined = head + talks[0][0][3:] + talks[1][0][3:], [False] * 3 + talks[0][1][3:] + talks[1][1][3:]
    assert loss(joined) != pytest.approx(sum(apart), rel=2e-2)  # the same tokens, one after another
    with pytest.raises(ValueError, match="do not begin alike"):
        document([talks[0], ([3, 5, 5, user, 1], [False] * 5)], user)


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
    losses = [alone.update(step) for step in shares(pool, 1)[0]]
    crew = crew_of_two(sum(p.numel() for p in alone.network.parameters()) + 1)
    together = [Trainer(plan, tmp_path / "b.pt", crew[rank], resume=False) for rank in range(2)]
    found: dict[int, list[float]] = {}

    def work(rank: int, steps: list[Step]) -> None:
        found[rank] = [together[rank].update(step) for step in steps]

    in_threads([threading.Thread(target=work, args=(rank, steps)) for rank, steps in enumerate(shares(pool, 2))])
    assert found[0] == found[1] == pytest.approx(losses, rel=1e-2)
    for one, two, three in zip(*(t.network.parameters() for t in (alone, *together)), strict=True):
        assert torch.equal(two, three)
        torch.testing.assert_close(one, two, rtol=0.1, atol=0.02)
    assert all(trainer.tokens == 3 * 48 for trainer in (alone, *together))


def test_training_again_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.shutil, "which", lambda name: None)  # as above
    recipe = Recipe(TEMPLATE.parent / "tokenizer.json", "again", 512)
    tokenizer = Tokenizer.from_file(str(recipe.tokenizer))
    monkeypatch.setattr(batches, "POOL", 48)
    plan = Plan(replace(SHAPE, vocab=tokenizer.get_vocab_size()), steps=8, warmup=1)
    runs = []
    for name in ("a", "b"):
        trainer = Trainer(plan, tmp_path / f"{name}.pt", Crew(1, 0), resume=False)
        (share,) = shares(pool_of_steps(recipe, tokenizer, 0), 1)
        runs.append(([trainer.update(step) for step in share[:4]], list(trainer.network.parameters())))
    (losses, first), (again, second) = runs
    assert losses == again and all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_form_begins_as_its_root_and_both_learn_from_it() -> None:
    torch.manual_seed(0)
    network = Network(SHAPE)
    network.derive([0, 1, 1, *range(3, 32)])
    whole = network.embeddings()
    assert torch.equal(whole[2], whole[1]) and not torch.equal(whole[3], whole[1])
    assert torch.equal(model_tensors(network)["model.embed_tokens.weight"], whole.bfloat16())
    whole[2].sum().backward()
    moved = network.embedding.grad
    assert moved is not None and moved[[1, 2]].eq(1.0).all() and moved[[0, *range(3, 32)]].eq(0.0).all()
    again = Network(SHAPE)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.embeddings(), whole)


def test_a_pool_that_went_missing_is_noticed() -> None:
    queue = multiprocessing.get_context("spawn").Queue()
    (share,) = shares([[random_batch(0), random_batch(1)]], 1)
    queue.put(pickle.dumps((4, share)))
    queue.put(pickle.dumps((6, share)))
    found = steps(queue, 4)
    pool, step = next(found)
    assert pool == 4 and step.tokens == 48 and torch.equal(step.batches[1].ids, random_batch(1).ids)
    with pytest.raises(RuntimeError, match="pool 6 came in place of pool 5"):
        next(found)


def test_training_starts_anew_once_where_memory_would_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in train.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")  # a user's own choice
    monkeypatch.setattr(train.sys, "orig_argv", ["python3", "-m", "sirocco.runtime.demo.train", "base"])
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(train.os, "execve", lambda *how: started.append(how))
    train.settle()
    ((program, arguments, environment),) = started
    assert program == arguments[0] == train.sys.executable
    assert arguments[1:] == ["-m", "sirocco.runtime.demo.train", "base"]
    assert {name: environment[name] for name in train.ENVIRONMENT} == train.ENVIRONMENT | {"MALLOC_TOP_PAD_": "5"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train.settle()
    assert len(started) == 1
