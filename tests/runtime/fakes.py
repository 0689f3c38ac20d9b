"""A runner without a model: it keeps what a cache would hold, and checks that every row finds its own past there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from sirocco.runtime.plan import Plan, StepResult


def next_token(token_ids: list[int], seed: int = 0, vocab_size: int = 1000) -> int:
    """What the fake model says after `token_ids`: any function of the whole past will do."""
    digest = blake2b(repr((token_ids, seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab_size


@dataclass
class Mirror:
    token_ids: list[int]
    seed: int
    regime: int = 0
    blocks: list[int] = field(default_factory=list)


class FakeRunner:
    """Mirrors slots as the real runner does. `cache[block][offset]` is the past (token ids) whose keys stand there."""

    def __init__(self, block_size: int, max_step_tokens: int = 10**9) -> None:
        self.block_size = block_size
        self.max_step_tokens = max_step_tokens
        self.cache: dict[int, dict[int, bytes]] = {}
        self.slots: dict[int, Mirror] = {}
        self.computed_tokens = 0
        self.window: int | None = None
        self.regime_of: Callable[[int], int] = lambda length: 0

    def launch(self, plan: Plan) -> StepResult:
        assert plan.num_tokens <= self.max_step_tokens
        assert len(set(plan.slots)) == len(plan.slots), "one row a request"
        for admission in plan.admissions:
            self.slots[admission.slot] = Mirror(admission.token_ids.copy(), admission.seed, admission.regime)
        for slot, first, blocks in plan.new_blocks:
            table = self.slots[slot].blocks
            assert len(table) == first, "a table grows at its end"
            table += blocks
        tokens: list[int] = []
        for slot, start, count, samples in zip(plan.slots, plan.starts, plan.counts, plan.samples, strict=True):
            mirror = self.slots[slot]
            assert mirror.regime == self.regime_of(len(mirror.token_ids)), (
                "no row is computed in another length's regime"
            )
            assert 0 not in mirror.blocks, "the null block is nobody's"
            for position in range(max(0, start - self.window + 1) if self.window else 0, start):
                assert self.read(mirror, position) == self.past(mirror, position), (slot, position)
            for position in range(start, start + count):
                block = mirror.blocks[position // self.block_size]
                self.cache.setdefault(block, {})[position % self.block_size] = self.past(mirror, position)
            self.computed_tokens += count
            if samples:
                assert len(mirror.token_ids) == start + count
                tokens.append(next_token(mirror.token_ids, mirror.seed))
                mirror.token_ids.append(tokens[-1])
        return StepResult(tokens)

    def fetch(self, step: StepResult) -> StepResult:
        return step

    def read(self, mirror: Mirror, position: int) -> bytes | None:
        block = mirror.blocks[position // self.block_size]
        return self.cache.get(block, {}).get(position % self.block_size)

    def past(self, mirror: Mirror, position: int) -> bytes:
        return blake2b(repr((mirror.regime, mirror.token_ids[: position + 1])).encode(), digest_size=8).digest()


def expected_tokens(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    """What a request must generate, whatever else happens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]
