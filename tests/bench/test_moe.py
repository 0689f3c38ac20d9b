"""Comparing mixtures of experts: that both engines compute the same one, the rounds with scripted engines, the page."""

import json
import random
import sys

import msgspec
import pytest

from sirocco.api.cli.main import main
from sirocco.bench.moe import page, rounds
from sirocco.bench.moe.rounds import Engine, MoeBench
from sirocco.bench.moe.work import ExpertWork, MoeResults, bounds, work_of
from sirocco.bench.peers import contention
from sirocco.bench.peers.child import Child, Launch
from sirocco.bench.peers.contention import Usage
from sirocco.runtime.errors import RequestError
from sirocco.runtime.models.random import SHAPES

# An engine whose times follow from what it is asked: `PACE` seconds for 1000 tokens of prompt and for 100 steps.
FAKE = """
PACE = {pace}
def version():
    return "fake 1"
class Model:
    def __init__(self, spec):
        assert spec["shape"] == "tiny-moe"
        self.experts = spec["experts"]
    def generate(self, prompts, count):
        if self.experts == "refuses" and len(prompts) == 16:
            raise ValueError("too much")
        assert len({{tuple(prompt["ids"]) for prompt in prompts}}) == len(prompts)
        first = PACE * len(prompts) * len(prompts[0]["ids"]) / 1000
        total = first + PACE * (count - 1) / 100
        return dict(first_s=first, total_s=total, counts=[count] * len(prompts), ids=prompts[0]["ids"][:count])
    def rates(self):
        return {{"read_bytes_s": 2e9, "matmul_flop_s": 3e12}}
"""


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Results of scripted engines on a machine on which nobody else ever works; ours is twice as fast."""
    monkeypatch.setattr(contention, "wait_until_quiet", lambda max_wait_s: 0.0)
    monkeypatch.setattr(contention.Window, "usage", lambda self, own_cpu_s=0.0: Usage(0.0, 0.0))
    ours, other, slow, absent = (tmp_path / f"{name}.py" for name in ("ours", "other", "slow", "absent"))
    for path, pace in ((ours, 1.0), (other, 2.0), (slow, 5.0)):
        path.write_text(FAKE.format(pace=pace))
    absent.write_text("import no_such_engine")
    engines = [
        Engine("sirocco", "bf16", ours),
        Engine("transformers", "grouped_mm", other),
        Engine("transformers", "refuses", slow),
        Engine("absent", "bf16", absent),
    ]
    kept = []
    bench = MoeBench("tiny-moe", num_rounds=2, threads=1)
    found = rounds.compare(bench, lambda line: None, lambda now: kept.append(len(now.runs)), engines, ours)
    assert kept == [1, 2, 3, 4, 5, 6]
    return found


def test_rounds_are_interleaved_and_figures_follow_from_times(compared):
    order = [run.variant for run in compared.runs]
    assert order == ["bf16", "grouped_mm", "refuses", "grouped_mm", "refuses", "bf16"]
    assert compared.engines[3].absent == "No module named 'no_such_engine'"
    values = {name: sample.value for name, sample in compared.runs[0].metrics.items() if name.endswith("_tps")}
    assert values == pytest.approx(
        {
            "prefill512_tps": 1000,
            "decode1_tps": 100,
            "conc16_tps": 16 * 32 / (0.256 + 0.31),
            "decode16_tps": 1600,
        }
    )
    assert compared.runs[2].errors == {"conc16": "ValueError: too much"}
    assert "prefill512_tps" in compared.runs[2].metrics
    first, other, _, other_later, *_ = compared.runs
    assert first.tokens == other.tokens != other_later.tokens  # the same prompts in a round, fresh ones in the next


def test_a_disturbed_test_is_asked_once_more_and_the_calmer_try_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(contention, "wait_until_quiet", lambda max_wait_s: 2.0)
    others = iter([0.0, 0.4, 0.6, 0.0])  # rates, two tries of one test, one of another
    monkeypatch.setattr(contention.Window, "usage", lambda self, own_cpu_s=0.0: Usage(next(others), 0.0))
    path = tmp_path / "ours.py"
    path.write_text(FAKE.format(pace=1.0))
    tests = [rounds.Test("prefill512", 512, 1, 1), rounds.Test("decode1", 16, 1, 32)]
    engines = [Engine("sirocco", "bf16", path, tests)]
    bench = MoeBench("tiny-moe", num_rounds=1, threads=1)
    (run,) = rounds.compare(bench, lambda line: None, lambda now: None, engines, path).runs
    prefill, decode = run.metrics["prefill512_tps"], run.metrics["decode1_tps"]
    assert (prefill.others_cores, prefill.tries, prefill.waited_s) == (0.4, 1, 4.0)
    assert (decode.others_cores, decode.tries, decode.waited_s) == (0.0, 1, 2.0)
    assert next(others, None) is None


def test_where_no_engine_is_there_nothing_is_run(tmp_path):
    path = tmp_path / "absent.py"
    path.write_text("import no_such_engine")
    bench = MoeBench("tiny-moe", num_rounds=1, threads=1, max_wait_s=0.0)
    found = rounds.compare(bench, lambda line: None, lambda now: None, [Engine("sirocco", "bf16", path)], path)
    assert not found.runs and not found.rates
    text = page.page(found)
    assert "rounds: 1.\n" in text and "ratio of medians" not in text


def test_page_says_how_much_faster_than_the_best_and_what_failed(compared, tmp_path):
    path = page.write(compared, tmp_path)
    text = path.read_text()
    assert (
        "| **sirocco / best of the others** | **2.00** (grouped_mm) | **2.00** (grouped_mm) | **2.00** (grouped_mm) "
        "| **2.00** (grouped_mm) |" in text
    )
    assert "| sirocco / transformers refuses | 5.00 | 5.00 | - | - |" in text
    assert "- failed: transformers refuses, round 1, conc16: ValueError: too much" in text
    assert "- absent bf16: absent, No module named 'no_such_engine'" in text
    assert msgspec.json.decode((tmp_path / "moe.json").read_bytes(), type=MoeResults) == compared
    assert {file.name for file in tmp_path.iterdir()} >= {"moe.md", "moe.json"}
    with pytest.raises(RequestError, match="cannot be written"):
        page.write(compared, tmp_path / "nowhere")


def test_work_is_that_of_the_geometry(compared):
    work, experts = work_of(SHAPES["qwen3-30b-a3b"])
    active = work.token_flop / 2 + 2 * work.head_flop / 2  # the embedding counts as parameters, its products do not
    assert active == pytest.approx(3.35e9, rel=0.01)  # "A3B"
    everything = work.step_bytes + experts.read_bytes(100_000) + work.head_flop
    assert everything / 2 == pytest.approx(30_532_122_624, rel=1e-3)
    assert ExpertWork(1, 128, 8, 10).distinct(1) == pytest.approx(8)
    assert ExpertWork(1, 128, 8, 10).distinct(2) == pytest.approx(8 + 8 * (120 / 128))
    assert ExpertWork(3, 4, 2, 10).read_bytes(1) == pytest.approx(3 * 2 * 10 * 2)
    limits = bounds(compared)
    read = compared.work.step_bytes + compared.experts.read_bytes(16)
    assert limits["decode16_tps"] == pytest.approx(16 / (read / 2e9))
    assert limits["conc16_tps"] < limits["decode16_tps"]
    compared.rates.clear()
    assert bounds(compared) == {}


def test_both_engines_compute_the_same_model():
    rng = random.Random(0)
    prompts = [{"ids": [rng.randrange(8192) for _ in range(40)], "text": ""} for _ in range(3)]
    replies = []
    engines = {engine.variant: engine.driver for engine in rounds.ENGINES}
    for experts in ("bf16", "batched_mm"):  # which takes grouped_mm for the prompt
        spec = {"folder": "", "variant": "f32", "threads": 1, "max_streams": 3, "max_tokens": 4096}
        with Child(sys.executable, engines[experts], Launch(1, 120)) as child:
            child.call("load", spec | {"shape": "tiny-moe", "experts": experts})
            replies.append(child.call("generate", prompts, 8)[0])
    ours, theirs = replies
    assert ours["ids"] == theirs["ids"] and len(set(ours["ids"])) > 1
    assert ours["counts"] == theirs["counts"] == [8, 8, 8]


def test_command_line_publishes_medians(compared, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rounds, "compare", lambda bench, say, keep: keep(compared) and compared)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "moe", "--shape", "tiny-moe", "--out", str(tmp_path), "--json", "-"])
    assert ended.value.code == 1  # an engine failed
    rows = json.loads(capsys.readouterr().out)
    assert [row["engine"] for row in rows][:2] == ["sirocco bf16", "transformers grouped_mm"]
    assert rows[0]["prefill512_tps"] == pytest.approx(1000) and rows[3]["prefill512_tps"] is None
    assert (tmp_path / "moe.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny"], "unknown mixture of experts 'tiny': choose qwen3-30b-a3b"),
        (["--timeout", "0"], "--timeout must be greater than 0"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_command_line_refuses_in_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "moe", "--out", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
