"""Comparing engines: the generated model, the processes with a scripted engine, the rounds, the page."""

import json
import runpy
import sys
import time
import types
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sirocco.api.cli.main import main
from sirocco.bench.peers import contention, floors, folder, page, results, rounds
from sirocco.bench.peers.child import DRIVERS, AbsentError, CallError, Child, ChildDiedError, Launch, shorten
from sirocco.bench.peers.contention import Times, Usage
from sirocco.bench.peers.results import Entry, Rates, Results, Run, Sample, Work
from sirocco.bench.peers.rounds import Peer, PeersBench
from sirocco.bench.peers.vocabulary import MAX_VOCABULARY, SPECIAL_TOKENS
from sirocco.runtime.errors import ModelLoadError, RequestError
from sirocco.runtime.models.load import load_model
from sirocco.runtime.text.tokenizer import load_tokenizer

# An engine that answers at once with times that follow from what it is asked; the variant chooses how it misbehaves.
FAKE = """
import os, sys, time
print("engines print what they like")
def version():
    return "fake 1"
class Model:
    def __init__(self, spec):
        self.variant = spec["variant"]
        if self.variant == "broken":
            os.write(2, b"first line\\nout of memory in /some/where/file.c\\n")
            os._exit(3)
    def generate(self, prompts, count):
        if self.variant == "hangs":
            time.sleep(60)
        if self.variant == "refuses" and len(prompts) == 8:
            raise ValueError("no batches in /home/someone/engine.py")
        given = count - 1 if self.variant == "short" and len(prompts) == 32 else count
        first = len(prompts[0]["ids"]) / 1000
        ids = [sum(prompts[0]["ids"]) % 1000] * count
        return {"first_s": first, "total_s": first + count / 100, "counts": [given] * len(prompts), "ids": ids}
    def rates(self):
        return {"read_bytes_s": 2e9, "matmul_flop_s": 3e12}
"""
VARIANTS = ("good", "broken", "hangs", "refuses", "short")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return folder.ensure_folder(tmp_path_factory.mktemp("models"), "tiny")


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake_engine.py"
    path.write_text(FAKE)
    return path


@pytest.fixture
def quiet(monkeypatch):
    """A machine on which nobody else ever works."""
    monkeypatch.setattr(contention, "wait_until_quiet", lambda max_wait_s: 0.0)
    monkeypatch.setattr(contention.Window, "usage", lambda self, own_cpu_s=0.0: Usage(0.0, 0.0))


def spec(variant="good", path="nowhere"):
    return {"folder": str(path), "variant": variant, "threads": 1, "max_streams": 32, "max_tokens": 4096}


def ask(child, length=4, streams=1, count=3):
    return child.call("generate", [{"ids": list(range(length)), "text": ""}] * streams, count)[0]


def test_folder_loads_strictly_and_cannot_end_early(tiny):
    assert load_model(tiny, "bfloat16", "cpu").weight_bytes > 10e6
    with safe_open(tiny / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    embedding = tensors["model.embed_tokens.weight"].float()
    used = load_tokenizer(tiny).vocab_size
    assert not embedding[: len(SPECIAL_TOKENS)].any() and not embedding[used:].any()
    assert embedding[len(SPECIAL_TOKENS) : used].any(dim=1).all()
    assert embedding.std() == pytest.approx(embedding.shape[1] ** -0.5, rel=0.02)
    assert torch.equal(tensors["model.norm.weight"], torch.ones(256, dtype=torch.bfloat16))
    up, down = (tensors[f"model.layers.3.mlp.{name}_proj.weight"].float() for name in ("up", "down"))
    assert up.std() * 256**0.5 == pytest.approx(1, rel=0.02)
    assert down.std() * 768**0.5 == pytest.approx(1, rel=0.02)


def test_folder_is_reused_and_unknown_shapes_are_refused(tiny, tmp_path):
    before = (tiny / "model.safetensors").stat().st_mtime_ns
    assert folder.ensure_folder(tiny.parent, "tiny") == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ModelLoadError, match=r"choose qwen3-0\.6b"):
        folder.ensure_folder(tmp_path, "huge")


