"""The measuring: in each round every engine runs once in a fresh process, on the same geometry, weights and token ids.

Metrics are named as those of `bench/peers`; `decode16_tps` counts the tokens of 16 streams after each one's first.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sirocco.bench.moe.drivers.spec import MoeSpec
from sirocco.bench.moe.work import NEW_TOKENS, PROMPT, SHORT_PROMPT, STREAMS, MoeResults, work_of
from sirocco.bench.peers.child import Child, Launch
from sirocco.bench.peers.drivers.host import Reply
from sirocco.bench.peers.measure import (
    CHILD_ERRORS,
    MACHINE,
    Measurer,
    note_peak_anon,
    noted,
    read_setting,
    rotated,
)
from sirocco.bench.peers.results import OURS, Entry, Run
from sirocco.bench.peers.vocabulary import Prompt
from sirocco.runtime.errors import RequestError

_DRIVERS = Path(__file__).parent / "drivers"
_MAX_TRIES = 2
_WARMUP_TOKENS = 3
_DTYPE = "bf16"


@dataclass(frozen=True, slots=True)
class Test:
    """`streams` prompts of `prompt_len` tokens at once, `count` new tokens each."""

    name: str
    prompt_len: int
    streams: int
    count: int

    def figures(self, reply: Reply) -> dict[str, float]:
        """The metrics that this test gives."""
        first_s, total_s = reply["first_s"], reply["total_s"]
        if self.count == 1:
            return {f"{self.name}_tps": self.prompt_len * self.streams / first_s}
        found = {f"decode{self.streams}_tps": self.streams * (self.count - 1) / (total_s - first_s)}
        return found if self.streams == 1 else {f"{self.name}_tps": self.streams * self.count / total_s} | found


_PREFILL = Test(f"prefill{PROMPT}", PROMPT, 1, 1)
_DECODING = (
    Test("decode1", SHORT_PROMPT, 1, NEW_TOKENS),
    Test(f"conc{STREAMS}", SHORT_PROMPT, STREAMS, NEW_TOKENS),
)


@dataclass(frozen=True, slots=True)
class Engine:
    """One to compare: its driver, a word for how it computes, and what it is asked."""

    name: str
    variant: str
    driver: Path
    tests: Sequence[Test] = (_PREFILL, *_DECODING)

    def entry(self) -> Entry:
        """How results name it."""
        return Entry(self.name, self.variant)


_TRANSFORMERS = _DRIVERS / "hf_transformers.py"
ENGINES = (
    Engine(OURS, _DTYPE, _DRIVERS / "sirocco_engine.py"),
    Engine("transformers", "grouped_mm", _TRANSFORMERS),
    Engine("transformers", "eager", _TRANSFORMERS),
    Engine("transformers", "batched_mm", _TRANSFORMERS, _DECODING),  # its prompts are those of grouped_mm
)


@dataclass(frozen=True, slots=True)
class MoeBench:
    """What to compare. `max_wait_s` is for quiet before each measurement, `timeout_s` for one answer."""

    shape: str = "qwen3-30b-a3b-4-layers"
    num_rounds: int = 3
    threads: int = 2
    max_wait_s: float = 90.0
    timeout_s: float = 600.0
    seed: int = 0


def compare(
    bench: MoeBench,
    say: Callable[[str], None],
    keep: Callable[[MoeResults], object],
    engines: Sequence[Engine] = ENGINES,
    machine: Path = MACHINE,
) -> MoeResults:
    """Measure every engine that is there, `say` each step in a line, and `keep` the results after every run.

    Raises `RequestError` for a shape that is unknown or has no experts.
    """
    session = _Session(bench, say)
    results = session.results
    for engine in engines:
        results.engines.append(session.find(engine))
    present = [engine for engine, entry in zip(engines, results.engines, strict=True) if entry.absent is None]
    for number in range(bench.num_rounds):
        session.measure_machine(machine, number)
        for engine in rotated(present, number):
            results.runs.append(session.run(engine, number))
            keep(results)
    return results


class _Session:
    """One comparison and its results so far."""

    def __init__(self, bench: MoeBench, say: Callable[[str], None]) -> None:
        from sirocco.runtime.models.random import SHAPES  # imports torch

        mixtures = {name: shape for name, shape in SHAPES.items() if "moe_intermediate_size" in shape}
        if bench.shape not in mixtures:
            raise RequestError(f"unknown mixture of experts {bench.shape!r}: choose {', '.join(mixtures)}")
        geometry = mixtures[bench.shape]
        self._bench = bench
        self._measurer = Measurer(bench.max_wait_s, say)
        self._launch = Launch(bench.threads, bench.timeout_s)
        self._vocab_size: int = geometry["vocab_size"]
        work, experts = work_of(geometry)
        self.results = MoeResults(
            bench.shape,
            *read_setting(),
            threads=bench.threads,
            num_rounds=bench.num_rounds,
            decode_tokens=NEW_TOKENS,
            concurrent_tokens=NEW_TOKENS,
            work=work,
            experts=experts,
        )

    def find(self, engine: Engine) -> Entry:
        """Its version, or why it is absent."""
        entry = engine.entry()
        try:
            with self._child(engine.driver) as child:
                entry.version = child.call("version")[0]
        except CHILD_ERRORS as error:
            entry.absent = str(error)
        self._measurer.say(entry.about)
        return entry

    def measure_machine(self, machine: Path, number: int) -> None:
        """Note what the machine can do now."""
        rates = self._measurer.rates(self._child(machine), self._spec(""), number)
        if rates is not None:
            self.results.rates.append(rates)

    def run(self, engine: Engine, number: int) -> Run:
        """One engine, all its tests, in a fresh process."""
        return self._measurer.run(engine.entry(), number, self._child(engine.driver), partial(self._measure, engine))

    def _measure(self, engine: Engine, child: Child, run: Run) -> None:
        child.call("load", self._spec(engine.variant))
        for test in engine.tests:
            with noted(run, test.name):
                self._measure_test(child, run, test)
        note_peak_anon(child, run)

    def _measure_test(self, child: Child, run: Run, test: Test) -> None:
        """Warm up, then measure."""
        seed = f"{self._bench.seed}/{run.round}/{test.name}"
        child.call("generate", self._prompts(test, f"{seed}/warmup"), min(test.count, _WARMUP_TOKENS))
        ask = partial(child.call, "generate", self._prompts(test, seed), test.count)
        self._measurer.test(run, test.name, _MAX_TRIES, ask, test.figures)

    def _prompts(self, test: Test, seed: str) -> list[dict[str, object]]:
        rng = random.Random(seed)
        ids = [[rng.randrange(self._vocab_size) for _ in range(test.prompt_len)] for _ in range(test.streams)]
        return [asdict(Prompt(prompt, "")) for prompt in ids]

    def _child(self, driver: Path) -> Child:
        return Child(sys.executable, driver, self._launch)

    def _spec(self, experts: str) -> MoeSpec:
        return {
            "folder": "",
            "variant": _DTYPE,
            "threads": self._bench.threads,
            "max_streams": STREAMS,
            "max_tokens": STREAMS * (PROMPT + NEW_TOKENS),
            "shape": self._bench.shape,
            "experts": experts,
        }
