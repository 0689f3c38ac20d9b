import copy

import pytest

from sirocco.runtime.errors import RequestError
from sirocco.runtime.text.messages import validate_messages

USER = {"role": "user", "content": "x"}


def test_the_shape_templates_expect():
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}, "index": None}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning": "r"},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "assistant", "content": "done", "tool_calls": [], "extra": {"kept": True}},
    ]
    before = copy.deepcopy(messages)
    assert validate_messages(messages) == [
        {"role": "system", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}],
            "reasoning": "r",
            "reasoning_content": "r",
            "thinking": "r",
        },
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "assistant", "content": "done", "extra": {"kept": True}},
    ]
    assert messages == before
    assert validate_messages(messages, keep_developer=True)[0]["role"] == "developer"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), (None, {}), ({"a": 1}, {"a": 1}), ("[1]", "[1]"), ("{oops", "{oops"), ("[" * 9999, "[" * 9999)],
)
def test_arguments(arguments: object, expected: object):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    (message,) = validate_messages([{"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def assistant(call: object) -> dict[str, object]:
    return {"role": "assistant", "content": "", "tool_calls": call}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("hi", "messages"),
        (None, "messages"),
        ([], "messages"),
        ([USER, "hi"], "messages[1]"),
        ([{"content": "x"}], "messages[0].role"),
        ([USER, USER, {"role": "oracle", "content": "x"}], "messages[2].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
        ([{**USER, "name": 5}], "messages[0].name"),
        ([{"role": "tool", "content": "x", "tool_call_id": 5}], "messages[0].tool_call_id"),
        ([{**USER, "tool_calls": [{}]}], "messages[0].tool_calls"),
        ([assistant({})], "messages[0].tool_calls"),
        ([assistant([5])], "messages[0].tool_calls[0]"),
        ([assistant([{"type": "custom"}])], "messages[0].tool_calls[0].type"),
        ([assistant([{}])], "messages[0].tool_calls[0].function"),
        ([assistant([{"function": {"name": ""}}])], "messages[0].tool_calls[0].function.name"),
        ([assistant([{"function": {"name": "f", "arguments": 5}}])], "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_what_is_refused(messages: object, param: str):
    with pytest.raises(RequestError) as caught:
        validate_messages(messages)
    assert caught.value.param == param
