"""The measuring: interleaved rounds, in each of which every engine runs once in a fresh process.

Metrics: `prefillN_tps` is N prompt tokens over the time from handing the prompt over to its first token, which is
`ttftN_ms`. `decode1_tps` counts the tokens of one stream after the first; `concN_tps` counts all tokens of N streams
handed over together, over the time until the last one. `load_s` is loading without imports.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from sirocco.bench.peers import contention, folder
from sirocco.bench.peers.child import DRIVERS, AbsentError, CallError, Child, ChildDiedError, Launch
from sirocco.bench.peers.drivers.host import Reply, Spec
from sirocco.bench.peers.floors import work_of
from sirocco.bench.peers.measure import MACHINE, Measurer, note_peak_anon, noted, read_setting, rotated, untimed
from sirocco.bench.peers.results import OURS, Entry, Results, Run, Sample
from sirocco.bench.peers.vocabulary import PromptMaker
from sirocco.runtime.config import read_config
from sirocco.runtime.errors import RequestError

SHORT_PROMPT = 16
DECODE_TOKENS = 128
CONCURRENT_TOKENS = 32
TINY_CONCURRENT_TOKENS = 64  # that model is so fast that more are needed to time anything
_MIN_CONTEXT = 4096
_PREPARE_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that can be compared: its driver, the weights it can hold (the usual one first), and the driver that
    makes a file for it, where it needs one.
    """

    driver: Path
    variants: tuple[str, ...]
    prepare: Path | None = None


PEERS: Mapping[str, Peer] = {
    OURS: Peer(DRIVERS / "sirocco_engine.py", ("bf16", "f32")),
    "llama.cpp": Peer(DRIVERS / "llama_cpp_batch.py", ("bf16",), DRIVERS / "gguf_file.py"),
    "transformers": Peer(DRIVERS / "hf_transformers.py", ("bf16", "f32")),
    "mistral.rs": Peer(DRIVERS / "mistral_rs.py", ("f32", "bf16")),  # float32 is its faster unquantised form on CPUs
    "onnxruntime-genai": Peer(DRIVERS / "ort_genai.py", ("int4",), DRIVERS / "ort_model.py"),
}


@dataclass(frozen=True, slots=True)
class PeersBench:
    """What to compare. `engines` are names of `PEERS`, each with `:variant` if not the usual one; `pythons` gives
    interpreters by name, this one where none is given; `tests` names those to run, all when empty; `max_wait_s` is for
    quiet before each measurement.
    """

    shape: str
    models: Path
    engines: Sequence[str] = (OURS, "llama.cpp", "transformers")
    pythons: Mapping[str, str] = field(default_factory=dict)
    tests: Sequence[str] = ()
    num_rounds: int = 3
    threads: int = 2
    max_wait_s: float = 90.0
    timeout_s: float = 300.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Test:
    """`streams` prompts of `prompt_len` tokens at once, `count` new tokens each; `figures` reads the metrics from the
    reply.
    """

    name: str
    prompt_len: int
    streams: int
    count: int
    max_tries: int
    figures: Callable[["Test", Reply], dict[str, float]]


def make_tests(concurrent_tokens: int) -> tuple[Test, ...]:
    """What every engine is asked, in order."""
    return (
        Test("prefill512", 512, 1, 1, 3, _prefill_figures),
        Test("prefill2048", 2048, 1, 1, 3, _prefill_figures),
        Test("decode1", SHORT_PROMPT, 1, DECODE_TOKENS, 3, _decode_figures),
        Test("conc8", SHORT_PROMPT, 8, concurrent_tokens, 2, _concurrent_figures),
        Test("conc32", SHORT_PROMPT, 32, concurrent_tokens, 2, _concurrent_figures),
    )


def _prefill_figures(test: Test, reply: Reply) -> dict[str, float]:
    n, seconds = test.prompt_len, reply["first_s"]
    return {f"prefill{n}_tps": n / seconds, f"ttft{n}_ms": seconds * 1e3}


def _decode_figures(test: Test, reply: Reply) -> dict[str, float]:
    seconds = reply["total_s"] - reply["first_s"]
    return {"decode1_tps": (test.count - 1) / seconds, f"ttft{test.prompt_len}_ms": reply["first_s"] * 1e3}


def _concurrent_figures(test: Test, reply: Reply) -> dict[str, float]:
    return {f"{test.name}_tps": sum(reply["counts"]) / reply["total_s"]}


def parse_engine(text: str, peers: Mapping[str, Peer] = PEERS) -> Entry:
    """`NAME` or `NAME:VARIANT`. Raises `RequestError` naming the choices."""
    name, _, variant = text.partition(":")
    peer = peers.get(name)
    if peer is None:
        raise RequestError(f"unknown engine {name!r}: choose {', '.join(peers)}")
    if variant and variant not in peer.variants:
        raise RequestError(f"{name} is measured as {', '.join(peer.variants)}, not as {variant!r}")
    return Entry(name, variant or peer.variants[0])


def compare(
    bench: PeersBench, say: Callable[[str], None], keep: Callable[[Results], object], peers: Mapping[str, Peer] = PEERS
) -> Results:
    """Measure every engine that is there, `say` each step in a line, and `keep` the results after every run.

    Raises `RequestError` or `ModelLoadError` for what cannot be measured at all.
    """
    session = _Session(bench, say, peers)
    results = session.results
    session.find_engines()
    if all(entry.absent is not None for entry in results.engines):
        raise RequestError("none of the engines is there: nothing was measured")
    for number in range(bench.num_rounds):
        session.measure_machine(number)
        for entry in rotated(results.engines, number):
            if entry.absent is None:
                results.runs.append(session.run(entry, number))
                keep(results)
    return results


