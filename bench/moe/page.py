"""From the results to a page in Markdown, and both to files."""

from pathlib import Path

from sirocco.bench.moe.work import NEW_TOKENS, PROMPT, SHORT_PROMPT, STREAMS, MoeResults, bounds
from sirocco.bench.peers import files, tables
from sirocco.bench.peers.results import OURS, Entry

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
weights once a step, or the products in bfloat16, allows at the rates that torch's sum and square product had in the
same rounds, which a better reader may exceed; of the experts those are read that the tokens of a step need when each
chooses at random."""


def page(results: MoeResults) -> str:
    """The whole page."""
    parts = [
        f"# A mixture of experts: {results.shape}",
        tables.conditions(results, "{:.1f}".format, "{:.0f}".format),
        "\n".join(f"- {entry.about}" for entry in results.engines),
        tables.figures(results, (*SPEEDS, _MEMORY), bounds(results), "{:.4g}".format),
        _ratios(results),
        _floors(results),
        tables.failures(results),
        _METHOD,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(results: MoeResults, folder: Path) -> Path:
    """Write figures and page, each in one move. Raises `RequestError` when the folder cannot be written."""
    files.replace_all(folder, {FIGURES: files.to_json(results), PAGE: page(results).encode()})
    return folder / PAGE


def best_other(results: MoeResults, metric: str) -> tuple[Entry, float] | None:
    """The fastest engine beside ours, and its median."""
    medians = [(entry, results.median(entry, metric)) for entry in results.engines if entry.name != OURS]
    found = [(entry, value) for entry, value in medians if value is not None]
    return max(found, key=lambda one: one[1], default=None)


def _ratios(results: MoeResults) -> str:
    """Ours over each form of the other engine, over the best one for each metric, and over the bound."""
    ours = results.ours
    if ours is None:
        return ""
    best = [f"**{OURS} / best of the others**"]
    for metric, _ in SPEEDS:
        other = best_other(results, metric)
        if other is None:
            best.append("-")
        else:
            entry, median = other
            best.append(f"**{tables.ratio(results.median(ours, metric), median)}** ({entry.variant})")
    return tables.ratios(results, ours, OURS, SPEEDS, bounds(results), best)


def _floors(results: MoeResults) -> str:
    work, experts = results.work, results.experts
    step = work.step_bytes + experts.read_bytes(STREAMS)
    return (
        f"A step of {STREAMS} tokens needs {experts.distinct(STREAMS):.1f} of {experts.num_experts} experts in each of "
        f"{experts.num_layers} layers: {step / 1e9:.3g} GB of weights with all else, of which experts "
        f"{experts.read_bytes(STREAMS) / 1e9:.3g}. A token of a prompt costs {work.token_flop / 1e9:.3g} GFLOP."
    )
