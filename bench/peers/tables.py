"""What the pages of all comparisons show alike, in Markdown: conditions, figures, ratios, failures."""

from collections.abc import Callable, Mapping, Sequence

from sirocco.bench.peers.results import Entry, Results

Columns = Sequence[tuple[str, str]]  # metric and heading
Row = Sequence[str]
Show = Callable[[float], str]


def number(value: float) -> str:
    """At most three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def conditions(results: Results, show_read: Show = number, show_matmul: Show = number) -> str:
    """Where and when it was measured, and what the machine could do: least and greatest GB/s and GFLOP/s."""
    line = (
        f"{results.machine}, {results.threads} threads, {results.platform}, {results.started}; "
        f"rounds: {results.num_rounds}."
    )
    if not results.rates:
        return line
    read = [rates.read_bytes_s / 1e9 for rates in results.rates]
    matmul = [rates.matmul_flop_s / 1e9 for rates in results.rates]
    return (
        f"{line} Memory read [{show_read(min(read))}-{show_read(max(read))}] GB/s, "
        f"bfloat16 products [{show_matmul(min(matmul))}-{show_matmul(max(matmul))}] GFLOP/s."
    )


def figures(results: Results, columns: Columns, limits: Mapping[str, float], show_limit: Show = number) -> str:
    """A line for each engine that is there, and one for the bound where there are limits."""
    rows = [[entry.label, *(cell(results, entry, metric) for metric, _ in columns)] for entry in results.present]
    if limits:
        rows.append(["bound", *(show_limit(limits[metric]) if metric in limits else "-" for metric, _ in columns)])
    return table(["engine", *(heading for _, heading in columns)], rows)


def cell(results: Results, entry: Entry, metric: str) -> str:
    """`median [least-greatest] xN`, with `!` when others disturbed every sample."""
    samples = results.samples(entry, metric)
    if not samples:
        return "-"
    values = [sample.value for sample in samples]
    middle = results.median(entry, metric)
    assert middle is not None
    spread = f" [{number(min(values))}-{number(max(values))}]" if len(values) > 1 else ""
    return f"{number(middle)}{spread} x{len(values)}{'!' if samples[0].disturbed else ''}"


def ratios(
    results: Results, ours: Entry, name: str, columns: Columns, limits: Mapping[str, float], best: Row = ()
) -> str:
    """Ours, shown as `name`, over each other engine that is there, and over the bound where there are limits; `best` is
    a row before the latter. Nothing where there is no row.
    """
    own = {metric: results.median(ours, metric) for metric, _ in columns}
    rows: list[Row] = [
        [f"{name} / {other.label}", *(ratio(own[metric], results.median(other, metric)) for metric, _ in columns)]
        for other in results.present
        if other is not ours
    ]
    if best:
        rows.append(best)
    if limits:
        rows.append([f"{name} / bound", *(ratio(own[metric], limits.get(metric)) for metric, _ in columns)])
    return table(["ratio of medians", *(heading for _, heading in columns)], rows) if rows else ""


def ratio(ours: float | None, other: float | None) -> str:
    """A dash where one of them is missing."""
    return f"{ours / other:.2f}" if ours is not None and other else "-"


def failures(results: Results) -> str:
    """A line for each test that failed."""
    return "\n".join(
        f"- failed: {run.engine} {run.variant}, round {run.round + 1}, {test}: {message}"
        for run in results.runs
        for test, message in run.errors.items()
    )


def table(headings: Row, rows: Sequence[Row]) -> str:
    """Cells must not hold `|`."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows))
