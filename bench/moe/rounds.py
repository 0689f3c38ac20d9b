"""The measuring: in each round every engine runs once in a fresh process, on the same geometry, weights and token ids.

Metrics are named as those of `bench/peers`; `decode16_tps` counts the tokens of 16 streams after each one's first.
"""

import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sirocco.bench import report
from sirocco.bench.moe.drivers.spec import MoeSpec
from sirocco.bench.moe.work import NEW_TOKENS, PROMPT, SHORT_PROMPT, STREAMS, MoeResults, work_of
from sirocco.bench.peers import contention
from sirocco.bench.peers.child import AbsentError, CallError, Child, ChildDiedError, Launch
from sirocco.bench.peers.drivers.host import Reply
from sirocco.bench.peers.results import Entry, Rates, Run, Sample
from sirocco.bench.peers.rounds import KEPT_TOKENS, MACHINE, OURS
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
        for i in range(len(present)):  # each round begins with another, so that none always follows the same one
            results.runs.append(session.run(present[(i + number) % len(present)], number))
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
        self._say = say
        self._launch = Launch(bench.threads, bench.timeout_s)
        self._vocab_size: int = geometry["vocab_size"]
        work, experts = work_of(geometry)
        self.results = MoeResults(
            shape=bench.shape,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=report.cpu_name(),
            platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            threads=bench.threads,
            num_rounds=bench.num_rounds,
            decode_tokens=NEW_TOKENS,
            concurrent_tokens=NEW_TOKENS,
            work=work,
            experts=experts,
        )

    def find(self, engine: Engine) -> Entry:
        """Its version, or why it is absent."""
        entry = Entry(engine.name, engine.variant)
        try:
            with self._child(engine.driver) as child:
                entry.version = child.call("version")[0]
        except (AbsentError, CallError, ChildDiedError) as error:
            entry.absent = str(error)
        self._say(f"{entry.label}: {entry.version if entry.absent is None else f'absent, {entry.absent}'}")
        return entry

    def measure_machine(self, machine: Path, number: int) -> None:
        """Note what the machine can do now."""
        contention.wait_until_quiet(self._bench.max_wait_s)
        try:
            with self._child(machine) as child:
                child.call("load", self._spec(""))
                window = contention.Window()
                rates, cpu_s = child.call("rates")
                usage = window.usage(cpu_s)
        except (AbsentError, CallError, ChildDiedError) as error:
            self._say(f"round {number + 1}: the machine's rates are unknown: {error}")
            return
        self.results.rates.append(Rates(number, rates["read_bytes_s"], rates["matmul_flop_s"], usage.others_cores))

    def run(self, engine: Engine, number: int) -> Run:
        """One engine, all its tests, in a fresh process."""
        run = Run(engine.name, engine.variant, number)
        started = time.monotonic()
        try:
            with self._child(engine.driver) as child:
                child.call("load", self._spec(engine.variant))
                for test in engine.tests:
                    self._try_test(child, run, test)
                if child.peak_anon_mib is not None:
                    run.metrics["peak_anon_mib"] = Sample(child.peak_anon_mib, None, None, 0.0, 1)
        except (AbsentError, CallError, ChildDiedError) as error:
            run.errors["run"] = str(error)
        run.wall_s = round(time.monotonic() - started, 1)
        shown = ", ".join(f"{name} {sample.value:.4g}" for name, sample in run.metrics.items())
        failed = "".join(f"; {test} failed: {message}" for test, message in run.errors.items())
        self._say(f"round {number + 1} {engine.name} {engine.variant}: {shown}{failed} ({run.wall_s:.0f} s)")
        return run

    def _try_test(self, child: Child, run: Run, test: Test) -> None:
        try:
            self._measure(child, run, test)
        except CallError as error:
            run.errors[test.name] = str(error)

    def _measure(self, child: Child, run: Run, test: Test) -> None:
        """Warm up, then measure until nobody disturbs or the tries are used up; the least disturbed one counts."""
        seed = f"{self._bench.seed}/{run.round}/{test.name}"
        child.call("generate", self._prompts(test, f"{seed}/warmup"), min(test.count, _WARMUP_TOKENS))
        prompts = self._prompts(test, seed)
        tries: list[tuple[contention.Usage, Reply]] = []
        waited_s = 0.0
        while len(tries) < _MAX_TRIES and (not tries or tries[-1][0].disturbed):
            waited_s += contention.wait_until_quiet(self._bench.max_wait_s)
            window = contention.Window()
            reply, cpu_s = child.call("generate", prompts, test.count)
            tries.append((window.usage(cpu_s), reply))
        usage, reply = min(tries, key=lambda one: one[0].others_cores or 0.0)
        for name, value in test.figures(reply).items():
            run.metrics[name] = Sample(value, *usage, round(waited_s, 1), len(tries))
        if test.name == "decode1":
            run.tokens = reply["ids"][:KEPT_TOKENS]

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