def test_bfloat16_rounds_as_torch_does():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    bits = folder.to_bfloat16(values.numpy())
    assert torch.equal(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), values.bfloat16())


def test_prompts_are_exact_repeatable_and_differ_at_the_start(tiny):
    tokenizer = load_tokenizer(tiny)
    assert tokenizer.vocab_size <= MAX_VOCABULARY
    maker = folder.load_prompts(tiny)
    prompts = maker.draw(16, 32, "a")
    assert [len(prompt.ids) for prompt in prompts] == [16] * 32
    assert len({prompt.ids[0] for prompt in prompts}) == 32
    assert all(list(tokenizer.encode(prompt.text)) == prompt.ids for prompt in prompts)
    assert maker.draw(16, 32, "a") == prompts and maker.draw(16, 32, "b") != prompts


def test_the_engine_and_transformers_compute_the_same_model(tiny):
    prompts = [{"ids": prompt.ids, "text": prompt.text} for prompt in folder.load_prompts(tiny).draw(12, 2, "s")]
    replies = []
    for name in ("sirocco_engine", "hf_transformers"):
        with Child(sys.executable, DRIVERS / f"{name}.py", Launch(1, 120)) as child:
            child.call("load", spec("f32", tiny))
            replies.append(child.call("generate", prompts, 8)[0])
    ours, theirs = replies
    assert ours["ids"] == theirs["ids"] and len(set(ours["ids"])) > 1
    for reply in replies:
        assert reply["counts"] == [8, 8]
        assert 0 < reply["first_s"] < reply["total_s"]


