"""Text in, text out: stop strings, choices, limits, cancelling, pausing, on a tiny model in this process."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from msgspec.structs import replace

from sirocco import AsyncEngine, ContextLengthError, Engine, OverloadedError, RequestError, SamplingParams
from sirocco.runtime import async_engine
from sirocco.runtime.async_engine import LONG_TEXT, MAX_CHARS_PER_TOKEN
from sirocco.runtime.client import EngineClient
from sirocco.runtime.errors import EngineUnavailableError, RequestCancelledError
from sirocco.runtime.stream import MAX_UNREAD_TOKENS
from sirocco.runtime.wire import EngineInfo, EngineRequest, Outputs, SequenceOutput

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_model):
    with Engine(str(tiny_model), max_num_seqs=8, max_waiting=4) as engine:
        yield engine


def on_loop(engine: Engine, body: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a coroutine on the engine's own event loop."""
    asyncio.run_coroutine_threadsafe(body(engine.asynchronous), engine._loop).result(30)


def test_one_prompt_in_one_result_out_a_list_in_a_list_out(engine):
    one = engine.generate("the wind", GREEDY)
    many = engine.generate(["the wind", engine.asynchronous.tokenizer.encode("the wind")], GREEDY)
    assert [result.token_ids for result in many] == [one.token_ids] * 2
    assert one.finish_reason == "length" and len(one.token_ids) == 24
    assert one.usage.prompt_tokens == len(one.prompt_token_ids)
    assert one.text == engine.asynchronous.tokenizer.decode(one.prompt_token_ids + one.token_ids)[len("the wind") :]


@pytest.mark.parametrize("prompt", [None, 5, [1.5], [None], [[None]]])
def test_what_is_no_prompt_is_refused(engine, prompt):
    with pytest.raises(RequestError):
        engine.generate(prompt)


def test_token_ids_may_come_as_an_array(engine):
    ids = [5, 6, 7]
    array = np.array(ids)
    assert engine.generate(array, GREEDY).token_ids == engine.generate(ids, GREEDY).token_ids
    assert len(engine.generate([array, array], GREEDY)) == 2


def test_more_prompts_than_fit_the_queue(engine):
    results = engine.generate([[5, number % 200 + 3] for number in range(60)], SamplingParams(max_tokens=2))
    assert len(results) == 60


def test_stream_joins_to_the_result_and_ends_with_usage(engine):
    result = engine.generate("rain", GREEDY)
    events = list(engine.stream("rain", GREEDY))
    assert "".join(event.text for event in events) == result.text
    assert [token for event in events for token in event.token_ids] == result.token_ids
    assert events[-1].finish_reason == "length" and events[-1].usage.completion_tokens == 24
    assert all(event.usage is None for event in events[:-1])


def test_a_stop_string_across_tokens_ends_the_text_before_it(engine):
    whole = engine.generate("sand", GREEDY).text
    stop = whole[3:7]
    result = engine.generate("sand", SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop=stop))
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert result.usage.completion_tokens == len(result.token_ids) < 24


def test_choices_differ_and_repeat_with_a_seed(engine):
    params = SamplingParams(max_tokens=8, temperature=1.0, n=3, seed=5, ignore_eos=True)
    first, again = engine.generate("warm", params), engine.generate("warm", params)
    assert [choice.token_ids for choice in first.choices] == [choice.token_ids for choice in again.choices]
    assert len({tuple(choice.token_ids) for choice in first.choices}) == 3
    second = SamplingParams(max_tokens=8, temperature=1.0, seed=6, ignore_eos=True)
    assert engine.generate("warm", second).token_ids == first.choices[1].token_ids, "choice i samples with seed + i"


def test_logprobs_one_entry_a_token(engine):
    result = engine.generate("south", SamplingParams(max_tokens=5, temperature=0, logprobs=3, prompt_logprobs=1))
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert entry.logprob == max(entry.top.values()) and len(entry.top) == 3
    assert result.prompt_logprobs[0] is None and len(result.prompt_logprobs) == result.usage.prompt_tokens


