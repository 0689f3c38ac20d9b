"""`/v1/chat/completions` against a scripted engine."""

import json
import threading

import pytest

from sirocco.api.app import create_app
from sirocco.api.http import LARGE_BODY
from sirocco.api.routes import chat as chat_route
from sirocco.runtime.errors import (
    ContextLengthError,
    EngineDiedError,
    EngineUnavailableError,
    GenerationError,
    OverloadedError,
)

from .harness import CHAT, HELLO, TOOL, FakeEngine, ask, call, open_request, scenario

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def chat(engine=None, **fields):
    return ask(CHAT, {"messages": HELLO, **fields}, engine=engine)


def test_whole_answer():
    engine = FakeEngine("Hel", "lo")
    reply = chat(engine).json
    assert reply["object"] == "chat.completion" and reply["model"] == "fake"
    assert reply["id"].startswith("chatcmpl-") and reply["created"] > 0 and reply["system_fingerprint"]
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    prompt = len(json.dumps(HELLO))
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 5,
        "total_tokens": prompt + 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert engine.streams[0].cancelled.is_set()


def test_stream_has_role_once_and_no_usage_unless_asked():
    events = chat(stream=True).events
    assert events[-1] == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [{"role": "assistant", "content": "Hel"}, {"content": "lo"}]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, "stop"]
    assert all("usage" not in event for event in events[:-1])
    assert len({event["id"] for event in events[:-1]}) == 1


def test_stream_usage_chunk():
    events = chat(stream=True, stream_options={"include_usage": True}).events
    *chunks, last, done = events
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 5


def test_several_choices():
    reply = chat(n=3).json
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    events = chat(n=2, stream=True).events[:-1]
    texts = {0: "", 1: ""}
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "Hello", 1: "Hello"}
    assert sum("role" in event["choices"][0]["delta"] for event in events) == 2


def test_sampling_fields_reach_the_engine():
    engine = FakeEngine()
    chat(
        engine,
        model="default",
        max_tokens=9,
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=5,
        stop="x",
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"7": -100},
        ignore_eos=True,
        truncate_sequence=True,
        priority=2,
        cache_salt="s",
        logprobs=True,
        top_logprobs=2,
        user="ignored",
        unknown={"deep": [1]},
    )
    params = engine.streams[0].params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (7, 0, 0.5, 3, 0.1)
    assert (params.seed, params.stop, params.logit_bias, params.logprobs) == (5, "x", {7: -100}, 2)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.5)
    assert (params.ignore_eos, params.truncate_prompt, params.priority, params.cache_salt) == (True, True, 2, "s")


def test_null_is_the_default():
    engine = FakeEngine()
    names = ["n", "stop", "seed", "tools", "tool_choice", "stream", "stream_options", "max_tokens", "temperature"]
    assert chat(engine, **dict.fromkeys([*names, "logit_bias", "response_format", "model", "logprobs"])).status == 200
    assert engine.streams[0].params.n == 1


def test_logprobs():
    (choice,) = chat(FakeEngine("é"), logprobs=True, top_logprobs=1).json["choices"]
    assert choice["logprobs"]["content"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
        }
    ]
    events = chat(FakeEngine("ab", "c"), logprobs=True, stream=True).events[:-1]
    tokens = [entry["token"] for event in events for entry in event["choices"][0]["logprobs"]["content"]]
    assert tokens == ["a", "b", "c"]


