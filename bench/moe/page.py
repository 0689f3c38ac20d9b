"""From the results to a page in Markdown, and both to files."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sirocco.bench.moe.work import NEW_TOKENS, PROMPT, SHORT_PROMPT, STREAMS, MoeResults, bounds
from sirocco.bench.peers.page import cell
from sirocco.bench.peers.results import Entry
from sirocco.bench.peers.rounds import OURS
from sirocco.runtime.errors import RequestError

PAGE, FIGURES = "moe.md", "moe.json"
SPEEDS = (
    (f"prefill{PROMPT}_tps", f"prefill {PROMPT} tok/s"),
    ("decode1_tps", "decode, 1 stream tok/s"),
    (f"conc{STREAMS}_tps", f"{STREAMS} streams tok/s"),
    (f"decode{STREAMS}_tps", f"decode, {STREAMS} streams tok/s"),
)
_MEMORY = ("peak_anon_mib", "peak anonymous MiB")
_METHOD = f"""\
Weights are random bfloat16 and the same for all; only speed is compared. Every figure is the median [least-greatest]
of so many rounds; in each round every engine runs once in a fresh process, in turns, on the same token ids, greedy and
never ending early, after a warm-up on other prompts. Prefill is a prompt of {PROMPT} tokens and one new token. Streams
are prompts of {SHORT_PROMPT} tokens handed over together, {NEW_TOKENS} new tokens each: all over the whole time;
decode is those after the first, over the time after it. transformers runs without compilation, in a static batch of
equal lengths with a cache; the word beside it is its `experts_implementation`. batched_mm copies the weights
of every token's experts, which for prompts would take many times the model's memory, so they go through grouped_mm.
Before each measurement the machine is given time to become quiet; one during which others used more than a quarter of
a core is repeated, and left out of a median unless there is no other (marked `!`). The bound is what reading the
weights once a step, or the products in bfloat16, allows at the rates measured in the same rounds; of the experts those
are read that the tokens of a step need when each chooses at random."""


def page(results: MoeResults) -> str:
    """The whole page."""
    present = [entry for entry in results.engines if entry.absent is None]
    parts = [
        f"# A mixture of experts: {results.shape}",
        f"{results.machine}, {results.threads} threads, {results.platform}, {results.started}; "
        f"rounds: {results.num_rounds}.{_rates(results)}",
        "\n".join(_about(entry) for entry in results.engines),
        _figures(results, present),
        _ratios(results, present),
        _floors(results),
        _failures(results),
        _METHOD,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(results: MoeResults, folder: Path) -> Path:
    """Write figures and page, each in one move. Raises `RequestError` when the folder cannot be written."""
    figures = msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"
    try:
        for name, content in ((FIGURES, figures), (PAGE, page(results).encode())):
            partial = folder / f"{name}.part"
            partial.write_bytes(content)
            os.replace(partial, folder / name)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}") from None
    return folder / PAGE


def best_other(results: MoeResults, metric: str) -> tuple[Entry, float] | None:
    """The fastest engine beside ours, and its median."""
    medians = [(entry, results.median(entry, metric)) for entry in results.engines if entry.name != OURS]
    found = [(entry, value) for entry, value in medians if value is not None]
    return max(found, key=lambda one: one[1], default=None)


def _figures(results: MoeResults, present: Sequence[Entry]) -> str:
    columns = (*SPEEDS, _MEMORY)
    rows = [[entry.label, *(cell(results, entry, metric) for metric, _ in columns)] for entry in present]
    if limits := bounds(results):
        rows.append(["bound", *(f"{limits[metric]:.4g}" for metric, _ in SPEEDS), "-"])
    return _table(["engine", *(heading for _, heading in columns)], rows)


def _ratios(results: MoeResults, present: Sequence[Entry]) -> str:
    """Ours over each form of the other engine, over the best one for each metric, and over the bound."""
    ours = next((entry for entry in present if entry.name == OURS), None)
    if ours is None:
        return ""
    own = {metric: results.median(ours, metric) for metric, _ in SPEEDS}
    rows = [
        [f"{OURS} / {other.label}", *(_ratio(own[metric], results.median(other, metric)) for metric, _ in SPEEDS)]
        for other in present
        if other is not ours
    ]
    best = [f"**{OURS} / best of the others**"]
    for metric, _ in SPEEDS:
        other = best_other(results, metric)
        best.append("-" if other is None else f"**{_ratio(own[metric], other[1])}** ({other[0].variant})")
    rows.append(best)
    if limits := bounds(results):
        rows.append([f"{OURS} / bound", *(_ratio(own[metric], limits[metric]) for metric, _ in SPEEDS)])
    return _table(["ratio of medians", *(heading for _, heading in SPEEDS)], rows)


def _floors(results: MoeResults) -> str:
    work, experts = results.work, results.experts
    step = work.step_bytes + experts.read_bytes(STREAMS)
    return (
        f"A step of {STREAMS} tokens needs {experts.distinct(STREAMS):.1f} of {experts.num_experts} experts in each of "
        f"{experts.num_layers} layers: {step / 1e9:.3g} GB of weights with all else, of which experts "
        f"{experts.read_bytes(STREAMS) / 1e9:.3g}. A token of a prompt costs {work.token_flop / 1e9:.3g} GFLOP."
    )


def _about(entry: Entry) -> str:
    return f"- {entry.label}: {entry.version if entry.absent is None else f'absent, {entry.absent}'}"


def _rates(results: MoeResults) -> str:
    if not results.rates:
        return ""
    read = [rates.read_bytes_s / 1e9 for rates in results.rates]
    matmul = [rates.matmul_flop_s / 1e9 for rates in results.rates]
    return (
        f" Memory read [{min(read):.1f}-{max(read):.1f}] GB/s, "
        f"bfloat16 products [{min(matmul):.0f}-{max(matmul):.0f}] GFLOP/s."
    )


def _failures(results: MoeResults) -> str:
    return "\n".join(
        f"- failed: {run.engine} {run.variant}, round {run.round + 1}, {test}: {message}"
        for run in results.runs
        for test, message in run.errors.items()
    )


def _ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours is not None and other else "-"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows))
