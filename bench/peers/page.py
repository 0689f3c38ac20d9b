"""From the JSON of all shapes to one page of tables and its charts."""

from collections.abc import Sequence
from pathlib import Path

from sirocco.bench.peers import chart, files, tables
from sirocco.bench.peers.floors import bounds
from sirocco.bench.peers.results import OURS, Entry, Results

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
allows at the rates that torch's sum and square product had in the same rounds, which a better reader may exceed; of
memory it is the weights and the caches of the most tokens at once, of which an engine that maps its weights from a
file holds less as anonymous memory. transformers and onnxruntime-genai compute static batches of equal lengths, their
best case."""


def write_page(all_results: Sequence[Results], folder: Path) -> Path:
    """Write the page and two charts for each shape. Raises `RequestError` when the folder cannot be written."""
    texts = {PAGE: page(all_results)}
    for results in all_results:
        for name, make in (("throughput", throughput_chart), ("latency", latency_chart)):
            texts[_chart_file(results, name)] = make(results)
    files.replace_all(folder, {name: text.encode() for name, text in texts.items()})
    return folder / PAGE


def page(all_results: Sequence[Results]) -> str:
    """The whole page in Markdown."""
    return "\n\n".join(["# Sirocco and its peers", *map(section, all_results)]) + "\n"


def section(results: Results) -> str:
    """One shape: conditions, figures, ratios, charts."""
    parts = [
        f"## {results.shape}",
        tables.conditions(results),
        "\n".join(f"- {entry.about}{_agreement(results, entry)}" for entry in results.engines),
        tables.figures(results, COLUMNS, bounds(results)),
        _ratios(results),
        f"![throughput over concurrency]({_chart_file(results, 'throughput')})\n"
        f"![latency over context]({_chart_file(results, 'latency')})",
        tables.failures(results),
        _METHOD.format(decode=results.decode_tokens, concurrent=results.concurrent_tokens),
    ]
    return "\n\n".join(part for part in parts if part)


def throughput_chart(results: Results) -> str:
    title = f"{results.shape}: throughput over concurrency"
    return chart.line_chart(title, "streams", "tokens/s", _lines(results, _CONCURRENCY))


def latency_chart(results: Results) -> str:
    title = f"{results.shape}: latency over context"
    return chart.line_chart(title, "prompt tokens", "time to first token, ms", _lines(results, _CONTEXT))


def _ratios(results: Results) -> str:
    """Ours over each peer, and over the bound; more is better for tok/s, less for the rest."""
    ours = results.ours
    return "" if ours is None else tables.ratios(results, ours, ours.label, COLUMNS, bounds(results))


def _agreement(results: Results, entry: Entry) -> str:
    """How many greedy tokens equal ours before the first other one: evidence that both computed the same model."""
    own = results.own_of(entry)
    if entry.name == OURS or own is None:
        return ""
    ours = {run.round: run.tokens for run in results.runs_of(own) if run.tokens}
    shared = [
        (_common(run.tokens, ours[run.round]), min(len(run.tokens), len(ours[run.round])))
        for run in results.runs_of(entry)
        if run.tokens and run.round in ours
    ]
    if not shared:
        return ""
    whose = "ours" if len(results.all_ours) == 1 else f"those of {own.label}"
    return f"; its first {min(same for same, _ in shared)} of {shared[0][1]} tokens are {whose} in every round"


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = list(zip(left, right, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


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
