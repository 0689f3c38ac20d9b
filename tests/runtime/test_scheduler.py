"""Random workloads over a runner that checks the cache: blocks have one owner, all return, every request ends right."""

import random
from collections import deque

import pytest

from sirocco.runtime.blocks import BlockGroup, BlockPool, longest_request
from sirocco.runtime.plan import Plan, StepResult
from sirocco.runtime.prefix import PrefixCache
from sirocco.runtime.scheduler import Scheduler
from sirocco.runtime.sequence import Regimes
from sirocco.runtime.snapshots import Snapshots
from sirocco.runtime.wire import EngineRequest, Sampling, SequenceOutput

from .fakes import FakeRunner, expected_tokens


class Bench:
    """A scheduler, a fake runner and up to `depth` plans in flight beyond the one being committed."""

    def __init__(
        self,
        num_blocks=64,
        block_size=4,
        max_num_seqs=8,
        budget=32,
        chunk=16,
        prefix_caching=True,
        depth=0,
        groups=((1, None),),
        snapshots=None,
        interval=16,
    ):
        """`groups` are (multiple of `block_size`, window); with `snapshots` the model is recurrent."""
        self.groups = [BlockGroup(block_size * multiple, window) for multiple, window in groups]
        self.pool = BlockPool(num_blocks)
        self.snapshots = None if snapshots is None else Snapshots(snapshots, interval)
        prefix = PrefixCache(self.pool, self.groups, block_size, self.snapshots) if prefix_caching else None
        self.scheduler = Scheduler(self.pool, self.groups, max_num_seqs, budget, chunk, prefix)
        self.runner = FakeRunner(self.groups, budget, recurrent=snapshots is not None)
        self.depth = depth
        self.in_flight: deque[tuple[Plan, StepResult]] = deque()
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.finished: dict[tuple[int, int], str] = {}
        self.cached: dict[tuple[int, int], int] = {}

    def add(self, id, prompt, max_tokens=8, n=1, seed=0, priority=0, salt=None, stop=()):
        sampling = Sampling(max_tokens=max_tokens, seed=seed, stop_token_ids=stop)
        self.scheduler.add(EngineRequest(id, list(prompt), sampling, n, priority, salt))

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        if plan:
            self.in_flight.append((plan, self.runner.launch(plan)))
        if self.in_flight and (not plan or len(self.in_flight) > self.depth):
            self.hear(self.scheduler.commit(*self.in_flight.popleft()))
        return plan

    def hear(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            key = (output.id, output.index)
            assert key not in self.finished, "nothing follows the last output"
            self.tokens.setdefault(key, []).extend(output.token_ids)
            self.cached.setdefault(key, output.cached_tokens)
            if output.finish_reason:
                self.finished[key] = output.finish_reason

    def run(self, limit=10_000) -> int:
        for steps in range(limit):
            had_steps_in_flight = bool(self.in_flight)
            if not self.step() and not had_steps_in_flight:
                return steps
        raise AssertionError("the workload did not end")


MODELS = {  # groups, kept states
    "full": ([(1, None)], None),
    "window": ([(1, 7)], None),
    "alternating": ([(1, None), (1, 7)], None),
    "wide-windows": ([(3, None), (1, 33)], None),
    "three-groups": ([(2, None), (1, 5), (3, 20)], None),
    "recurrent": ([(1, None)], 5),
    "recurrent-window": ([(1, 9), (2, None)], 3),
}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("model", MODELS)
def test_random_workloads(model, seed, depth):
    rng = random.Random(f"{model} {seed}")
    groups, snapshots = MODELS[model]
    bench = Bench(
        num_blocks=rng.choice([24, 40, 200]),
        block_size=rng.choice([1, 4, 16]) if seed % 3 else 4,
        max_num_seqs=rng.choice([1, 3, 8]),
        budget=rng.choice([8, 32, 64]),
        chunk=rng.choice([1, 5, 16]),
        prefix_caching=seed % 4 != 3,
        depth=depth,
        groups=groups,
        snapshots=snapshots,
        interval=rng.choice([4, 40]),
    )
    capacity = longest_request(bench.groups, bench.pool.num_blocks, bench.scheduler.token_budget, 3200)
    shared = [rng.randrange(1000) for _ in range(capacity)]
    wanted, aborted, paused = {}, set(), set()
    for id in range(40):
        max_tokens = rng.randint(1, max(1, min(20, capacity // 3)))
        length = rng.randint(1, max(1, min(capacity - max_tokens, 90)))
        prompt = shared[: rng.randint(0, length)]
        prompt += [rng.randrange(1000) for _ in range(length - len(prompt))]
        n, request_seed = rng.choice([1, 1, 1, 3]), rng.randrange(100)
        bench.add(id, prompt, max_tokens, n, request_seed, priority=rng.choice([0, 0, 1]))
        for index in range(n):
            wanted[id, index] = expected_tokens(prompt, max_tokens, request_seed + index)
        for _ in range(rng.randint(0, 6)):
            bench.step()
        if rng.random() < 0.15:
            victim = rng.randrange(id + 1)
            bench.scheduler.abort(victim)
            aborted.add(victim)
        if rng.random() < 0.2:
            reader = rng.randrange(id + 1)
            bench.scheduler.pause(reader, reader not in paused)
            paused ^= {reader}
    if seed % 2:
        bench.run()
        assert {key for key in wanted if key[0] not in paused | aborted} <= bench.finished.keys(), "held up by nobody"
    for reader in paused:
        bench.scheduler.pause(reader, False)
    bench.run()
    assert bench.pool.num_used == 0
    if bench.snapshots is not None:
        assert len(bench.snapshots._free) + bench.snapshots.num_known == snapshots, "every slot is free or known"
    assert bench.scheduler.num_requests == 0
    stats = bench.scheduler.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    for key, tokens in wanted.items():
        if key[0] not in aborted:
            assert bench.finished[key] == "length"
            assert bench.tokens[key] == tokens
        elif key in bench.tokens:
            assert tokens[: len(bench.tokens[key])] == bench.tokens[key]


def test_tiny_pool_preempts_and_recomputes():
    bench = Bench(num_blocks=10, block_size=4, budget=16, chunk=8)
    prompts = [[id] * 8 for id in range(4)]
    for id, prompt in enumerate(prompts):
        bench.add(id, prompt, max_tokens=20)
    bench.run()
    assert bench.scheduler.stats().preemptions > 0
    for id, prompt in enumerate(prompts):
        assert bench.tokens[id, 0] == expected_tokens(prompt, 20)


def test_short_request_starts_beside_a_long_prompt():
    bench = Bench(num_blocks=30_000, block_size=4, budget=256, chunk=64)
    bench.add(1, range(100_000), max_tokens=4)
    for _ in range(3):
        bench.step()
    bench.add(2, [7, 8, 9], max_tokens=4)
    bench.step()
    assert bench.tokens.get((2, 0)), "its first token comes in the next step"
    plan = bench.step()
    assert plan.counts[0] == 1, "rows one token behind come first"
    assert sum(plan.counts[1:]) <= 64, "prompts keep to the chunk while others decode"


def test_prefix_hits_skip_computation():
    prompt = list(range(41))
    bench = Bench(num_blocks=200)
    bench.add(1, prompt)
    bench.run()
    before = bench.runner.computed_tokens
    bench.add(2, prompt)
    bench.run()
    assert bench.cached[2, 0] == 40
    assert bench.runner.computed_tokens - before == 1 + 7  # the prompt's last token, then all but the last output
    assert bench.tokens[2, 0] == bench.tokens[1, 0]


def test_salt_keeps_prefixes_apart():
    bench = Bench(num_blocks=200)
    bench.add(1, range(20), salt="a")
    bench.run()
    bench.add(2, range(20), salt="b")
    bench.add(3, range(20), salt="a")
    bench.run()
    assert bench.cached[2, 0] == 0
    assert bench.cached[3, 0] == 16


def test_choices_share_the_prompt():
    bench = Bench(num_blocks=200)
    bench.add(1, range(33), n=4, seed=5)
    bench.run()
    assert bench.runner.computed_tokens == 33 + 3 * 1 + 4 * 7
    for index in range(4):
        assert bench.tokens[1, index] == expected_tokens(list(range(33)), 8, 5 + index)


@pytest.mark.parametrize("depth", [0, 1])
def test_outgrowing_a_rope_regime_computes_the_request_anew(depth):
    bench = Bench(num_blocks=200, depth=depth)
    bench.runner.fits = lambda regime, length: regime == (length > 20)
    bench.scheduler.regimes = Regimes(lambda length: int(length > 20), lambda regime: 20 if regime == 0 else None)
    prompts = [list(range(5)), list(range(18)), list(range(20)), list(range(40))]
    for id, prompt in enumerate(prompts):
        bench.add(id, prompt, max_tokens=12)
    bench.run()
    for id, prompt in enumerate(prompts):
        assert bench.tokens[id, 0] == expected_tokens(prompt, 12)
    assert bench.scheduler.stats().preemptions == 2, "those of 18 and 20 tokens crossed"
    assert bench.pool.num_used == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_preemption_and_pauses_do_not_change_a_regime(depth):
    """A regime that is the length of what there is when it begins, as that of dynamic NTK scaling is."""

    def regimes_seen(num_blocks: int, pause: bool) -> set[tuple[int, int]]:
        bench = Bench(num_blocks=num_blocks, max_num_seqs=3, depth=depth)
        bench.runner.fits = lambda regime, length: length <= (2 * regime or 16)
        bench.scheduler.regimes = Regimes(
            lambda length: length if length > 16 else 0, lambda regime: 2 * regime if regime else 16
        )
        for id, length in enumerate((9, 17, 25)):
            bench.add(id, range(100 * id, 100 * id + length), max_tokens=30, seed=1000 * id)
        for step in range(200):
            if pause and step % 10 == 5:
                bench.scheduler.pause(1, step % 20 == 5)
            bench.step()
        bench.run()
        assert len(bench.finished) == 3
        assert bench.scheduler.stats().preemptions > 3 or num_blocks > 50
        return bench.runner.regimes

    undisturbed = regimes_seen(200, pause=False)
    assert undisturbed == regimes_seen(25, pause=False) == regimes_seen(25, pause=True)
    assert (1000, 17) in undisturbed and (2000, 51) in undisturbed, "one kept, one outgrown"


@pytest.mark.parametrize("depth", [0, 1])
def test_blocks_that_left_the_window_are_given_back(depth):
    bench = Bench(num_blocks=200, depth=depth, groups=[(1, 10)])
    prompts = [list(range(60)), list(range(60)), list(range(200, 205))]
    for id, prompt in enumerate(prompts):
        bench.add(id, prompt, max_tokens=50)
    for _ in range(12):
        bench.step()
    assert bench.pool.num_used <= 3 * (10 // 4 + 2) + 16 // 4, "a window and the chunk being computed each"
    bench.run()
    for id, prompt in enumerate(prompts):
        assert bench.tokens[id, 0] == expected_tokens(prompt, 50)
    assert bench.pool.num_used == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_windows_give_back_what_full_layers_keep(depth):
    bench = Bench(num_blocks=200, depth=depth, groups=[(1, None), (1, 10)])
    prompt = list(range(60))
    bench.add(1, prompt, max_tokens=50)
    for _ in range(30):
        bench.step()
    length = len(prompt) + len(bench.tokens[1, 0])
    full, window = length // 4 + 1, 10 // 4 + 2
    assert full < bench.pool.num_used <= full + window
    bench.run()
    assert bench.tokens[1, 0] == expected_tokens(prompt, 50)


def test_a_long_request_fits_where_all_its_blocks_would_not():
    bench = Bench(num_blocks=40, budget=8, groups=[(1, None), (1, 6)])
    length = longest_request(bench.groups, 40, 8, 1000)
    assert length > 39 // 2 * 4
    bench.add(1, range(length - 20), max_tokens=20)
    bench.add(2, range(500, 550), max_tokens=20)  # has to wait or to leave, and ends all the same
    bench.run()
    assert bench.tokens[1, 0] == expected_tokens(list(range(length - 20)), 20)
    assert bench.tokens[2, 0] == expected_tokens(list(range(500, 550)), 20)


def test_prefix_hit_of_a_mixed_model_needs_its_window():
    prompt = list(range(49))
    bench = Bench(num_blocks=200, groups=[(2, None), (1, 10)])
    bench.add(1, prompt)
    bench.run()
    bench.add(2, prompt)
    bench.run()
    assert bench.cached[2, 0] == 48
    bench.pool._block_of.pop((1, next(name for group, name in reversed(bench.pool._block_of) if group == 1)))
    before = bench.runner.computed_tokens
    bench.add(3, [*prompt[:40], 999])
    bench.run()
    assert bench.cached[3, 0] == 40, "whose window is there"
    assert bench.runner.computed_tokens - before == 1 + 7
    assert bench.tokens[3, 0] == expected_tokens([*prompt[:40], 999], 8)


def test_a_window_is_all_that_a_hit_needs():
    prompt = list(range(80))
    bench = Bench(num_blocks=16, budget=16, max_num_seqs=1, groups=[(1, 10)])
    bench.add(1, prompt)
    bench.run()  # fifteen blocks do not hold eighty tokens: the first are gone
    bench.add(2, prompt)
    bench.run()
    assert bench.cached[2, 0] == 76
    assert bench.tokens[2, 0] == bench.tokens[1, 0] == expected_tokens(prompt, 8)


def test_recurrent_state_is_gone_back_to_at_the_last_border_of_a_prompt():
    prompt = list(range(42))
    bench = Bench(num_blocks=200, budget=64, snapshots=4, interval=1000)
    bench.add(1, prompt)
    bench.run()
    assert bench.snapshots.num_known == 1
    before = bench.runner.computed_tokens
    bench.add(2, [*prompt, 7, 8, 9])
    bench.add(3, prompt[:30])  # blocks of 28 tokens are there, but no state after so many
    bench.run()
    assert (bench.cached[2, 0], bench.cached[3, 0]) == (40, 0)
    assert bench.runner.computed_tokens - before == 5 + 7 + 30 + 7
    assert bench.tokens[2, 0] == expected_tokens([*prompt, 7, 8, 9], 8)


def test_recurrent_states_are_kept_along_the_way_and_the_longest_unused_goes():
    prompt = list(range(100))
    bench = Bench(num_blocks=200, snapshots=3, interval=32)
    bench.add(1, prompt, max_tokens=1)
    bench.run()
    assert bench.snapshots.num_known == 3  # of those after 32, 64 and 96 tokens
    for id, (length, cached) in enumerate([(66, 64), (34, 32)], start=2):
        bench.add(id, prompt[:length], max_tokens=1)
        bench.run()
        assert bench.cached[id, 0] == cached
    bench.add(4, range(200, 220), max_tokens=1)  # keeps one more
    bench.add(5, prompt, max_tokens=1)
    bench.run()
    assert bench.cached[5, 0] == 64, "that after 96 was used longest ago"
    assert bench.tokens[5, 0] == expected_tokens(prompt, 1)


def test_choices_share_a_recurrent_prompt():
    bench = Bench(num_blocks=200, budget=64, snapshots=4)
    bench.add(1, range(33), n=4, seed=5)
    bench.run()
    assert bench.runner.computed_tokens == 33 + 3 * 1 + 4 * 7
    for index in range(4):
        assert bench.tokens[1, index] == expected_tokens(list(range(33)), 8, 5 + index)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_state_of_an_aborted_or_failed_step_is_not_kept(depth):
    bench = Bench(snapshots=2, depth=depth, interval=4)
    bench.add(1, range(9))
    bench.add(2, range(20, 28))
    plan = bench.scheduler.plan()
    assert plan.saves
    bench.hear(bench.scheduler.fail(plan, "boom"))
    assert bench.snapshots.num_known == 0
    bench.add(3, range(40, 44), max_tokens=50)
    for _ in range(4):
        bench.step()
    bench.scheduler.abort(3)
    bench.run()
    assert len(bench.snapshots._free) + bench.snapshots.num_known == 2


def test_stop_token_ends_a_sequence():
    tokens = expected_tokens([1, 2, 3], 8)
    bench = Bench()
    bench.add(1, [1, 2, 3], stop=(tokens[4],))
    bench.run()
    assert bench.tokens[1, 0] == tokens[: tokens.index(tokens[4]) + 1]
    assert bench.finished[1, 0] == "stop"


@pytest.mark.parametrize("depth", [0, 1])
def test_abort_returns_blocks_at_once_or_when_its_step_retires(depth):
    bench = Bench(depth=depth)
    bench.add(1, range(30), max_tokens=50)
    for _ in range(4):
        bench.step()
    bench.scheduler.abort(1)
    bench.run()
    assert bench.pool.num_used == 0
    assert (1, 0) not in bench.finished


def test_priority_goes_first_and_paused_requests_hold_up_nobody():
    bench = Bench(max_num_seqs=1, budget=64)
    bench.add(1, [1], max_tokens=3, priority=1)
    bench.add(2, [2], max_tokens=3, priority=0)
    bench.step()
    assert (2, 0) in bench.tokens and (1, 0) not in bench.tokens
    bench.scheduler.pause(2, True)
    for _ in range(8):
        bench.step()
    assert bench.finished.get((1, 0)) == "length", "the paused request gave up its slot"
    bench.scheduler.pause(2, False)
    bench.run()
    assert bench.tokens[2, 0] == expected_tokens([2], 3)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_paused_requests_give_up_their_blocks_to_one_that_waits(depth, prefix_caching):
    bench = Bench(num_blocks=11, block_size=16, budget=256, chunk=256, depth=depth, prefix_caching=prefix_caching)
    prompts = {1: list(range(60)), 2: list(range(100, 140)), 3: list(range(200, 270))}
    for id in (1, 2):  # 4 and 3 blocks of 10
        bench.add(id, prompts[id], max_tokens=30)
    for _ in range(3):
        bench.step()
    for id in (1, 2):  # steps of theirs may be in flight
        bench.scheduler.pause(id, True)
    bench.add(3, prompts[3], max_tokens=8)  # 5 blocks
    for _ in range(12):
        bench.step()
    assert bench.finished.get((3, 0)) == "length"
    assert bench.scheduler.stats().preemptions == 1, "the less urgent of the two was enough"
    for id in (1, 2):
        bench.scheduler.pause(id, False)
    bench.run()
    assert bench.tokens == {(id, 0): expected_tokens(prompt, 8 if id == 3 else 30) for id, prompt in prompts.items()}


def test_a_pause_lets_a_request_in_that_has_waited_for_blocks():
    bench = Bench(num_blocks=11, block_size=16, budget=256, chunk=256)
    bench.add(1, range(100), max_tokens=50)
    bench.step()
    bench.add(2, range(200, 264), max_tokens=8)
    bench.step()
    assert (2, 0) not in bench.tokens
    bench.scheduler.pause(1, True)
    bench.step()
    assert (2, 0) in bench.tokens


@pytest.fixture
def lookups(monkeypatch):
    """The lengths of what has been looked up in the prefix cache."""
    lengths, match = [], PrefixCache.match

    def counted(cache, digests, limit):
        lengths.append(limit + 1)
        return match(cache, digests, limit)

    monkeypatch.setattr(PrefixCache, "match", counted)
    return lengths


def test_a_request_that_waits_for_blocks_is_not_looked_up_in_every_step(lookups):
    bench = Bench(num_blocks=40, budget=64, chunk=64)
    known, other = list(range(80)), list(range(500, 540))
    bench.add(1, known, max_tokens=1)
    bench.run()
    bench.add(2, other, max_tokens=60)  # 10 of 39 blocks, and one more every fourth step
    for _ in range(3):
        bench.step()
    bench.add(3, known + other, max_tokens=4)  # 30 blocks: those it shares are free, so they are no help
    for _ in range(30):
        bench.step()
    assert (3, 0) not in bench.tokens
    assert lookups.count(120) == 1
    bench.scheduler.abort(2)
    bench.step()
    assert (3, 0) in bench.tokens, "there are blocks again"
    assert bench.cached[3, 0] == 80


def test_a_request_that_waits_for_blocks_starts_when_another_shares_enough_of_them():
    bench = Bench(num_blocks=19, budget=32, chunk=32)
    prompt = list(range(60))
    bench.add(1, prompt, max_tokens=20)  # 15 of 18 blocks, 4 in each step
    bench.add(2, [*prompt, *range(900, 908)], max_tokens=2)  # 17 blocks, of which it comes to share 15
    bench.step()
    assert bench.scheduler.stats().waiting == 1
    while (1, 0) not in bench.tokens:
        bench.step()
    bench.step()
    assert (2, 0) in bench.tokens
    assert bench.cached[2, 0] == 60


def test_requests_that_gave_up_waiting_are_forgotten():
    """Prompts are long, and what holds up the queue may last."""
    bench = Bench(max_num_seqs=1)
    bench.add(1, [1], max_tokens=10_000)
    bench.step()
    bench.add(2, [2], max_tokens=3)
    for id in range(3, 103):
        bench.add(id, [id], max_tokens=3, priority=id % 2)
        bench.scheduler.abort(id)
    assert len(bench.scheduler._waiting._heap) <= 4
    bench.add(103, [103], max_tokens=3)
    bench.scheduler.abort(1)
    bench.run()
    assert list(bench.finished) == [(2, 0), (103, 0)]


def test_seeds_of_choices_begin_again_after_the_largest():
    bench = Bench()
    bench.add(1, [1, 2, 3], n=2, seed=2**63 - 1)
    bench.run()
    for index, seed in enumerate([2**63 - 1, 0]):
        assert bench.tokens[1, index] == expected_tokens([1, 2, 3], 8, seed)


def test_failed_step_ends_its_requests_only():
    bench = Bench(max_num_seqs=2)
    bench.add(1, [1, 2, 3])
    bench.add(2, [4, 5])
    bench.add(3, [6])
    plan = bench.scheduler.plan()
    bench.hear(bench.scheduler.fail(plan, "boom"))
    assert {key[0] for key in bench.finished} == {1, 2}
    bench.run()
    assert bench.finished[3, 0] == "length"
    assert bench.pool.num_used == 0


def test_logits_that_are_not_finite_end_one_request():
    bench = Bench()
    bench.add(1, [1, 2, 3])
    bench.add(2, [4, 5])
    plan = bench.scheduler.plan()
    result = bench.runner.launch(plan)
    bench.hear(bench.scheduler.commit(plan, StepResult([-1, result.token_ids[1]])))
    assert bench.finished == {(1, 0): "error"}
    bench.run()
    assert bench.tokens[2, 0] == expected_tokens([4, 5], 8)


def test_ten_thousand_waiting_requests_do_not_slow_a_step():
    """Counted, not timed: planning touches running requests and those it admits, never the whole queue."""
    bench = Bench(max_num_seqs=4)
    for id in range(10_000):
        bench.add(id, [id % 1000], max_tokens=5)
    bench.step()
    touched = 0

    class Counting(list):
        def __iter__(self):
            nonlocal touched
            touched += len(self)
            return super().__iter__()

    queue = bench.scheduler._waiting
    queue._heap = Counting(queue._heap)
    bench.step()
    assert touched == 0


def test_a_prompt_is_scored_once_for_all_choices():
    bench = Bench(num_blocks=64, budget=32, chunk=32)
    bench.scheduler.add(EngineRequest(1, list(range(5, 25)), Sampling(max_tokens=2, prompt_logprobs=0), n=4))
    computed, scored = 0, []
    while plan := bench.scheduler.plan():
        computed += sum(plan.counts)
        scored += [a.slot for a in plan.admissions if a.sampling.prompt_logprobs is not None]
        bench.scheduler.commit(plan, bench.runner.launch(plan))
    assert len(scored) == 1 and computed < 20 + 4 * 8


def test_log_probabilities_of_a_prompt_of_one_token_are_none():
    """Its only token has no probability, so no row of the runner's brings any; the list must be there all the same."""
    bench = Bench()
    bench.scheduler.add(EngineRequest(1, [5], Sampling(max_tokens=2, prompt_logprobs=0)))
    plan = bench.scheduler.plan()
    (output,) = bench.scheduler.commit(plan, bench.runner.launch(plan))
    assert output.prompt_logprobs == [None]
    plan = bench.scheduler.plan()
    (output,) = bench.scheduler.commit(plan, bench.runner.launch(plan))
    assert output.prompt_logprobs is None