def test_usage_is_what_neither_side_used(monkeypatch):
    moments = [Times(100.0, 5.0, 10.0), Times(103.0, 5.5, 12.0)]
    monkeypatch.setattr(contention, "read_times", lambda: moments.pop(0))
    monkeypatch.setattr(contention.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(contention.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(contention.time, "process_time", lambda: 1.0)
    usage = contention.Window().usage(own_cpu_s=2.0)
    assert usage == (pytest.approx((3.0 - 2.0 - 0.02) / 2), 0.25)
    assert usage.disturbed


def test_waiting_ends_with_quiet_or_with_patience(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(contention.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(contention.time, "monotonic", lambda: clock[0])
    loads = [2.0, 0.8, 0.1]
    monkeypatch.setattr(contention.Window, "usage", lambda self, own_cpu_s=0.0: Usage(loads.pop(0), 0.0))
    assert contention.wait_until_quiet(90) == 3.5 and not loads
    loads = [2.0] * 20
    assert 4 <= contention.wait_until_quiet(4) < 6


def test_without_counters_usage_is_unknown_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(contention, "read_times", lambda: None)
    monkeypatch.setattr(contention.time, "sleep", lambda seconds: None)
    assert contention.Window().usage() == (None, None)
    assert contention.wait_until_quiet(90) < 1


def test_child_answers_whatever_the_engine_prints(fake):
    with Child(sys.executable, fake, Launch(1, 20)) as child:
        assert child.call("version")[0] == "fake 1"
        assert child.call("load", spec())[0] >= 0
        assert ask(child, length=500)["first_s"] == 0.5
        assert 1 < child.call("peak_rss_mib")[0] < 100  # this process, which has torch, holds more


def test_child_survives_an_error_but_not_a_death(fake):
    with Child(sys.executable, fake, Launch(1, 20)) as child:
        child.call("load", spec("refuses"))
        with pytest.raises(CallError, match=r"^ValueError: no batches in engine\.py$"):
            ask(child, streams=8)
        assert ask(child)["counts"] == [3]
        child.call("load", spec("short"))
        with pytest.raises(CallError, match="asked for 3 tokens"):
            ask(child, streams=32)
        with pytest.raises(ChildDiedError, match=r"code 3: out of memory in file\.c$"):
            child.call("load", spec("broken"))
        with pytest.raises(ChildDiedError):
            child.call("version")


def test_child_that_hangs_is_ended(fake):
    with Child(sys.executable, fake, Launch(1, 20)) as child:
        child.call("load", spec("hangs"))
        started = time.monotonic()
        with pytest.raises(ChildDiedError, match=r"no answer within 0\.2 s"):
            child.call("generate", [{"ids": [1], "text": ""}], 1, timeout_s=0.2)
        assert time.monotonic() - started < 10


def test_absent_engines_say_why(tmp_path):
    script = tmp_path / "absent.py"
    script.write_text("import no_such_engine")
    with (
        pytest.raises(AbsentError, match="No module named 'no_such_engine'"),
        Child(sys.executable, script, Launch(1, 9)),
    ):
        pass
    with pytest.raises(AbsentError, match="cannot be started"), Child("/no/python", script, Launch(1, 9)):
        pass


def test_messages_are_one_line_without_folders():
    assert shorten("bad\n file /home/me/x/model.gguf: 1/2 read") == "bad file model.gguf: 1/2 read"


def compared(monkeypatch, fake, tiny, engines, num_rounds=2, **more):
    monkeypatch.setattr(rounds, "MACHINE", fake)
    absent = fake.with_name("absent.py")
    absent.write_text("import no_such_engine")
    peers = {"sirocco": Peer(fake, VARIANTS), "other": Peer(fake, VARIANTS), "absent": Peer(absent, ("bf16",))}
    bench = PeersBench("tiny", tiny.parent, engines, num_rounds=num_rounds, **more)
    said, kept = [], []
    found = rounds.compare(bench, said.append, lambda now: kept.append(len(now.runs)), peers)
    return found, said, kept


def test_rounds_are_interleaved_and_kept(monkeypatch, quiet, fake, tiny):
    found, said, kept = compared(monkeypatch, fake, tiny, ["sirocco", "other", "absent"])
    assert [(run.round, run.engine) for run in found.runs] == [
        (0, "sirocco"),
        (0, "other"),
        (1, "other"),
        (1, "sirocco"),
    ]
    assert kept == [1, 2, 3, 4]
    assert found.engines[2].absent == "No module named 'no_such_engine'"
    assert "absent bf16: absent, No module named 'no_such_engine'" in said
    assert [rates.read_bytes_s for rates in found.rates] == [2e9, 2e9]
    first, other, _, later = found.runs
    assert first.tokens == other.tokens != later.tokens  # the same prompts in a round, fresh ones in the next
    values = {name: sample.value for name, sample in first.metrics.items()}
    assert values.keys() >= {"load_s", "peak_rss_mib"}
    expected = {
        "prefill512_tps": 1000,
        "ttft512_ms": 512,
        "prefill2048_tps": 1000,
        "ttft2048_ms": 2048,
        "decode1_tps": 127 / 1.28,
        "ttft16_ms": 16,
        "conc8_tps": 8 * 64 / (0.016 + 0.64),
        "conc32_tps": 32 * 64 / (0.016 + 0.64),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_what_fails_is_noted_and_the_rest_is_measured(monkeypatch, quiet, fake, tiny):
    found, _, _ = compared(monkeypatch, fake, tiny, ["sirocco:refuses", "other:broken", "other:short"], num_rounds=1)
    refuses, broken, short = found.runs
    assert refuses.errors == {"conc8": "ValueError: no batches in engine.py"}
    assert "conc32_tps" in refuses.metrics and "conc8_tps" not in refuses.metrics
    assert broken.errors.keys() == {"run"} and not broken.metrics
    assert short.errors.keys() == {"conc32"}


def test_a_disturbed_measurement_is_repeated_and_the_least_disturbed_kept(monkeypatch, fake, tiny):
    monkeypatch.setattr(contention, "wait_until_quiet", lambda max_wait_s: 2.0)
    others = iter([0.0, 0.0, 0.9, 0.4, 0.6, 0.5, 0.1])  # rates, loading, three tries of one test, two of another
    monkeypatch.setattr(contention.Window, "usage", lambda self, own_cpu_s=0.0: Usage(next(others), 0.0))
    tests = ["prefill512", "conc8"]
    found, _, _ = compared(monkeypatch, fake, tiny, ["sirocco"], num_rounds=1, tests=tests)
    prefill, concurrent = (found.runs[0].metrics[name] for name in ("prefill512_tps", "conc8_tps"))
    assert (prefill.others_cores, prefill.tries, prefill.waited_s, prefill.disturbed) == (0.4, 2, 6.0, True)
    assert (concurrent.others_cores, concurrent.tries, concurrent.waited_s, concurrent.disturbed) == (
        0.1,
        2,
        4.0,
        False,
    )
    assert next(others, None) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"engines": ["nobody"]}, "unknown engine 'nobody': choose sirocco"),
        ({"engines": ["other:fp1"]}, "measured as good"),
        ({"engines": ["other"], "tests": ["speed"]}, "unknown test 'speed'"),
        ({"engines": ["other"], "pythons": {"nobody": "python"}}, "unknown engine: nobody"),
    ],
)
def test_wrong_input_is_refused(monkeypatch, fake, tiny, more, message):
    with pytest.raises(RequestError, match=message):
        compared(monkeypatch, fake, tiny, **more)


def test_a_comparison_of_nobody_is_refused(monkeypatch, quiet, fake, tiny):
    with pytest.raises(RequestError, match="none of the engines is there"):
        compared(monkeypatch, fake, tiny, ["absent"])


@pytest.mark.parametrize(("engine", "code"), [("good", 0), ("broken", 1)])
def test_the_command_fails_where_a_run_did(monkeypatch, quiet, fake, tiny, tmp_path, capsys, engine, code):
    compare, peers = rounds.compare, {"sirocco": Peer(fake, VARIANTS)}
    monkeypatch.setattr(rounds, "MACHINE", fake)
    monkeypatch.setattr(rounds, "compare", lambda bench, say, keep: compare(bench, say, keep, peers))
    arguments = ["--engines", "sirocco:" + engine, "--rounds", "1", "--tests", "prefill512"]
    line = ["bench", "peers", "--shape", "tiny", "--models", str(tiny.parent), "--out", str(tmp_path), *arguments]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == code
    capsys.readouterr()


def test_wrong_tests_are_refused_before_a_model_is_made(fake, tmp_path):
    bench = PeersBench("tiny", tmp_path / "models", ["sirocco"], tests=["nope"])
    with pytest.raises(RequestError, match="unknown test 'nope': choose prefill512"):
        rounds.compare(bench, lambda line: None, lambda found: None, {"sirocco": Peer(fake, VARIANTS)})
    assert not (tmp_path / "models").exists()


def test_work_is_counted_from_the_geometry(tiny):
    config = json.loads((tiny / "config.json").read_text())
    layer = 256 * (4 + 2 + 2 + 4) * 64 + 3 * 256 * 768
    work = floors.work_of(config)
    assert work == Work((4 * layer + 8192 * 256) * 2, 2 * 4 * layer, 2 * 8192 * 256, 4 * 256 * 4, 2 * 4 * 2 * 64 * 2)
    norms = sum(np.prod(shape) for shape in folder.tensor_shapes(config).values() if len(shape) == 1)
    header = int.from_bytes((tiny / "model.safetensors").read_bytes()[:8], "little")
    assert (tiny / "model.safetensors").stat().st_size == 8 + header + work.step_bytes + 2 * norms


def sample(value, others=0.0):
    return Sample(value, others, 0.0, 0.0, 1)


@pytest.fixture
def measured():
    """Three rounds of two engines and one that is absent; another process disturbed one round of the other engine."""
    found = Results("tiny", "2026-01-01T00:00:00+00:00", "a processor", "an OS", 2, 3, 128, 64, Work(1000, 900, 100, 1))
    found.engines = [Entry("sirocco", "bf16", "0.1"), Entry("other", "bf16", "7"), Entry("third", "f32", absent="lost")]
    found.rates = [Rates(number, 1e6, 1e6, 0.0) for number in range(3)]
    for number in range(3):
        metrics = {"decode1_tps": sample(200.0 + number), "conc8_tps": sample(900.0), "ttft16_ms": sample(4.0)}
        found.runs.append(Run("sirocco", "bf16", number, metrics, tokens=[1, 2, 3, 4]))
        slow = {
            "decode1_tps": sample(100.0 - 50 * (number == 0), 0.9 * (number == 0)),
            "conc8_tps": sample(3000.0, 0.5),
        }
        found.runs.append(Run("other", "bf16", number, slow, {"conc32": "it broke"}, [1, 2, 3 + number, 4]))
    return found


def test_bounds_are_the_slower_of_reading_and_computing(measured):
    bounds = floors.bounds(measured)
    assert bounds["decode1_tps"] == pytest.approx(1e6 / 1000)  # 1 ms each: reading a step's weights, a row's products
    assert bounds["conc8_tps"] == pytest.approx(8 / (8 * 1000 / 1e6))
    assert bounds["prefill512_tps"] == pytest.approx(512 / ((512 * 900 + 100 + 512 * 513 / 2) / 1e6))
    measured.rates = []
    assert floors.bounds(measured) == {}


def test_the_least_memory_is_weights_and_the_most_tokens_at_once(measured):
    measured.work = Work(3 << 20, 900, 100, 1, cached_bytes=1 << 20)
    measured.most_tokens = 2
    assert floors.bounds(measured)["peak_anon_mib"] == 5.0


def test_page_shows_medians_ratios_and_what_is_missing(measured):
    text = page.page([measured])
    assert "201 [200-202] x3" in text
    assert "100 [100-100] x2 |" in text  # the disturbed sample does not count
    assert "3000 [3000-3000] x3! |" in text  # where all were disturbed they do
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    ratio = rows["| sirocco bf16 / other bf16"]
    assert ratio[3] == "2.01" and ratio[4] == "0.30" and ratio[1] == "-"
    assert rows["| sirocco bf16 / bound"][3] == "0.20"
    assert "- third f32: absent, lost" in text
    assert "its first 2 of 4 tokens are ours in every round" in text
    assert "- failed: other bf16, round 1, conc32: it broke" in text


def test_tokens_are_compared_with_our_own_variant(measured):
    measured.engines += [Entry("sirocco", "f32", "0.1"), Entry("other", "f32", "7")]
    for number in range(3):
        measured.runs.append(Run("sirocco", "f32", number, {}, tokens=[9, 2, 3, 4]))
        measured.runs.append(Run("other", "f32", number, {}, tokens=[9, 2, 3, 5]))
    text = page.page([measured])
    assert "other bf16: 7; its first 2 of 4 tokens are those of sirocco bf16 in every round" in text
    assert "other f32: 7; its first 3 of 4 tokens are those of sirocco f32 in every round" in text


def test_page_does_without_the_rates_of_the_machine_and_without_ours(measured):
    measured.rates = []
    text = page.page([measured])
    assert "rounds: 3.\n" in text and "bound |" not in text and "| sirocco bf16 / other bf16 |" in text
    measured.engines[0].absent = "lost"
    text = page.page([measured])
    assert "- sirocco bf16: absent, lost" in text and "ratio of medians" not in text


def test_charts_are_well_formed_and_hold_every_engine_that_ran(measured):
    measured.engines[1].name = measured.runs[1].engine = "<other>"
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(page.throughput_chart(measured))
    texts = [element.text for element in root.iter(f"{svg}text")]
    assert "sirocco bf16" in texts and "<other> bf16" in texts and "third f32" not in texts
    assert len(list(root.iter(f"{svg}circle"))) == 4
    heights = [float(element.get("cy")) for element in root.iter(f"{svg}circle")]
    assert heights[1] < heights[0]  # more tokens a second stand higher
    empty = ElementTree.fromstring(page.latency_chart(Results(*["x"] * 4, 2, 3, 1, 1, measured.work)))
    assert not list(empty.iter(f"{svg}circle"))


def test_report_is_made_again_from_the_files(measured, tmp_path, capsys):
    results.save(measured, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "peers", "--report", "--out", str(tmp_path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "peers.md")
    assert (tmp_path / "peers.md").read_text() == page.page([measured])
    for name in ("throughput", "latency"):
        file = f"peers-tiny-{name}.svg"
        assert (tmp_path / file).exists() and f"]({file})" in (tmp_path / "peers.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "--out", "{}"], "holds no peers-"),
        (["--python", "llama.cpp"], "is not ENGINE=PATH"),
        (["--engines", ","], "names nothing"),
        (["--shape", "huge", "--out", "{}", "--models", "{}"], "unknown shape 'huge'"),
        (["--timeout", "0", "--out", "{}"], "--timeout must be greater than 0"),
    ],
)
def test_command_line_refuses_in_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "peers", *(argument.format(tmp_path) for argument in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


class FakeWriter:
    """Records what the conversion writes."""

    made: ClassVar = []

    def __init__(self, path, architecture):
        self.path, self.architecture, self.tensors, self.fields = path, architecture, {}, {}
        FakeWriter.made.append(self)

    def add_tensor(self, name, values, raw_dtype=None):
        self.tensors[name] = (np.array(values), raw_dtype)

    def write_tensors_to_file(self):
        self.path.write_text("GGUF")

    def __getattr__(self, name):
        return lambda *values: self.fields.__setitem__(name, values)


@pytest.fixture
def gguf_file(monkeypatch):
    """The conversion's functions, with a package in place of gguf that records."""
    package = types.ModuleType("gguf")
    package.GGUFWriter = FakeWriter
    package.LlamaFileType = types.SimpleNamespace(MOSTLY_BF16=32)
    package.TokenType = types.SimpleNamespace(CONTROL=3, NORMAL=1, UNUSED=5)
    package.GGMLQuantizationType = types.SimpleNamespace(BF16=30)
    monkeypatch.setitem(sys.modules, "gguf", package)
    monkeypatch.setattr(FakeWriter, "made", [])
    return runpy.run_path(str(DRIVERS / "gguf_file.py"))


def test_gguf_holds_every_tensor_and_token(gguf_file, tiny):
    gguf_file["prepare"](spec("bf16", tiny))
    gguf_file["prepare"](spec("bf16", tiny))
    (writer,) = FakeWriter.made  # the second time the file is there
    config = json.loads((tiny / "config.json").read_text())
    assert len(writer.tensors) == len(folder.tensor_shapes(config)) and writer.architecture == "qwen3"
    (tokens,) = writer.fields["add_token_list"]
    (kinds,) = writer.fields["add_token_types"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == config["vocab_size"]
    assert kinds[:4] == [3, 3, 3, 1] and kinds[-1] == (5 if load_tokenizer(tiny).vocab_size < 8192 else 1)
    norm, kind = writer.tensors["output_norm.weight"]
    assert norm.dtype == np.float32 and (norm == 1).all() and kind is None
    values, kind = writer.tensors["blk.2.attn_q.weight"]
    assert values.shape == (256, 512) and values.dtype == np.uint8 and kind == 30


def test_interleaved_rows_rotate_alike(gguf_file):
    heads, dim, width = 3, 8, 5
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((heads * dim, width)), rng.standard_normal(width)
    cos, sin = (function(rng.standard_normal(dim // 2)) for function in (np.cos, np.sin))
    left, right = (weight @ x).reshape(heads, 2, dim // 2).swapaxes(0, 1)
    halves = np.stack([left * cos - right * sin, right * cos + left * sin])  # [2, H, D / 2]
    pairs = (gguf_file["interleave"](weight, heads) @ x).reshape(heads, dim // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    np.testing.assert_allclose(np.stack([even * cos - odd * sin, odd * cos + even * sin]), halves)


def test_rope_factors_are_those_of_transformers(gguf_file):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = folder.make_config("llama-3.2-1b")
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), torch.device("cpu"))
    plain = config["rope_theta"] ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / gguf_file["rope_factors"](config), expected.numpy(), rtol=1e-5)
    assert gguf_file["rope_factors"](folder.make_config("tiny")) is None
