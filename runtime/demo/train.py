"""Train the demo model, its draft or its adapter on generated text.

python -m sirocco.runtime.demo.train [base|finish|draft|lora] --work DIR [--resume]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from sirocco.runtime.demo.batches import PARTS, Queue, Recipe, Step, queues, steps
from sirocco.runtime.demo.crew import Crew
from sirocco.runtime.demo.network import LoraSettings, Network, Projection, Shape
from sirocco.runtime.demo.optimizer import Muon
from sirocco.runtime.demo.vocabulary import roots, texts, train_tokenizer

__all__ = ["PLANS", "Plan", "load_network"]

VOCAB = 3840
CHECKPOINT_SECONDS = 120.0
# glibc keeps memory rather than give it back and fault it in again at every step, and oneDNN all that it prepares.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(1 << 14),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one network is trained; peak step sizes, cooled linearly to their last share over part of the run."""

    shape: Shape
    steps: int
    tokens: int = 4096
    matrix_lr: float = 0.02
    vector_lr: float = 0.004
    warmup: int = 100
    cooldown: float = 0.55  # the part of the steps in which step sizes cool
    last: float = 0.0  # the share of the peak step sizes at the end
    weight_decay: float = 0.02
    manner: str = "plain"
    lora: LoraSettings | None = None
    begins: str = ""  # the plan from whose weights this one goes on
    late: bool = False  # whether the text is that of the end of training


BASE = Shape(vocab=VOCAB, width=256, layers=6, heads=4, kv_heads=2, hidden=512)
PLANS = {
    "base": Plan(BASE, steps=6400, tokens=4864, cooldown=0.66, last=0.25),
    "finish": Plan(
        BASE,
        steps=3300,
        tokens=4864,
        matrix_lr=0.005,
        vector_lr=0.001,
        warmup=20,
        cooldown=1.0,
        begins="base",
        late=True,
    ),
    "draft": Plan(Shape(vocab=VOCAB, width=104, layers=3, heads=2, kv_heads=1, hidden=192), steps=2000),
    "lora": Plan(
        BASE, steps=220, matrix_lr=0.0, vector_lr=0.003, manner="pirate", lora=LoraSettings(), begins="finish"
    ),
}