def test_messages_reach_the_template():
    engine = FakeEngine()
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
    ]
    ask(CHAT, {"messages": messages, "reasoning_effort": "Low", "chat_template_kwargs": {"x": 1}}, engine=engine)
    (seen, tools, kwargs) = engine.rendered[0]
    assert seen[0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert seen[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert seen[2] == {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"}
    assert tools is None and kwargs == {
        "x": 1,
        "enable_thinking": True,
        "reasoning_effort": "low",
        "reasoning_strength": "low",
    }
    ask(CHAT, {"messages": messages, "reasoning_effort": " MAX"}, engine=engine)
    assert engine.rendered[1][2]["reasoning_effort"] == "xhigh"


def test_tool_call_whole():
    engine = FakeEngine("Sure. ", CALL)
    (choice,) = chat(engine, tools=[TOOL]).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_") and call["type"] == "function"
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    assert choice["message"]["content"].strip() == "Sure."
    assert engine.rendered[0][1] == [TOOL]


def test_tool_call_without_text_has_null_content():
    (choice,) = chat(FakeEngine(CALL), tools=[TOOL]).json["choices"]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tool_calls_streamed(size):
    text = CALL + "\n" + CALL.replace("add", "sub")
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    events = chat(FakeEngine(*pieces), tools=[TOOL], stream=True).events[:-1]
    calls = {}
    for event in events:
        for piece in event["choices"][0]["delta"].get("tool_calls", []):
            call = calls.setdefault(piece["index"], {"ids": [], "names": [], "arguments": ""})
            call["arguments"] += piece["function"]["arguments"]
            call["ids"] += [piece["id"]] if "id" in piece else []
            call["names"] += [piece["function"]["name"]] if "name" in piece["function"] else []
    assert [call["names"] for call in calls.values()] == [["add"], ["sub"]]
    assert all(len(call["ids"]) == 1 and json.loads(call["arguments"]) == {"a": 1, "b": 2} for call in calls.values())
    assert calls[0]["ids"] != calls[1]["ids"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events).strip() == ""


def test_one_call_when_parallel_calls_are_off():
    text = CALL + "\n" + CALL.replace("add", "sub")
    whole = chat(FakeEngine(text), tools=[TOOL], parallel_tool_calls=False).json
    assert [call["function"]["name"] for call in whole["choices"][0]["message"]["tool_calls"]] == ["add"]
    events = chat(FakeEngine(text), tools=[TOOL], parallel_tool_calls=False, stream=True).events[:-1]
    pieces = [p for event in events for p in event["choices"][0]["delta"].get("tool_calls", [])]
    assert {piece["index"] for piece in pieces} == {0}


BAD_CALL = '<tool_call>{"name": "add", "arguments": {"a": oops}}</tool_call>'


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_one_call_is_the_first_well_formed_one(size):
    text = BAD_CALL + CALL
    fields = {"tools": [TOOL], "parallel_tool_calls": False}
    message = chat(FakeEngine(text), **fields).json["choices"][0]["message"]
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"a": 1, "b": 2}]
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    events = chat(FakeEngine(*pieces), stream=True, **fields).events[:-1]
    arguments = {}
    for event in events:
        for piece in event["choices"][0]["delta"].get("tool_calls", []):
            arguments[piece["index"]] = arguments.get(piece["index"], "") + piece["function"]["arguments"]
    assert json.loads(arguments[1]) == {"a": 1, "b": 2}  # 0 was announced and proved malformed
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert content == message["content"] == BAD_CALL


@pytest.mark.parametrize("second", [CALL[:-14], CALL[:12], BAD_CALL], ids=["cut", "cut early", "malformed"])
def test_nothing_is_shown_of_a_call_after_the_only_one(second):
    fields = {"tools": [TOOL], "parallel_tool_calls": False}
    message = chat(FakeEngine(CALL, second, finish_reason="length"), **fields).json["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1 and message["content"] is None
    events = chat(FakeEngine(CALL, second, finish_reason="length"), stream=True, **fields).events[:-1]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == ""
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_no_tools_means_text():
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        engine = FakeEngine(CALL)
        (choice,) = chat(engine, **fields).json["choices"]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
        assert engine.rendered[0][1] is None


def test_an_earlier_refusal_is_read_as_what_was_said():
    engine = FakeEngine("Hi")
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert chat(engine, messages=[*HELLO, refusal, *HELLO]).status == 200
    assert engine.rendered[0][0][1]["content"] == [{"type": "text", "text": "No."}]


def test_cut_off_call_stays_length():
    engine = FakeEngine(CALL, "<tool_call>", finish_reason="length")
    assert chat(engine, tools=[TOOL]).json["choices"][0]["finish_reason"] == "length"
    engine = FakeEngine(CALL, "<tool_call>", finish_reason="length")
    assert chat(engine, tools=[TOOL], stream=True).events[-2]["choices"][0]["finish_reason"] == "length"


BAD = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": HELLO * 16385}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "messages[0].content[0].refusal"),
    ({"messages": [{"content": "x"}]}, "messages[0]"),
    ({"n": 0}, "n"),
    ({"n": 1000000}, "n"),
    ({"n": True}, "n"),
    ({"n": 10**30}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 1000}}, "logit_bias"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 50}, "stop"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"enable_thinking": True, "reasoning_effort": "none"}, "reasoning_effort"),
    ({"reasoning_effort": "banana"}, "reasoning_effort"),
    ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
    ({"adapter": "pirate"}, "adapter"),
]


