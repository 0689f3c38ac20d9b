import json
import random
from pathlib import Path

import pytest

from sirocco.runtime.text.json_scan import MAX_DEPTH, JsonError, JsonScanner
from sirocco.runtime.text.tokenizer import load_tokenizer
from sirocco.runtime.text.tools import (
    ContentDelta,
    HermesParser,
    ToolCall,
    ToolCallArguments,
    ToolCallCancelled,
    ToolCallEnd,
    ToolCallStart,
    ToolEvent,
    parse_tool_calls,
    tool_parser,
)


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


F = '{"name": "f", "arguments": {"a": 1}}'
WELL_FORMED = {
    F: '{"a": 1}',
    '{"arguments": {"a": [1, {"b": "}"}]}, "name": "f"}': '{"a": [1, {"b": "}"}]}',
    '{"name":"f","parameters":{}}': "{}",
    '{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}': '{"a": "é"}',
    '{"name": "f", "arguments": ""}': "{}",
    '{"name": "f", "arguments": null}': "{}",
    '{"name": "f"}': "{}",
    '{"id": 1.5e3, "type": "function", "name": "\\u0066", "arguments": { "a" : true }}': '{ "a" : true }',
    '{"name": "f", "arguments": {"code": "print(\'</tool_call>\\n<tool_call>\')"}}': (
        '{"code": "print(\'</tool_call>\\n<tool_call>\')"}'
    ),
}
MALFORMED = [
    "",
    "not json",
    "[]",
    "{}",
    '{"arguments": {}}',
    '{"name": ""}',
    '{"name": 5, "arguments": {}}',
    '{"name": "f", "arguments": {"a": 1}',
    '{"name": "f", "arguments": {"a": 1,}}',
    '{"name": "f", "arguments": {a: 1}}',
    '{"name": "f", "arguments": {"a": "oops}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": "[1]"}',
    '{"name": "f", "arguments": "{"}',
    '{"name": "f", "arguments": 12}',
    '{"name": "f", "arguments": {}, "arguments": {}}',
    '{"name": "f", "name": "g", "arguments": {}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "f", "arguments": {"a": 01}}',
    '{"name": "f", "arguments": {"a": "\\x"}}',
    '{"name": "f", "arguments": {}} trailing',
]


def merged(pieces: list[str]) -> list[ToolEvent]:
    """A parser's events with neighbours of one kind joined."""
    parser = HermesParser()
    events: list[ToolEvent] = []
    for event in [*(event for piece in pieces for event in parser.push(piece)), *parser.finish()]:
        last = events[-1] if events else None
        if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            events[-1] = ContentDelta(last.text + event.text)
        elif isinstance(event, ToolCallArguments) and isinstance(last, ToolCallArguments):
            events[-1] = ToolCallArguments(event.index, last.fragment + event.fragment)
        else:
            events.append(event)
    return events


@pytest.mark.parametrize("body", WELL_FORMED)
def test_well_formed(body: str):
    assert merged([call(body)]) == [ToolCallStart(0, "f"), ToolCallArguments(0, WELL_FORMED[body]), ToolCallEnd(0)]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_calls_come_back_as_content(body: str):
    text = f"before {call(body)} after"
    assert parse_tool_calls(text) == (text, [])
    assert parse_tool_calls(text + call(F)) == (text, [ToolCall("f", '{"a": 1}')])


def test_arguments_stream_as_they_come():
    parser = HermesParser()
    assert parser.push('<tool_call>\n{"name": "f", "arg') == []
    assert parser.push('uments": {"a') == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a')]
    assert parser.push('": "x') == [ToolCallArguments(0, '": "x')]
    assert parser.push('"}}\n</tool_') == [ToolCallArguments(0, '"}')]
    assert parser.push("call>") == [ToolCallEnd(0)]
    assert parser.finish() == []


def test_content_streams_but_for_what_may_be_a_tag():
    parser = HermesParser()
    assert parser.push("a <b> <tool") == [ContentDelta("a <b> ")]
    assert parser.push("box>") == [ContentDelta("<toolbox>")]
    assert parser.push("<") == []
    assert parser.finish() == [ContentDelta("<")]


def test_whitespace_around_calls_is_not_content():
    text = f"\n\n{call(F)}\n{call(F)} \n"
    assert parse_tool_calls(text) == ("", [ToolCall("f", '{"a": 1}')] * 2)
    assert parse_tool_calls(f"Let me see.\n{call(F)}\nDone. ") == ("Let me see.\n\nDone. ", [ToolCall("f", '{"a": 1}')])
    assert parse_tool_calls(" \n ") == (" \n ", [])