class _Session:
    """One comparison: the model folder, its prompts, and the results so far."""

    def __init__(self, bench: PeersBench, say: Callable[[str], None], peers: Mapping[str, Peer]) -> None:
        self._bench = bench
        self._measurer = Measurer(bench.max_wait_s, say)
        self._peers = peers
        self._launch = Launch(bench.threads, bench.timeout_s)
        entries = [parse_engine(text, peers) for text in dict.fromkeys(bench.engines)]
        unknown = [name for name in bench.pythons if name not in peers]
        if unknown:
            raise RequestError(f"--python is given for an unknown engine: {', '.join(unknown)}")
        concurrent_tokens = TINY_CONCURRENT_TOKENS if bench.shape == "tiny" else CONCURRENT_TOKENS
        self._tests = _chosen(make_tests(concurrent_tokens), bench.tests)
        say(f"model folder of {bench.shape}")
        self._folder = folder.ensure_folder(bench.models, bench.shape).resolve()
        self._prompts: PromptMaker = folder.load_prompts(self._folder)
        self._most_tokens = max(test.streams * (test.prompt_len + test.count) for test in self._tests)
        self.results = Results(
            bench.shape,
            *read_setting(),
            threads=bench.threads,
            num_rounds=bench.num_rounds,
            decode_tokens=DECODE_TOKENS,
            concurrent_tokens=concurrent_tokens,
            work=work_of(read_config(self._folder).hf),
            most_tokens=self._most_tokens,
            engines=entries,
        )

    def find_engines(self) -> None:
        """Note each engine's version or why it is absent, and have the files made that it needs."""
        for entry in self.results.engines:
            peer = self._peers[entry.name]
            try:
                with self._child(entry.name, peer.driver) as child:
                    entry.version = child.call("version")[0]
                if peer.prepare is not None:
                    with self._child(entry.name, peer.prepare) as child:
                        child.call("prepare", self._spec(entry.variant), timeout_s=_PREPARE_TIMEOUT_S)
            except AbsentError as error:
                entry.absent = str(error)
            except (CallError, ChildDiedError) as error:
                entry.absent = f"it cannot be prepared: {error}"
            self._measurer.say(entry.about)

    def measure_machine(self, number: int) -> None:
        """Note what the machine can do now."""
        machine = Child(sys.executable, MACHINE, self._launch)
        rates = self._measurer.rates(machine, self._spec("bf16"), number)
        if rates is None:
            return
        self.results.rates.append(rates)
        self._measurer.say(
            f"round {number + 1}: {rates.read_bytes_s / 1e9:.1f} GB/s read, "
            f"{rates.matmul_flop_s / 1e9:.0f} GFLOP/s in bfloat16"
        )

    def run(self, entry: Entry, number: int) -> Run:
        """One engine, all tests, in a fresh process."""
        process = self._child(entry.name, self._peers[entry.name].driver)
        return self._measurer.run(entry, number, process, self._measure)

    def _measure(self, child: Child, run: Run) -> None:
        waited_s = contention.wait_until_quiet(self._bench.max_wait_s)
        window = contention.Window()
        seconds, cpu_s = child.call("load", self._spec(run.variant))
        # Loading is not tried twice: the file is in memory the second time.
        run.metrics["load_s"] = Sample(seconds, *window.usage(cpu_s), waited_s, 1)
        self._ask(child, Test("warmup", SHORT_PROMPT, 1, 8, 1, _prefill_figures), f"{run.round}/warmup")
        for test in self._tests:
            # The same prompts in every try, since which one counts differs by engine; none keeps a cache of them.
            ask = partial(self._ask, child, test, f"{run.round}/{test.name}")
            with noted(run, test.name):
                self._measurer.test(run, test.name, test.max_tries, ask, partial(test.figures, test))
        peak_rss_mib, _ = child.call("peak_rss_mib")
        run.metrics["peak_rss_mib"] = untimed(round(peak_rss_mib, 1))
        note_peak_anon(child, run)

    def _ask(self, child: Child, test: Test, seed: str) -> tuple[Reply, float]:
        prompts = self._prompts.draw(test.prompt_len, test.streams, f"{self._bench.seed}/{seed}")
        return child.call("generate", [asdict(prompt) for prompt in prompts], test.count)

    def _child(self, name: str, driver: Path) -> Child:
        return Child(self._bench.pythons.get(name, sys.executable), driver, self._launch)

    def _spec(self, variant: str) -> Spec:
        streams = max(test.streams for test in self._tests)
        return {
            "folder": str(self._folder),
            "variant": variant,
            "threads": self._bench.threads,
            "max_streams": streams,
            "max_tokens": max(self._most_tokens, _MIN_CONTEXT),
        }


def _chosen(tests: Sequence[Test], names: Sequence[str]) -> list[Test]:
    known = [test.name for test in tests]
    for name in names:
        if name not in known:
            raise RequestError(f"unknown test {name!r}: choose {', '.join(known)}")
    return [test for test in tests if not names or test.name in names]