@pytest.mark.parametrize("fields, param", BAD, ids=lambda value: str(value)[:60])
def test_bad_fields_are_refused(fields, param):
    engine = FakeEngine()
    reply = chat(engine, **fields)
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error" and reply.error["message"]
    assert (reply.error["param"] or "").startswith(param)
    assert engine.streams == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none(value):
    body = b'{"messages": [{"role": "user", "content": "x"}], "temperature": %s}' % value.encode()
    assert ask(CHAT, body, method="POST").status == 400


def test_unknown_model():
    reply = chat(model="gpt-9")
    assert reply.status == 404 and reply.error["code"] == "model_not_found" and reply.error["param"] == "model"


ERRORS = [
    (ContextLengthError("too long", "messages"), 400, "context_length_exceeded", None),
    (OverloadedError("full", retry_after=2.5), 429, "overloaded", b"3"),
    (EngineUnavailableError("starting"), 503, "engine_unavailable", b"1"),
    (EngineDiedError("died"), 503, "engine_unavailable", b"1"),
    (GenerationError("broken"), 500, "generation_failed", None),
    (ZeroDivisionError("/secret/path"), 500, "internal_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error, status, code, retry", ERRORS, ids=str)
def test_errors_on_submit_and_before_the_first_token(error, status, code, retry, stream):
    at_submit, later = FakeEngine(), FakeEngine()
    at_submit.submit_error = error
    later.failure = error
    for engine in (at_submit, later):
        reply = chat(engine, stream=stream)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert reply.headers.get(b"retry-after") == retry
        assert b"secret" not in reply.body and b"Traceback" not in reply.body
    assert later.streams[0].cancelled.is_set()


def test_error_in_mid_stream_is_an_event():
    engine = FakeEngine("Hel", "lo")
    engine.failure, engine.failure_after = EngineDiedError("the engine died"), 1
    reply = chat(engine, stream=True)
    assert reply.status == 200
    first, error, done = reply.events
    assert first["choices"][0]["delta"]["content"] == "Hel" and done == "[DONE]"
    assert error["error"]["message"] == "the engine died" and error["error"]["type"] == "server_error"
    assert engine.streams[0].cancelled.is_set()


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m" * 100_000},
        {"response_format": {"type": "r" * 100_000}},
        {"messages": [{"role": "r" * 100_000, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "t" * 100_000}]}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_named_in_an_error_is_cut(fields):
    reply = chat(**fields)
    assert reply.status in (400, 404) and len(reply.body) < 2000


def test_a_large_conversation_is_put_together_off_the_event_loop(monkeypatch):
    turned = threading.Event()
    prepare = chat_route._message

    def slow(*arguments):
        assert turned.wait(10)  # only a loop that still turns sets it
        return prepare(*arguments)

    monkeypatch.setattr(chat_route, "_message", slow)

    async def main():
        app = create_app(FakeEngine())
        large = open_request(app, CHAT, {"messages": [{"role": "user", "content": "x" * LARGE_BODY}]})
        assert (await call(app, "/health")).status == 200
        turned.set()
        assert (await large.response()).status == 200

    scenario(main)


def test_engine_not_ready():
    engine = FakeEngine()
    engine.client.state, engine.client.state_reason = "restarting", "it died"
    reply = chat(engine)
    assert reply.status == 503 and reply.error["message"] == "it died" and b"retry-after" in reply.headers
