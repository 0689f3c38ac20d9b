"""From the JSON of all shapes to one page of tables and its charts."""

import os
from collections.abc import Sequence
from pathlib import Path

from sirocco.bench.peers import chart
from sirocco.bench.peers.floors import bounds
from sirocco.bench.peers.results import Entry, Results
from sirocco.bench.peers.rounds import OURS
from sirocco.runtime.errors import RequestError

PAGE = "peers.md"
COLUMNS = (
    ("prefill512_tps", "prefill 512 tok/s"),
    ("prefill2048_tps", "prefill 2048 tok/s"),
    ("decode1_tps", "decode, 1 stream tok/s"),
    ("conc8_tps", "8 streams tok/s"),
    ("conc32_tps", "32 streams tok/s"),
    ("ttft16_ms", "TTFT 16 ms"),
    ("ttft512_ms", "TTFT 512 ms"),
    ("load_s", "load s"),
    ("peak_rss_mib", "peak RSS MiB"),
    ("peak_anon_mib", "peak anonymous MiB"),
)
_CONCURRENCY = ((1, "decode1_tps"), (8, "conc8_tps"), (32, "conc32_tps"))
_CONTEXT = ((16, "ttft16_ms"), (512, "ttft512_ms"), (2048, "ttft2048_ms"))
_METHOD = """\
Weights are random and the same for all, held by each engine in the form beside its name; only speed is compared. Every
figure is the median [least-greatest] of so many rounds; in each round every engine runs once in a fresh process, in
turns, with the same prompts (token ids; mistral.rs gets text), greedy and never ending early. Prefill is a prompt and
one new token, from handing it over to the token. Decode is {decode} new tokens after 16, the first not counted.
Streams are prompts of 16 tokens handed over together, {concurrent} new tokens each, all tokens over the time until the
last one. TTFT is the time to the first token after a prompt of so many tokens. Load is without imports. Peak RSS
counts pages of mapped files, anonymous memory does not. Before each measurement the machine is given time to become
quiet; a measurement during which others used more than a quarter of a core is repeated, and left out of a median
unless there is no other (marked `!`). The bound is what reading the weights once a step, or the products in bfloat16,
allows at the rates measured in the same rounds; of memory it is the weights and the caches of the most tokens at once.
transformers and onnxruntime-genai compute static batches of equal lengths, their best case."""


def write_page(all_results: Sequence[Results], folder: Path) -> Path:
    """Write the page and two charts for each shape. Raises `RequestError` when the folder cannot be written."""
    files = {PAGE: page(all_results)}
    for results in all_results:
        for name, make in (("throughput", throughput_chart), ("latency", latency_chart)):
            files[_chart_file(results, name)] = make(results)
    try:
        for name, text in files.items():
            partial = folder / f"{name}.part"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}") from None
    return folder / PAGE


def page(all_results: Sequence[Results]) -> str:
    """The whole page in Markdown."""
    return "\n\n".join(["# Sirocco and its peers", *map(section, all_results)]) + "\n"


def section(results: Results) -> str:
    """One shape: conditions, figures, ratios, charts."""
    present = [entry for entry in results.engines if entry.absent is None]
    method = _METHOD.format(decode=results.decode_tokens, concurrent=results.concurrent_tokens)
    parts = [
        f"## {results.shape}",
        f"{results.machine}, {results.threads} threads, {results.platform}, {results.started}; "
        f"rounds: {results.num_rounds}. {_rates(results)}",
        "\n".join(_about(results, entry) for entry in results.engines),
        _figures(results, present),
        _ratios(results, present),
        f"![throughput over concurrency]({_chart_file(results, 'throughput')})\n"
        f"![latency over context]({_chart_file(results, 'latency')})",
        _failures(results),
        method,
    ]
    return "\n\n".join(part for part in parts if part)


def throughput_chart(results: Results) -> str:
    title = f"{results.shape}: throughput over concurrency"
    return chart.line_chart(title, "streams", "tokens/s", _lines(results, _CONCURRENCY))


def latency_chart(results: Results) -> str:
    title = f"{results.shape}: latency over context"
    return chart.line_chart(title, "prompt tokens", "time to first token, ms", _lines(results, _CONTEXT))


