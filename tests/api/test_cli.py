"""The command line: what it accepts, what it refuses in one line, and what it must not import."""

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys

import msgspec
import pytest

from sirocco.api.cli.main import build_parser, main
from sirocco.api.cli.options import data_dir, num_bytes
from sirocco.api.cli.run import Conversation, Terminal, _Speed
from sirocco.runtime.errors import RequestError
from sirocco.runtime.request import SamplingParams, StreamEvent


@pytest.mark.parametrize("module", ["sirocco", "sirocco.api.app", "sirocco.api.server", "sirocco.bench.serve"])
def test_no_torch(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=30)


def test_help_imports_little():
    code = (
        "import sys\nfrom sirocco.api.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'granian', 'uvloop', 'rich', 'tokenizers', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert all(verb in done.stdout for verb in ("serve", "run", "bench"))


# Of every verb that loads a model; each is found before anything is loaded.
WRONG_MODEL_FLAGS = (
    "--arch",
    "--arch no-such-family",
    "--revision",
    "--revision main",  # of the demo model, which has none
    "--revision ../x -m org/name",
    "--token-source",
    "--token-source hf_verysecret",
    "--token-source literal:",
    "--token-source env:NO_SUCH_VARIABLE -m org/name",
    "--token-source path:/nonexistent -m org/name",
    "--offline -m org/no-such-model",
    "--offline=yes",
    "-m ./nowhere",
)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nothing",
        "serve --port 99999",
        "serve --port x",
        "serve --drain-timeout -1",
        "serve --kv-memory 4XB",
        "serve --kv-memory 0",
        f"serve --kv-memory {'9' * 400}",
        "serve --kv-memory 99999999TiB",
        *(f"serve {flag}=" for flag in ("--api-key", "--host", "--cors-origin", "--allowed-host")),
        "serve --api-key \udcff",
        "serve --max-num-seqs 0",
        "serve --max-num-seqs 65537",
        "serve --dtype int3",
        "serve --unknown",
        "run -i",
        "bench",
        "bench throughput --concurrency 1,x",
        "bench throughput --warmup -1",
        "bench throughput --json /nonexistent/x.json",
        "bench serve --request-rate 0",
        "bench serve --request-rate 1 --concurrency 2",
        "bench serve --goodput speed:3",
        "bench serve --goodput ttft",
        "bench serve --dataset /nonexistent",
        "bench serve --base-url ftp://x",
        "bench serve --base-url http://127.0.0.1:99999/v1",
        "bench serve --base-url http://127.0.0.1:9/v1 -m \udcff",
        "bench gpu --device cpu --out /dev/null/x",
        "bench gpu --device cpu --model-shape no-such-shape",
        "run --temperature -1 -i x",
        "run --top-p 2 -i x",
        *(f"{verb} {flags}" for verb in ("serve", "run -i x", "bench throughput") for flags in WRONG_MODEL_FLAGS),
        "bench throughput --model-shape tiny --arch llama",
        "serve --data-dir /dev/null/x",
        "run --data-dir /dev/null/x",
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(line, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("sirocco.api.server.run", _only_find)
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sirocco: error: ") and captured.err.count("\n") == 1
    assert "secret" not in captured.err


def _only_find(make_engine, options):
    """The first thing that a server does, without its socket."""
    engine = make_engine()
    asyncio.run(engine.start())
    raise AssertionError("the model was found")


def test_flags_about_the_model_reach_the_engine(monkeypatch, tmp_path, capsys):
    seen = {}

    def find(make_engine, options):
        engine = make_engine()
        seen["options"] = engine.client.options
        asyncio.run(engine.start())

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **asked: seen.update(asked) or str(tmp_path))
    monkeypatch.setattr("sirocco.api.server.run", find)
    flags = ["--arch", "qwen3", "--revision", "v1", "--token-source", "literal:hf_verysecret"]
    with pytest.raises(SystemExit) as end:
        main(["serve", "-m", "org/name", *flags])
    assert end.value.code == 2 and "no config.json" in capsys.readouterr().err  # of the folder that was found
    assert (seen["token"], seen["options"].arch) == ("hf_verysecret", "Qwen3ForCausalLM")
    assert "secret" not in repr(seen["options"]), "the engine process needs no token"


ENGINE_FLAGS = {
    "dtype": ("--dtype float32", "float32"),
    "device": ("--device cpu", "cpu"),
    "max_num_seqs": ("--max-num-seqs 5", 5),
    "kv_memory": ("--kv-memory 64MiB", 64 << 20),
    "chunk_size": ("--chunk-size 99", 99),
    "prefix_caching": ("--no-prefix-caching", False),
    "batch_invariant": ("--batch-invariant", True),
    "max_model_len": ("--max-model-len 77", 77),
    "max_waiting": ("--max-waiting 3", 3),
}


@pytest.mark.parametrize("name", ENGINE_FLAGS)
def test_each_flag_about_the_engine_reaches_it_alone(name, monkeypatch):
    seen = []
    monkeypatch.setattr("sirocco.api.server.run", lambda make, options: seen.append(make().client.options) or 0)
    flag, value = ENGINE_FLAGS[name]
    for flags in ([], flag.split()):
        with pytest.raises(SystemExit) as end:
            main(["serve", *flags])
        assert end.value.code == 0
    plain, changed = seen
    assert changed == msgspec.structs.replace(plain, **{name: value}) != plain


def test_bench_throughput_measures_every_combination(capsys, tmp_path):
    path = tmp_path / "rows.json"
    sizes = ["--prompt-len", "8,16", "--gen-len", "3", "--concurrency", "1,2", "--warmup", "0", "--iterations", "1"]
    with pytest.raises(SystemExit) as end:
        main(["bench", "throughput", "--model-shape", "tiny", "--device", "cpu", *sizes, "--json", str(path)])
    assert end.value.code == 0
    rows = json.loads(path.read_text())
    assert [(row["prompt_len"], row["concurrency"]) for row in rows] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    for row in rows:
        assert row["gen_len"] == 3 and row["model"] == "tiny"
        assert row["prefill_tps"] > 0 and row["ttft_ms"]["p50"] > 0 and row["load_s"] > 0 and row["peak_rss_mib"] > 0
    printed = capsys.readouterr().out
    assert "peak so far MiB" in printed and len([line for line in printed.splitlines() if " 16 " in line]) == 2


def test_port_of_other_digits(capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["serve", "--port", "\N{SUPERSCRIPT TWO}"])
    assert end.value.code == 2 and "is not a port" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", "  ", "a ", "\n", "a\tb"])
def test_keys_that_nobody_could_give(key, capsys, monkeypatch):
    monkeypatch.setattr("sirocco.api.server.run", _only_find)
    with pytest.raises(SystemExit) as end:
        main(["serve", "--api-key", "good", "--api-key", key])
    assert end.value.code == 2 and "--api-key" in capsys.readouterr().err


@pytest.mark.parametrize("key, code", [("", 0), ("  ", 2), ("secret\n", 2)])
def test_only_the_variable_may_be_empty(key, code, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("sirocco.api.server.run", lambda make_engine, options: seen.append(options.api_keys) or 0)
    monkeypatch.setenv("SIROCCO_API_KEY", key)
    with pytest.raises(SystemExit) as end:
        main(["serve"])
    assert end.value.code == code and seen == ([()] if code == 0 else [])
    message = capsys.readouterr().err
    assert ("SIROCCO_API_KEY" in message) == (code == 2) and "secret" not in message


@pytest.mark.parametrize("line, variable", [("run", "XDG_DATA_HOME"), ("bench peers --out OUT", "XDG_CACHE_HOME")])
def test_no_home(line, variable, capsys, monkeypatch, tmp_path):
    def nowhere(*arguments):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    with pytest.raises(SystemExit) as end:
        main(line.replace("OUT", str(tmp_path)).split())
    assert end.value.code == 2 and variable in capsys.readouterr().err


@pytest.mark.parametrize("line", ["run", "run -i -"])
def test_no_standard_input(line, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2 and "standard input" in capsys.readouterr().err


def test_output_that_cannot_be_encoded():
    command = [sys.executable, "-P", "-m", "sirocco", "bench", "throughput", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and "N,?" in done.stdout and done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_output_that_has_no_room():
    command = [sys.executable, "-P", "-m", "sirocco", "run", "-i", "Hello"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "sirocco: error: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_outputs_that_were_closed_before(closed, tmp_path):
    other = tmp_path / "other"
    number, shown = (1, 2) if closed == "stdout" else (2, 1)
    line = f"exec {sys.executable} -P -m sirocco run -i ' ' {number}>&- {shown}>{other}"
    done = subprocess.run(["sh", "-c", line], timeout=60)
    assert done.returncode == 2
    assert other.read_text() == ("sirocco: error: the prompt is empty\n" if closed == "stdout" else "")


def test_empty_prompt(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "-i", "  "])
    assert end.value.code == 2 and "the prompt is empty" in capsys.readouterr().err


def test_interrupt_is_130(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sirocco.api.cli.serve.run", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["serve"])
    assert end.value.code == 130


@pytest.mark.parametrize(
    "text, size",
    [
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        ("1.5g", 1_500_000_000),
        ("2GB", 2 * 10**9),
        ("100", 100),
        ("1kib", 1024),
    ],
)
def test_sizes(text, size):
    assert num_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GiB", "4 GiB x", "nan", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        num_bytes(text)


def test_no_two_loads_of_a_server_ask_the_same_unless_told_to(monkeypatch, capsys):
    seeds = []
    monkeypatch.setattr("sirocco.bench.serve.measure", lambda bench: seeds.append(bench.seed) or {"completed": 1})
    for line in ("", "", "--seed 5"):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["bench", "serve", *line.split()])
    assert seeds[0] != seeds[1] and seeds[2] == 5


def test_serve_defaults_and_repeated_flags():
    plain = build_parser().parse_args(["serve"])
    assert (plain.model, plain.host, plain.port, plain.drain_timeout) == ("demo", "127.0.0.1", 1234, 30.0)
    assert plain.prefix_caching is True
    given = build_parser().parse_args(["serve", "--api-key", "a", "--api-key", "b", "--no-prefix-caching"])
    assert given.api_key == ["a", "b"] and given.prefix_caching is False
    assert build_parser().parse_args(["serve"]).api_key == []  # not shared between parsers


def test_serve_hands_over_options(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("sirocco.api.server.run", lambda make_engine, options: seen.append(options) or 0)
    monkeypatch.setenv("SIROCCO_API_KEY", "env")
    with pytest.raises(SystemExit) as end:
        main(
            ["serve", "--api-key", "a", "--port", "0", "--cors-origin", "https://x", "--data-dir", str(tmp_path / "d")]
        )
    assert end.value.code == 0
    (options,) = seen
    assert options.api_keys == ("a", "env") and options.port == 0 and options.cors_origins == ("https://x",)
    assert (tmp_path / "d").is_dir()


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_dir(None) == tmp_path / "sirocco"
    assert (tmp_path / "sirocco").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(RequestError):
        data_dir(str(tmp_path / "file" / "x"))


class FakeChat:
    """Answers with its script; an exception in it is raised."""

    def __init__(self, *script):
        self.script = script
        self.seen = []

    def stream_chat(self, messages, params):
        self.seen.append((messages, params))
        for item in self.script:
            if isinstance(item, BaseException):
                raise item
            yield StreamEvent(0, item, [1])


def test_answer_goes_to_stdout_and_speed_to_stderr(capsys):
    conversation = Conversation(FakeChat("Hel", "lo"), SamplingParams())
    conversation.answer("Hi")
    captured = capsys.readouterr()
    assert captured.out == "Hello\n"
    assert captured.err.startswith("[2 tokens, first after ") and "tokens/s" in captured.err
    conversation.answer("And?")
    assert [message["content"] for message in conversation.engine.seen[1][0]] == ["Hi", "Hello", "And?"]


def test_speed_leaves_out_what_came_with_the_first_tokens(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    speed = _Speed()
    for tokens in (5, 2, 2, 0):  # at 1, 2 and 3 seconds; the end brings no tokens
        speed.count(tokens)
    assert speed.line() == "[9 tokens, first after 1000 ms, 2.0 tokens/s]"


def test_stopped_answer_is_kept():
    conversation = Conversation(FakeChat("Hel", KeyboardInterrupt()), SamplingParams())
    with pytest.raises(KeyboardInterrupt):
        conversation.answer("Hi")
    assert conversation.messages[-1] == {"role": "assistant", "content": "Hel"}


def test_failed_answer_is_not_kept():
    conversation = Conversation(FakeChat(RequestError("too long")), SamplingParams())
    with pytest.raises(RequestError):
        conversation.answer("Hi")
    assert conversation.messages == []


def test_terminal(monkeypatch, capsys, tmp_path):
    engine = FakeChat("ok")
    conversation = Conversation(engine, SamplingParams())
    lines = ["/system be brief", "/temperature 0.5", "/topk 7", "/topp 0.9", "one", "", "/clear", "two \\", "lines"]
    wrong = ["/topk x", "/temperature -3", "/nothing", "/topp nan"]
    feed = iter([*lines, *wrong, "/help", "/exit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(feed))
    Terminal(conversation, tmp_path / "history").talk()
    assert [[m["content"] for m in messages] for messages, _ in engine.seen] == [
        ["be brief", "one"],
        ["be brief", "two \nlines"],
    ]
    params = engine.seen[1][1]
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 0.9)
    captured = capsys.readouterr()
    assert captured.out == "ok\nok\n" and captured.err.count("error: ") == 4
    assert next(feed) == "never"


def typed(*items):
    """A stand-in for `input` that returns these lines, or raises these errors, one after the other."""
    feed = iter(items)

    def read(prompt=""):
        item = next(feed)
        if isinstance(item, BaseException):
            raise item
        return item

    return read


def test_terminal_ends_at_end_of_input_and_survives_ctrl_c(monkeypatch, tmp_path):
    engine = FakeChat("a", KeyboardInterrupt())
    monkeypatch.setattr("builtins.input", typed("one", KeyboardInterrupt(), "two", EOFError()))
    Terminal(Conversation(engine, SamplingParams()), tmp_path / "history").talk()
    assert len(engine.seen) == 2


@pytest.mark.parametrize("last", ["two\\", "two\\\n"])
def test_input_that_ends_with_a_backslash_is_answered(last, monkeypatch, tmp_path):
    engine = FakeChat("a")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"one\n{last}"))
    Terminal(Conversation(engine, SamplingParams()), tmp_path / "history").talk()
    assert [messages[-1]["content"] for messages, _ in engine.seen] == ["one", "two"]


def test_piped_input_that_is_not_utf8(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\n"), "utf-8"))
    with pytest.raises(RequestError, match="UTF-8"):
        Terminal(Conversation(FakeChat("a"), SamplingParams()), tmp_path / "history").talk()


def test_typed_input_that_is_not_utf8(monkeypatch, tmp_path, capsys):
    engine = FakeChat("a")
    not_utf8 = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    monkeypatch.setattr("builtins.input", typed(not_utf8, "two", EOFError()))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sirocco.api.cli.run._more_was_pasted", lambda: False)
    Terminal(Conversation(engine, SamplingParams()), tmp_path / "history").talk()
    assert len(engine.seen) == 1 and "UTF-8" in capsys.readouterr().err


def test_history_that_may_not_be_looked_at(monkeypatch, tmp_path, capsys):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("readline.read_history_file", denied)
    monkeypatch.setattr("pathlib.Path.exists", denied)
    monkeypatch.setattr("builtins.input", lambda prompt="": "/exit")
    Terminal(Conversation(FakeChat(), SamplingParams()), tmp_path / "history").talk()
    assert "the history cannot be read: Permission denied" in capsys.readouterr().err