def test_whitespace_in_front_of_a_malformed_call_is_kept():
    broken = call("not json")
    assert parse_tool_calls(f"\n{broken}") == (f"\n{broken}", [])
    assert parse_tool_calls(f"{call(F)}\n {broken}") == (f"\n {broken}", [ToolCall("f", '{"a": 1}')])


def test_a_started_call_that_fails_is_cancelled():
    text = '<tool_call>{"name": "f", "arguments": {"a": nil}}'
    assert merged([text, call(F)]) == [
        ToolCallStart(0, "f"),
        ToolCallArguments(0, '{"a": nil'),
        ToolCallCancelled(0),
        ContentDelta(text),
        ToolCallStart(1, "f"),
        ToolCallArguments(1, '{"a": 1}'),
        ToolCallEnd(1),
    ]


def test_a_call_cut_off_by_the_end_comes_back():
    whole = call(F)
    for end in range(len("<tool_call>"), len(whole)):
        assert parse_tool_calls("x" + whole[:end]) == ("x" + whole[:end], [])


def test_a_call_inside_a_broken_one_is_found():
    broken = '<tool_call>\n{"name": "f", "argum'
    assert parse_tool_calls(broken + call(F)) == (broken, [ToolCall("f", '{"a": 1}')])


def test_many_tags_take_linear_time():
    text = '<tool_call>{"<\n' * 20_000
    assert parse_tool_calls(text) == (text, [])


def test_any_split_gives_the_same_events():
    pick = random.Random(11)
    parts = [
        *map(call, WELL_FORMED),
        *map(call, MALFORMED),
        "\n",
        " ",
        "text < <tool",
        "<tool_call>",
        "</tool_call>",
        "é😀",
    ]
    for _ in range(300):
        text = "".join(pick.choices(parts, k=pick.randint(1, 6)))
        text = text[: pick.randint(0, len(text))] if pick.random() < 0.3 else text
        whole = merged([text])
        assert merged(list(text)) == whole
        for _ in range(4):
            cuts = sorted(pick.choices(range(len(text) + 1), k=pick.randint(1, 12)))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert merged(pieces) == whole, pieces


def test_detection(byte_level: Path, word_piece: Path):
    assert tool_parser("{{ '<tool_call>' }}") is HermesParser
    assert tool_parser("{{ '<tool_call>\n<function=' + name }}") is None
    assert tool_parser("{{ messages }}") is None
    assert tool_parser(None) is None
    assert tool_parser(load_tokenizer(byte_level)) is HermesParser
    assert tool_parser(load_tokenizer(word_piece)) is None
    assert HermesParser().tags == ("<tool_call>", "</tool_call>")


def random_json(pick: random.Random, depth: int = 3) -> object:
    kind = pick.randrange(7 if depth else 5)
    if kind == 5:
        return [random_json(pick, depth - 1) for _ in range(pick.randrange(4))]
    if kind == 6:
        return {f'k"{i}\n': random_json(pick, depth - 1) for i in range(pick.randrange(4))}
    return [None, True, pick.uniform(-1e9, 1e-9), pick.randrange(-99, 99), 'é\\"\u2028\n' * pick.randrange(3)][kind]


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return False
    return True


def test_the_scanner_agrees_with_the_standard_library():
    pick = random.Random(2)
    num_bad = 0
    for _ in range(3000):
        text = list(json.dumps(random_json(pick), ensure_ascii=pick.random() < 0.5, indent=pick.choice([None, 1])))
        for _ in range(pick.randrange(3)):
            text[pick.randrange(len(text))] = pick.choice('{}[]",:\\0-.eEtn\n x')
        sample = "".join(text)
        scanner = JsonScanner()
        try:
            end = scanner.feed(sample + "\n", 0)  # a bare number ends at the character behind it
            good = scanner.done and not sample[end:].strip(" \t\n\r")
        except JsonError:
            good = False
        assert good == is_json(sample), sample
        num_bad += not good
    assert 500 < num_bad < 2500


def test_the_scanner_bounds_depth():
    JsonScanner().feed("[" * MAX_DEPTH, 0)
    with pytest.raises(JsonError):
        JsonScanner().feed("[" * (MAX_DEPTH + 1), 0)