def cell(results: Results, entry: Entry, metric: str) -> str:
    """`median [least-greatest] xN`, with `!` when others disturbed every sample."""
    samples = results.samples(entry, metric)
    if not samples:
        return "-"
    values = [sample.value for sample in samples]
    middle = results.median(entry, metric)
    assert middle is not None
    spread = f" [{_number(min(values))}-{_number(max(values))}]" if len(values) > 1 else ""
    return f"{_number(middle)}{spread} x{len(values)}{'!' if samples[0].disturbed else ''}"


def _figures(results: Results, present: Sequence[Entry]) -> str:
    rows = [[entry.label, *(cell(results, entry, metric) for metric, _ in COLUMNS)] for entry in present]
    limits = bounds(results)
    if limits:
        rows.append(["bound", *(_number(limits[metric]) if metric in limits else "-" for metric, _ in COLUMNS)])
    return _table(["engine", *(heading for _, heading in COLUMNS)], rows)


def _ratios(results: Results, present: Sequence[Entry]) -> str:
    """Ours over each peer, and over the bound; more is better for tok/s, less for the rest."""
    ours = next((entry for entry in present if entry.name == OURS), None)
    if ours is None:
        return ""
    rows = [
        [
            f"{ours.label} / {entry.label}",
            *(_ratio(results.median(ours, metric), results.median(entry, metric)) for metric, _ in COLUMNS),
        ]
        for entry in present
        if entry is not ours
    ]
    limits = bounds(results)
    if limits:
        against = (_ratio(results.median(ours, metric), limits.get(metric)) for metric, _ in COLUMNS)
        rows.append([f"{ours.label} / bound", *against])
    headings = ["ratio of medians", *(heading for _, heading in COLUMNS)]
    return _table(headings, rows) if rows else ""


def _about(results: Results, entry: Entry) -> str:
    if entry.absent is not None:
        return f"- {entry.label}: absent, {entry.absent}"
    return f"- {entry.label}: {entry.version}{_agreement(results, entry)}"


def _agreement(results: Results, entry: Entry) -> str:
    """How many greedy tokens equal ours before the first other one: evidence that both computed the same model."""
    ours = {run.round: run.tokens for run in results.runs if run.engine == OURS and run.tokens}
    shared = [
        (_common(run.tokens, ours[run.round]), min(len(run.tokens), len(ours[run.round])))
        for run in results.runs
        if (run.engine, run.variant) == (entry.name, entry.variant) and run.tokens and run.round in ours
    ]
    if entry.name == OURS or not shared:
        return ""
    return f"; its first {min(same for same, _ in shared)} of {shared[0][1]} tokens are ours in every round"


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = list(zip(left, right, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _rates(results: Results) -> str:
    if not results.rates:
        return ""
    read = [rates.read_bytes_s / 1e9 for rates in results.rates]
    matmul = [rates.matmul_flop_s / 1e9 for rates in results.rates]
    return (
        f"Memory read [{_number(min(read))}-{_number(max(read))}] GB/s, "
        f"bfloat16 products [{_number(min(matmul))}-{_number(max(matmul))}] GFLOP/s."
    )


def _failures(results: Results) -> str:
    return "\n".join(
        f"- failed: {run.engine} {run.variant}, round {run.round + 1}, {test}: {message}"
        for run in results.runs
        for test, message in run.errors.items()
    )


def _lines(results: Results, metrics: Sequence[tuple[int, str]]) -> list[chart.Line]:
    return [
        chart.Line(entry.label, [point for x, metric in metrics if (point := _point(results, entry, x, metric))])
        for entry in results.engines
    ]


def _point(results: Results, entry: Entry, x: int, metric: str) -> chart.Point | None:
    values = [sample.value for sample in results.samples(entry, metric)]
    middle = results.median(entry, metric)
    return None if middle is None else chart.Point(x, middle, min(values), max(values))


def _chart_file(results: Results, name: str) -> str:
    return f"peers-{results.shape}-{name}.svg"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours is not None and other else "-"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
