"""A runner without a model: it keeps what a cache would hold, and checks that every row finds its own past there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from sirocco.runtime.blocks import BlockGroup
from sirocco.runtime.plan import Plan, StepResult


def next_token(token_ids: list[int], seed: int = 0, vocab_size: int = 1000) -> int:
    """What the fake model says after `token_ids`: any function of the whole past will do."""
    digest = blake2b(repr((token_ids, seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab_size


@dataclass
class Mirror:
    token_ids: list[int]
    seed: int
    regime: int
    tables: list[list[int | None]]  # of each group; None where a block was never held
    pasts: list[bytes] = field(default_factory=list)


@dataclass
class Content:
    """What stands in a block: it belongs to the group that wrote last, and nothing of another's is left."""

    group: int
    pasts: dict[int, bytes] = field(default_factory=dict)  # by offset


class FakeRunner:
    """Mirrors slots as the real runner does. A token's key stands for all tokens up to it, its `past`.

    A `recurrent` one also has a state for each slot, the past of the last token that it took in.
    """

    graph_misses = 0

    def __init__(self, groups: Sequence[BlockGroup], max_step_tokens: int = 10**9, recurrent: bool = False) -> None:
        self.groups = groups
        self.max_step_tokens = max_step_tokens
        self.recurrent = recurrent
        self.cache: dict[int, Content] = {}
        self.slots: dict[int, Mirror] = {}
        self.states: dict[int, bytes] = {}
        self.snapshots: dict[int, bytes] = {}
        self.computed_tokens = 0
        self.fits: Callable[[int, int], bool] = lambda regime, length: regime == 0
        self.regimes: set[tuple[int, int]] = set()  # of each seed

    def launch(self, plan: Plan) -> StepResult:
        assert plan.num_tokens <= self.max_step_tokens
        assert len(set(plan.slots)) == len(plan.slots), "one row a request"
        for admission in plan.admissions:
            self.slots[admission.slot] = Mirror(
                admission.token_ids.copy(), admission.seed, admission.regime, [[] for _ in self.groups]
            )
            self.regimes.add((admission.seed, admission.regime))
        for slot, group, first, blocks in plan.new_blocks:
            table = self.slots[slot].tables[group]
            assert len(table) == first or not table, "a table grows at its end"
            assert 0 not in blocks, "the null block is nobody's"
            table += [None] * (first - len(table))
            table += blocks
        for snapshot, slot in plan.restores:
            self.states[slot] = self.snapshots[snapshot]
        tokens = []
        for slot, start, count, samples in zip(plan.slots, plan.starts, plan.counts, plan.samples, strict=True):
            mirror = self.slots[slot]
            assert self.fits(mirror.regime, len(mirror.token_ids)), "no row is computed in another length's regime"
            for group in range(len(self.groups)):
                self.read(mirror, group, start)
                self.write(mirror, group, start, count)
            if self.recurrent:
                assert start == 0 or self.states[slot] == self.past(mirror, start - 1), (slot, start)
                self.states[slot] = self.past(mirror, start + count - 1)
            self.computed_tokens += count
            if samples:
                assert len(mirror.token_ids) == start + count
                tokens.append(next_token(mirror.token_ids, mirror.seed))
                mirror.token_ids.append(tokens[-1])
        for row, snapshot in plan.saves:
            self.snapshots[snapshot] = self.states[plan.slots[row]]
        return StepResult(tokens)

    def fetch(self, step: StepResult) -> StepResult:
        return step

    def check_device(self) -> None: ...

    def read(self, mirror: Mirror, group: int, start: int) -> None:
        """Check what the queries from position `start` on look back to."""
        size, window = self.groups[group].block_tokens, self.groups[group].window
        for position in range(max(0, start - window + 1) if window else 0, start):
            block = mirror.tables[group][position // size]
            content = None if block is None else self.cache.get(block)
            assert content is not None and content.group == group, (group, position)
            assert content.pasts.get(position % size) == self.past(mirror, position), (group, position)

    def write(self, mirror: Mirror, group: int, start: int, count: int) -> None:
        size = self.groups[group].block_tokens
        for position in range(start, start + count):
            block = mirror.tables[group][position // size]
            assert block is not None
            content = self.cache.get(block)
            if content is None or content.group != group:
                content = self.cache[block] = Content(group)
            content.pasts[position % size] = self.past(mirror, position)

    def past(self, mirror: Mirror, position: int) -> bytes:
        while len(mirror.pasts) <= position:
            before = mirror.pasts[-1] if mirror.pasts else bytes([mirror.regime])
            token = mirror.token_ids[len(mirror.pasts)].to_bytes(4, "little")
            mirror.pasts.append(blake2b(before + token, digest_size=8).digest())
        return mirror.pasts[position]


def expected_tokens(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    """What a request must generate, whatever else happens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]
