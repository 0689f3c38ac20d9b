"""What a comparison leaves behind: one JSON file for each shape, from which the page is made."""

import os
from pathlib import Path

import msgspec

from sirocco.bench.peers import files
from sirocco.bench.peers.contention import DISTURBED_LIMIT
from sirocco.bench.stats import percentile
from sirocco.runtime.errors import RequestError

OURS = "sirocco"


class Sample(msgspec.Struct, frozen=True):
    """One measured value, what others used meanwhile, how long quiet was waited for, and which try it is from."""

    value: float
    others_cores: float | None
    steal_cores: float | None
    waited_s: float
    tries: int

    @property
    def disturbed(self) -> bool:
        return self.others_cores is not None and self.others_cores > DISTURBED_LIMIT


class Run(msgspec.Struct):
    """One engine in one round, in a process of its own. `errors` says by test what failed."""

    engine: str
    variant: str
    round: int
    metrics: dict[str, Sample] = msgspec.field(default_factory=dict)
    errors: dict[str, str] = msgspec.field(default_factory=dict)
    tokens: list[int] = msgspec.field(default_factory=list)  # first ones of the decode test: do engines agree?
    wall_s: float = 0.0


class Entry(msgspec.Struct):
    """An engine that was to be compared; `absent` says why it was not."""

    name: str
    variant: str
    version: str = ""
    absent: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} {self.variant}"

    @property
    def about(self) -> str:
        """Its label with the version, or with why it is absent."""
        return f"{self.label}: {self.version if self.absent is None else f'absent, {self.absent}'}"


class Rates(msgspec.Struct, frozen=True):
    """What the machine could do in one round: bytes read and bfloat16 operations, each a second."""

    round: int
    read_bytes_s: float
    matmul_flop_s: float
    others_cores: float | None


class Work(msgspec.Struct, frozen=True):
    """What computing costs at least: weight bytes that each step reads, operations of a token in the layers, of one
    row of the output head, and of one query with one key in all layers together; what a token's keys and values take.
    """

    step_bytes: int
    token_flop: int
    head_flop: int
    pair_flop: int
    cached_bytes: int = 0


class Results(msgspec.Struct):
    """Everything about one shape. `started` is UTC, `machine` names the processor."""

    shape: str
    started: str
    machine: str
    platform: str
    threads: int
    num_rounds: int
    decode_tokens: int
    concurrent_tokens: int
    work: Work
    most_tokens: int = 0  # that are cached at once
    engines: list[Entry] = msgspec.field(default_factory=list)
    rates: list[Rates] = msgspec.field(default_factory=list)
    runs: list[Run] = msgspec.field(default_factory=list)

    @property
    def present(self) -> list[Entry]:
        """The engines that are not absent."""
        return [entry for entry in self.engines if entry.absent is None]

    @property
    def all_ours(self) -> list[Entry]:
        """Our engine in every variant that is there."""
        return [entry for entry in self.present if entry.name == OURS]

    @property
    def ours(self) -> Entry | None:
        """The engine that the others are compared with, if it is there."""
        return next(iter(self.all_ours), None)

    def own_of(self, entry: Entry) -> Entry | None:
        """Our engine in the entry's variant, else the one that all are compared with."""
        return next((own for own in self.all_ours if own.variant == entry.variant), self.ours)

    def runs_of(self, entry: Entry) -> list[Run]:
        """What was measured of one engine in one variant."""
        return [run for run in self.runs if (run.engine, run.variant) == (entry.name, entry.variant)]

    def samples(self, entry: Entry, metric: str) -> list[Sample]:
        """The samples that count: those that were disturbed only where there are no others."""
        found = [run.metrics[metric] for run in self.runs_of(entry) if metric in run.metrics]
        return [sample for sample in found if not sample.disturbed] or found

    def median(self, entry: Entry, metric: str) -> float | None:
        return percentile([sample.value for sample in self.samples(entry, metric)], 50)

    def median_rates(self) -> tuple[float, float] | None:
        """Bytes read and bfloat16 operations, each a second; None where the machine's rates are unknown."""
        read = percentile([rates.read_bytes_s for rates in self.rates], 50)
        matmul = percentile([rates.matmul_flop_s for rates in self.rates], 50)
        return None if read is None or matmul is None else (read, matmul)


def check_writable(folder: Path) -> None:
    """Make the folder. Raises `RequestError` now rather than after the measuring when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise RequestError(f"{folder} cannot be written")


def save(results: Results, folder: Path) -> Path:
    """Write `peers-<shape>.json`; an older one is replaced in one move."""
    path = folder / f"peers-{results.shape}.json"
    try:
        files.replace(path, files.to_json(results))
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from None
    return path


def load_all(folder: Path) -> list[Results]:
    """The results of every shape in a folder, by name. Raises `RequestError` when there are none or one is broken."""
    found = []
    for path in sorted(folder.glob("peers-*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Results))
        except msgspec.MsgspecError as error:
            raise RequestError(f"{path.name}: {error}") from None
    if not found:
        raise RequestError(f"{folder} holds no peers-*.json; run `sirocco bench peers` first")
    return found