def optimizers(network: Network, plan: Plan, crew: Crew) -> list[torch.optim.Optimizer]:
    """Muon for the projections and Adam for the rest; Adam alone for an adapter."""
    if plan.lora is not None:
        trained = [p for p in network.parameters() if p.requires_grad]
        return [
            torch.optim.AdamW(
                [{"params": trained, "peak": plan.vector_lr}], lr=plan.vector_lr, betas=(0.9, 0.99), weight_decay=0.0
            )
        ]
    projections = [module for module in network.modules() if isinstance(module, Projection)]
    matrices = [{"params": [p.weight], "slices": p.outputs, "peak": plan.matrix_lr} for p in projections]
    held = {id(p.weight) for p in projections}
    rest = [p for p in network.parameters() if id(p) not in held]
    return [
        Muon(matrices, crew, lr=plan.matrix_lr, weight_decay=plan.weight_decay),
        torch.optim.AdamW(
            [{"params": rest, "peak": plan.vector_lr}], lr=plan.vector_lr, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]


def schedule(step: int, plan: Plan) -> float:
    """The share of the peak step size at a step."""
    left = (plan.steps - step) / max(1.0, plan.cooldown * plan.steps)
    cooled = plan.last + (1.0 - plan.last) * min(1.0, max(0.0, left))
    return min(cooled, (step + 1) / plan.warmup)


def load_network(path: Path) -> Network:
    """The network of a checkpoint."""
    state = torch.load(path, weights_only=True)
    network = Network(Shape(**state["shape"]), LoraSettings(**state["lora"]) if state["lora"] else None)
    network.load_state_dict(state["network"])
    return network


def save(path: Path, network: Network, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader never sees half of one."""
    lora = None if network.lora is None else {"rank": network.lora.rank, "alpha": network.lora.alpha}
    scratch = path.with_suffix(".part")
    torch.save({"shape": network.shape.as_dict(), "lora": lora, "network": network.state_dict(), **state}, scratch)
    scratch.replace(path)


class Trainer:
    """One run in one of a crew's processes: a network, its optimizers, and where it stands."""

    def __init__(self, plan: Plan, path: Path, crew: Crew, *, resume: bool, roots: list[int] | None = None) -> None:
        self.plan, self.path, self.crew = plan, path, crew
        torch.manual_seed(1)
        self.network = Network(plan.shape, plan.lora)
        if roots is not None:
            self.network.derive(roots)
        self.optimizers = optimizers(self.network, plan, crew)
        self.step, self.pool, self.tokens, self.seconds = 0, 0, 0, 0.0
        if resume and path.exists():
            self.restore()
        elif plan.begins:
            before = load_network(path.with_name(f"{plan.begins}.pt")).state_dict()
            self.network.load_state_dict(before, strict=False)  # an adapter's own weights are not among them
        # Every gradient and the loss in one row, so that a crew adds them up in one go.
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.sums = torch.zeros(sum(p.numel() for p in self.trained) + 1)
        for p, part in zip(self.trained, self.sums[1:].split([p.numel() for p in self.trained]), strict=True):
            p.grad = part.view_as(p)
        if shutil.which("g++") is not None:
            self.network.compile_blocks()

    def restore(self) -> None:
        """Continue from the checkpoint, at the pool after the one it was in."""
        state = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.pool = state["step"], state["pool"] + 1
        self.tokens, self.seconds = state["tokens"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint, in one process of the crew."""
        if self.crew.rank > 0:
            return
        state = {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        numbers = {"step": self.step, "pool": self.pool, "tokens": self.tokens, "seconds": self.seconds}
        save(self.path, self.network, state | numbers)

    def update(self, step: Step) -> float:
        """One optimizer step; the mean loss."""
        self.sums.zero_()
        for batch in step.batches:
            loss = self.network(batch.ids, batch.places, batch.targets) / step.labels
            loss.backward()
            self.sums[0] += loss.detach()
        self.crew.total(self.sums)
        share = schedule(self.step, self.plan)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
        self.step += 1
        self.tokens += step.tokens
        return self.sums[0].item()

    def run(self, queue: Queue) -> None:
        """Train to the plan's last step."""
        saved = began = time.monotonic()
        before, since = self.seconds, self.tokens
        total, count = 0.0, 0
        for pool, step in steps(queue, self.pool):
            self.pool = pool
            if self.step >= self.plan.steps:
                break
            total, count = total + self.update(step), count + 1
            now = time.monotonic()
            self.seconds = before + now - began
            if not math.isfinite(total):
                raise RuntimeError(f"the loss is not finite at step {self.step}")
            if count == 50:
                rate = (self.tokens - since) / (now - began)
                progress = f"step {self.step} loss {total / count:.4f} tokens {self.tokens / 1e6:.2f}M {rate:.0f}/s"
                if self.crew.rank == 0:
                    print(f"{progress} {self.seconds / 60:.1f} min", flush=True)
                total, count = 0.0, 0
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = now
        self.save()


def work(rank: int, plan: Plan, path: Path, crew: Crew, resume: bool, roots: list[int], queue: Queue) -> None:
    """A further process of a crew."""
    torch.set_num_threads(1)
    try:
        Trainer(plan, path, crew.as_rank(rank), resume=resume, roots=roots).run(queue)
    except BaseException:
        crew.abandon()
        raise


def train(plan: Plan, path: Path, recipe: Recipe, *, resume: bool, processes: int) -> None:
    """Train one network into a checkpoint."""
    torch.set_num_threads(1)
    crew = Crew(processes, sum(p.numel() for p in Network(plan.shape, plan.lora).parameters()) + 1)
    forms = roots(Tokenizer.from_file(str(recipe.tokenizer)))
    trainer = Trainer(plan, path, crew, resume=resume, roots=forms)
    filled = queues(recipe, processes, trainer.pool)
    for rank in range(1, processes):
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(rank, plan, path, crew, resume, forms, filled[rank]), daemon=True
        )
        process.start()
    trainer.run(filled[0])


def settle() -> None:
    """Start this program again under ENVIRONMENT, which is read when a process begins, unless it has all of it."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ENVIRONMENT | os.environ)


def main() -> None:
    """Train one of the networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        default="base",
        choices=PLANS,
        help="which network (default: base; finish needs base, and lora finish)",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the tokenizer and the checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    parser.add_argument("--steps", type=int, help="steps in all, instead of the plan's")
    parser.add_argument(
        "--processes",
        type=int,
        default=min(PARTS, os.cpu_count() or 1),
        choices=range(1, PARTS + 1),
        help="processes of one thread each (default: %(default)s)",
    )
    parser.add_argument("--seed", default="first", help="seed of the generated text")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = options.work / "tokenizer.json"
    if not tokenizer.exists():
        train_tokenizer(texts(20000), VOCAB).save(str(tokenizer))
    plan = PLANS[options.name]
    plan = replace(plan, steps=options.steps or plan.steps)
    train(
        plan,
        options.work / f"{options.name}.pt",
        Recipe(tokenizer, f"{options.name} {options.seed}", plan.tokens, plan.manner, plan.late),
        resume=options.resume,
        processes=options.processes,
    )


if __name__ == "__main__":
    settle()
    main()