def test_chat_renders_the_template(engine):
    result = engine.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=3))
    text = engine.asynchronous.tokenizer.decode(result.prompt_token_ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "prompt, params, error, said",
    [
        ("", {}, RequestError, "empty"),
        ([], {}, RequestError, "empty"),
        ([3, -1], {}, RequestError, "-1"),
        ([3, 10**6], {}, RequestError, "vocabulary"),
        ([3] * 4000, {}, ContextLengthError, "4000 tokens"),
        ("a", {"logit_bias": {10**6: 1.0}}, RequestError, "vocabulary"),
        ("\ud800", {}, RequestError, "surrogate|Unicode"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(engine, prompt, params, error, said):
    with pytest.raises(error, match=said):
        next(engine.stream(prompt, SamplingParams(**params)))
    assert engine.generate([]) == []


@pytest.mark.parametrize(
    "params",
    [
        {"n": 1_000_000},
        {"n": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"max_tokens": 0},
        {"max_tokens": 2**40},
        {"seed": 2**64},
        {"logprobs": 21},
        {"stop": ["x"] * 100},
        {"stop": ""},
        {"stop": "x" * 10_000},
        {"repetition_penalty": 0.0},
        {"logit_bias": {3: float("nan")}},
        {"top_k": 1.5},
    ],
)
def test_sampling_values_out_of_range_are_refused(params):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**params)
    assert raised.value.param in params


def test_truncate_prompt_keeps_the_end(engine):
    prompt = [3 + number % 200 for number in range(4000)]
    result = engine.generate(prompt, SamplingParams(max_tokens=10, truncate_prompt=True, ignore_eos=True))
    assert result.prompt_token_ids == prompt[-2038:]
    assert len(result.token_ids) == 10


def test_closing_an_iterator_cancels(engine):
    events = engine.stream("the", SamplingParams(max_tokens=2000, ignore_eos=True))
    next(events)
    events.close()

    async def nothing_left(inner: AsyncEngine) -> None:
        assert inner.client.num_open == 0
        result = await inner.generate("the", SamplingParams(max_tokens=1))
        assert result.token_ids
        while inner.client.stats.running:
            await inner.generate("the", SamplingParams(max_tokens=1))
        assert inner.client.stats.blocks_used == 0

    on_loop(engine, nothing_left)


def test_an_unread_stream_is_paused_and_goes_on_when_read(engine):
    async def body(inner: AsyncEngine) -> None:
        params = SamplingParams(max_tokens=1200, temperature=0, ignore_eos=True)
        unread = inner.submit("the wind", params)
        while not unread._paused:
            await asyncio.sleep(0.001)
        brief = SamplingParams(max_tokens=4, ignore_eos=True)
        await inner.generate("rain", brief)  # by its end the engine has heard of the pause
        waiting = unread._num_unread
        for _ in range(3):  # others go on meanwhile
            await inner.generate("rain", brief)
        assert MAX_UNREAD_TOKENS < unread._num_unread == waiting < 1200
        events = [event async for event in unread]
        assert sum(len(event.token_ids) for event in events) == 1200
        assert len(events[0].token_ids) > MAX_UNREAD_TOKENS, "what waited comes as one event"

    on_loop(engine, body)


def test_a_text_beyond_any_context_is_refused_before_it_is_tokenised(engine, monkeypatch):
    async def body(inner: AsyncEngine) -> None:
        text = "a " * inner.client.info.max_model_len * 64 + "a"
        cut = await inner.generate(text, SamplingParams(max_tokens=1, truncate_prompt=True))
        assert cut.usage.prompt_tokens == inner.client.info.max_model_len - 1
        monkeypatch.setattr(inner, "_encode", None)
        for asked in (inner.generate(text), inner.generate(["a", text]), anext(inner.stream(text))):
            with pytest.raises(ContextLengthError, match="characters"):
                await asked

    on_loop(engine, body)


def test_the_queue_is_bounded(engine):
    async def body(inner: AsyncEngine) -> None:
        limit = inner.client.info.max_num_seqs + inner.client.info.max_waiting
        streams = [inner.submit("the", SamplingParams(max_tokens=500, ignore_eos=True)) for _ in range(limit)]
        with pytest.raises(OverloadedError):
            inner.submit("the")
        for stream in streams:
            stream.cancel()
        with pytest.raises(RequestCancelledError):
            await anext(streams[0])
        inner.submit("the").cancel()

    on_loop(engine, body)


def test_a_closed_engine_says_so(tiny_model):
    engine = Engine(str(tiny_model))
    engine.close()
    engine.close()
    with pytest.raises(EngineUnavailableError):
        engine.generate("x")


@pytest.mark.parametrize("step", ["find", "read"])
def test_an_engine_that_is_closed_while_it_starts_loads_no_model(tiny_model, monkeypatch, step):
    reached, closed = threading.Event(), threading.Event()

    def held(result: object) -> object:
        reached.set()
        assert closed.wait(20)
        return result

    class Unwanted(Scripted):
        async def start(self, folder: Path | None = None) -> EngineInfo:
            raise AssertionError("nobody wants it any more")

    if step == "find":
        monkeypatch.setattr("sirocco.runtime.async_engine.resolve_model", lambda *_: held(tiny_model))
    else:
        read = async_engine.read_config
        monkeypatch.setattr(async_engine, "read_config", lambda *how: held(read(*how)))

    async def body() -> None:
        engine = AsyncEngine(str(tiny_model), client=Unwanted())
        starting = asyncio.create_task(engine.start())
        await asyncio.to_thread(reached.wait)
        await engine.close()
        closed.set()
        with pytest.raises(EngineUnavailableError, match="closed"):
            await starting
        with pytest.raises(EngineUnavailableError, match="closed"):
            await engine.start()

    run(body())


HELLO = [{"role": "user", "content": "Hi"}]


def test_template_variables_may_have_any_name(engine):
    params = SamplingParams(max_tokens=1)
    assert engine.chat(HELLO, params, self=1).token_ids
    assert list(engine.stream_chat(HELLO, params, self=1))

    async def body(inner: AsyncEngine) -> None:
        assert await inner.render_chat(HELLO, self=1) == await inner.render_chat(HELLO)
        with pytest.raises(RequestError, match="messages is set by the request"):
            await inner.render_chat(HELLO, messages=[])

    on_loop(engine, body)


class Scripted(EngineClient):
    """Answers each request at once with the same tokens."""

    def __init__(self, *token_ids: int) -> None:
        super().__init__()
        self.answer = list(token_ids)
        self.prompts: list[list[int]] = []

    async def start(self, folder: Path | None = None) -> EngineInfo:
        self.state = "ready"
        self._info = EngineInfo("tiny", 10**6, 1000, 16, 10, 1, 8, 8, "cpu", "float32", 0, 0.0)
        return self._info

    async def close(self) -> None:
        self.state = "closed"

    def _send(self, command) -> None:
        if isinstance(command, EngineRequest):
            self.prompts.append(command.prompt_token_ids)
            outputs = Outputs([SequenceOutput(command.id, 0, self.answer, "length")], self.stats)
            asyncio.get_running_loop().call_soon(self._deliver, outputs)


def run(body: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


@pytest.mark.parametrize("template, shown", [("{{ tools }}<tool_call>", "<tool_call>the"), ("{{ messages }}", "the")])
def test_a_special_tag_stays_in_the_text_where_it_opens_calls(tiny_model, tmp_path, template, shown):
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_special_tokens(["<tool_call>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    answer = tokenizer.encode("<tool_call><|im_start|>the").ids

    async def body() -> None:
        async with AsyncEngine(str(tmp_path), chat_template=template, client=Scripted(*answer)) as engine:
            assert (await engine.generate([5])).text == shown

    run(body())


@pytest.mark.parametrize(
    ("template", "ends"), [(None, []), ("{{ messages }}", []), ("{{ messages }}<end_of_turn>", ["<end_of_turn>"])]
)
def test_an_answer_ends_where_the_tokenizer_or_the_template_says(tiny_model, tmp_path, template, ends):
    """As models need whose configs are those of the base model that they were tuned from."""
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    named = {"eos_token": "<|im_end|>"} | ({} if template is None else {"chat_template": template})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_end|>", "<end_of_turn>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    async def body() -> None:
        async with AsyncEngine(str(tmp_path), client=Scripted(5)) as engine:
            expected = [7, *map(tokenizer.token_to_id, ["<|im_end|>", *ends])]
            assert engine.config.eos_token_ids == tuple(expected)

    run(body())


def test_a_special_token_as_a_stop_string_ends_the_answer(engine):
    tokenizer = engine.asynchronous.tokenizer
    token_id, name = tokenizer.eos_id, tokenizer.eos_token
    wanted = {"max_tokens": 8, "ignore_eos": True, "logit_bias": {token_id: 100.0}, "temperature": 0}
    assert engine.generate([5, 6], SamplingParams(**wanted)).finish_reason == "length"
    stopped = engine.generate([5, 6], SamplingParams(**wanted, stop=["never", name]))
    assert (stopped.finish_reason, stopped.text) == ("stop", "")


def test_templates_without_a_default_do_not_keep_a_model_from_loading(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("a", "b"):
        (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text("<tool_call>")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"no_template"'))

    async def body() -> None:
        async with AsyncEngine(str(tmp_path), client=Scripted(5)) as engine:
            assert engine.template is not None
            with pytest.raises(RequestError, match="none of them is the default"):
                await engine.render_chat(HELLO)

    run(body())


def test_long_texts_leave_the_loop_free(tiny_model, monkeypatch):
    """Alone, many in a list, or as prompts: all are encoded by a thread, in the call that lets other threads run."""
    several = ["the wind "] * (LONG_TEXT // 9 + 1)

    async def body() -> None:
        async with AsyncEngine(str(tiny_model), client=Scripted(5)) as engine:
            encode_batch, loop_turned = engine.tokenizer.encode_batch, threading.Event()
            expected = engine.tokenizer.encode("the wind ")
            loop = asyncio.get_running_loop()

            def encode(texts, add_special_tokens=True):
                loop_turned.clear()
                loop.call_soon_threadsafe(loop_turned.set)
                assert loop_turned.wait(20), "the loop stands still"
                return encode_batch(texts, add_special_tokens)

            def never(text, add_special_tokens=True):
                raise AssertionError("encode holds all threads up")

            monkeypatch.setattr(engine.tokenizer, "encode_batch", encode)
            monkeypatch.setattr(engine.tokenizer, "encode", never)
            assert len(await engine.tokenize("".join(several))) > LONG_TEXT // 9
            assert await engine.tokenize_inputs([*several, [7, 8]]) == [expected] * len(several) + [[7, 8]]
            assert [event.text async for event in engine.stream("".join(several))]
            assert (await engine.generate("".join(several))).text
            assert len(await engine.generate(several)) == len(several)
            assert engine.client.prompts[-1] == expected

    run(body())


def test_a_text_beyond_any_context_is_not_tokenised_whole(tiny_model, monkeypatch):
    async def body() -> None:
        async with AsyncEngine(str(tiny_model), client=Scripted(5)) as engine:
            context = 512
            engine.client._info = replace(engine.client.info, max_model_len=context)
            text = "the wind " * (context * MAX_CHARS_PER_TOKEN // 9 + 1)
            seen: list[str] = []
            monkeypatch.setattr(engine.tokenizer, "encode_batch", lambda texts, _: seen.extend(texts) or [[7]])
            too_long = [{"role": "user", "content": text}]
            for call in (engine.chat, engine.render_chat, lambda messages: anext(engine.stream_chat(messages))):
                with pytest.raises(ContextLengthError) as caught:
                    await call(too_long)
                assert caught.value.param == "messages"
            with pytest.raises(ContextLengthError):
                await engine.generate(text)
            assert not seen
            truncated = SamplingParams(truncate_prompt=True)
            await engine.generate("first " + text + "last", truncated)
            await engine.chat([{"role": "user", "content": text + "last"}], truncated)
            await engine.tokenize_inputs(["first " + text], "start")
            assert [len(part) for part in seen] == [context * MAX_CHARS_PER_TOKEN] * 3
            assert seen[0].endswith("last") and "last" in seen[1][-60:] and seen[2].startswith("first the")

    run(body())


def test_a_long_text_that_was_given_up_is_still_the_only_one(tiny_model, monkeypatch):
    """A thread goes on when nobody waits for it, with all the memory it takes."""

    async def body() -> None:
        async with AsyncEngine(str(tiny_model), client=Scripted(5)) as engine:
            running, most, go_on = 0, 0, threading.Event()

            def encode(texts, add_special_tokens=True):
                nonlocal running, most
                running += 1
                most = max(most, running)
                assert go_on.wait(20)
                running -= 1
                return [[7]]

            monkeypatch.setattr(engine.tokenizer, "encode_batch", encode)
            given_up = [asyncio.create_task(engine.tokenize("x" * LONG_TEXT)) for _ in range(3)]
            while not running:
                await asyncio.sleep(0.001)
            for task in given_up:
                task.cancel()
            last = asyncio.create_task(engine.tokenize("x" * LONG_TEXT))
            await asyncio.sleep(0.02)
            assert all(task.cancelled() for task in given_up) and not last.done()
            go_on.set()
            assert await last == [7] and most == 1

    run(body())


def test_a_download_leaves_the_loop_free(tiny_model, monkeypatch):
    answered = threading.Event()

    def find(*_: object) -> Path:
        assert answered.wait(20), "the loop stands still"
        return tiny_model

    monkeypatch.setattr("sirocco.runtime.async_engine.resolve_model", find)

    async def body() -> None:
        asyncio.get_running_loop().call_later(0.01, answered.set)
        async with AsyncEngine("some/model", client=Scripted(5)) as engine:
            assert (await engine.generate("the")).token_ids == [5]

    run(body())


_ENDLESS_DOWNLOAD = """
import asyncio, signal, threading
from concurrent.futures import ThreadPoolExecutor
import sirocco.runtime.async_engine as module
from sirocco.runtime.engine import Engine

def download(*_):
    with ThreadPoolExecutor(2) as pool:  # as the hub's client has one
        list(pool.map(lambda _: threading.Event().wait(), range(9)))

module.resolve_model = download

async def main():
    engine = module.AsyncEngine("some/model")
    try:
        await asyncio.wait_for(engine.start(), 0.05)
    except TimeoutError:
        await engine.close()

asyncio.run(main())

main_thread = threading.main_thread().ident
threading.Timer(0.3, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
try:
    Engine("some/model")
except KeyboardInterrupt:
    print("ended")
"""


def test_nothing_waits_for_a_download_that_was_given_up():
    ended = subprocess.run([sys.executable, "-c", _ENDLESS_DOWNLOAD], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr
