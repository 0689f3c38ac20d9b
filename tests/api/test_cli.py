"""The command line: what it accepts, what it refuses in one line, and what it must not import."""

import argparse
import asyncio
import subprocess
import sys

import pytest

from sirocco.api.cli.main import build_parser, main
from sirocco.api.cli.options import data_dir, num_bytes
from sirocco.api.cli.run import Conversation, Terminal
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
        "serve --max-num-seqs 0",
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


def test_terminal_ends_at_end_of_input_and_survives_ctrl_c(monkeypatch, tmp_path):
    engine = FakeChat("a", KeyboardInterrupt())
    feed = iter(["one", KeyboardInterrupt(), "two", EOFError()])

    def read(prompt=""):
        item = next(feed)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr("builtins.input", read)
    Terminal(Conversation(engine, SamplingParams()), tmp_path / "history").talk()
    assert len(engine.seen) == 2
