"""The demo model's training text: determinism, the split, and that it is what the shipped template renders."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sirocco.runtime.demo import (
    documents,
    families,
    lexicon,
    lore,
    natural,
    patterns,
    schemas,
    world,
    wrappers,
)
from sirocco.runtime.demo.corpus import MIXTURE, bundle, conversation, distractors
from sirocco.runtime.demo.evaluate import parse_calls, right_answer
from sirocco.runtime.demo.exchange import Conversation, Exchange
from sirocco.runtime.demo.families.family import Family
from sirocco.runtime.demo.operations import OPERATIONS
from sirocco.runtime.demo.phrasing import has_unseen, shared, worded
from sirocco.runtime.demo.programs import printed_by
from sirocco.runtime.demo.rendering import TEMPLATE, encode, prompt, render
from sirocco.runtime.demo.tools import Call, Tool, dumps
from sirocco.runtime.demo.values import Values, held_out

DEMO = TEMPLATE.parent


def talks(count: int, split: str = "train") -> list[Conversation]:
    return [conversation(f"test {i}", split, split) for i in range(count)]  # type: ignore[arg-type]


def test_a_conversation_is_a_function_of_its_seed() -> None:
    assert conversation("7", "train", "train") == conversation("7", "train", "train")
    assert conversation("7", "train", "train") != conversation("8", "train", "train")


def test_conversations_of_a_bundle_declare_the_same_and_are_due_other_calls() -> None:
    bundles = [bundle(f"test {i}", late=i % 2 == 0) for i in range(200)]
    assert bundles[3] == bundle("test 3")
    assert {len(some) for some in bundles} > {1, 2, 3, 4, 5}
    for some in bundles:
        assert len({dumps([talk.declarations(), talk.system]) for talk in some}) == 1
        declared = {tool.name for tool in some[0].tools}
        assert declared >= {call.name for talk in some for e in talk.exchanges for call in e.calls}
    assert all(len(bundle(f"test {i}", manner="pirate")) == 1 for i in range(50))


@pytest.mark.parametrize("kind", ["everyday", "generic", "pattern", "parallel", "parallel everyday"])
def test_what_is_asked_again_is_due_the_same_functions(kind: str) -> None:
    same, found = 0, 0
    for i in range(60):
        (first,) = conversation(f"again {i}", "train", "train", (kind,), turns=1).exchanges
        if first.again is None:
            continue
        second = first.again()
        found, same = found + 1, same + (second.request == first.request)
        assert second.tools == first.tools and second.again is not None
        assert {call.name for call in second.calls} == {call.name for call in first.calls}
        named = {tool.name: tool for tool in second.tools}
        for call in second.calls:
            parameters = {p.name: p for p in named[call.name].parameters}
            assert set(call.arguments) <= set(parameters)
            assert list(call.arguments) == [name for name in parameters if name in call.arguments]
            for name, value in call.arguments.items():
                assert not parameters[name].choices or value in parameters[name].choices
                said = value if isinstance(value, list) else [value]
                assert all(isinstance(v, bool) or str(v) in second.request for v in said), (value, second.request)
    assert found > 20 and same < 4


@pytest.mark.parametrize("kind", MIXTURE)
def test_every_kind_renders_with_something_to_learn(kind: str) -> None:
    pieces = render(conversation("a", "train", "train", (kind,), turns=1))
    assert any(mine and text.endswith("<|im_end|>") for text, mine in pieces)


def test_values_of_the_two_splits_are_disjoint() -> None:
    drawn = {}
    for split in ("train", "test"):
        values = Values(random.Random(3), split)  # type: ignore[arg-type]
        drawn[split] = {
            str(value).lower()
            for _ in range(1500)
            for value in (values.word(), values.name(), values.pseudo(), values.decimal(), values.integer(10))
        }
    assert not drawn["train"] & drawn["test"]
    assert all(held_out(value) for value in drawn["test"])


FRAMES = {
    **{family.names: family.frames for family in families.FAMILIES if has_unseen(family.frames)},
    **{relation.answer: relation.questions for relation in lore.RELATIONS},
    **{operation.description: operation.frames for operation in OPERATIONS},
    **{signature: [patterns.LINK + frame for frame in frames] for signature, frames in patterns.PATTERNS.items()},
    "marked": schemas.MARKED,
    "unknown": lore.UNKNOWN,
    "read": documents.LAYOUTS,
    "copy": documents.REPEATS,
    "json": documents.JSON_FRAMES,
}


@pytest.mark.parametrize("name", FRAMES)
def test_training_and_test_share_no_wording(name: str) -> None:
    train, test = Values(random.Random(5), "train"), Values(random.Random(6), "test")
    known = {worded(train, FRAMES[name]) for _ in range(60)}
    unknown = {worded(test, FRAMES[name]) for _ in range(20)}
    assert known
    assert unknown
    assert not known & unknown


def test_a_family_is_asked_for_in_the_test_only_where_it_has_a_wording_that_training_lacks() -> None:
    train, test = Values(random.Random(5), "train"), Values(random.Random(6), "test")
    drawn = {natural.families(train, "train") for _ in range(20)}
    assert drawn == {families.FAMILIES, families.FURTHER_FAMILIES}
    asked = natural.families(test, "train")
    assert not set(asked) & set(families.FURTHER_FAMILIES)
    assert len(families.FAMILIES) * 0.8 < len(asked) < len(families.FAMILIES)
    for family in asked:
        worded(test, family.frames)


MORE = {
    **{family.names: (family.frames, family.more) for family in families.FAMILIES if has_unseen(family.frames)},
    **{operation.description: (operation.frames, operation.more) for operation in OPERATIONS},
}


@pytest.mark.parametrize("name", MORE)
def test_training_asks_in_further_ways_that_are_in_no_test(name: str) -> None:
    frames, more = MORE[name]
    train, test = Values(random.Random(5), "train"), Values(random.Random(6), "test")
    known = {worded(train, frames, more) for _ in range(120)}
    assert known & set(more)
    assert not known & {worded(test, frames, more) for _ in range(60)}


def test_the_end_of_training_declines_questions_of_its_own_world_about_what_is_made_up() -> None:
    late = Values(random.Random(5), "train", late=True)
    asked = [world.unknown(late) for _ in range(200)]
    subjects = {subject for relation in lore.RELATIONS for subject, _ in relation.pairs if " " in subject}
    assert any(text.startswith("what is the opposite of ") for text in asked)
    assert not any(subject in text for text in asked for subject in subjects)


def test_what_surrounds_a_request_in_training_leaves_some_for_test() -> None:
    train, test = Values(random.Random(5), "train"), Values(random.Random(6), "test")
    known = {shared(train, wrappers.OPENERS) for _ in range(4000)}
    assert {shared(test, wrappers.OPENERS) for _ in range(400)} - known


def test_programs_are_judged_by_what_they_print() -> None:
    found = printed_by(
        ["print(2 + 3)", "print( 3+2 )", "print(sum([2, 3]))", "import os", "while True: pass", "print(open)"]
    )
    assert found == ["5\n", "5\n", "5\n", None, None, None]


def test_held_out_schemas_are_not_in_training() -> None:
    for pool, other in (
        (lexicon.NOUNS, lexicon.HELD_OUT_NOUNS),
        (lexicon.TEXT_PARAMETERS, lexicon.HELD_OUT_TEXT),
        (lexicon.NUMBER_PARAMETERS, lexicon.HELD_OUT_NUMBER),
        (schemas.VERBS, schemas.HELD_OUT_VERBS),
        (schemas.ENUM_PARAMETERS, schemas.HELD_OUT_ENUM),
    ):
        assert not set(pool) & set(other)
    every = (*families.FAMILIES, *families.FURTHER_FAMILIES)
    trained = {name for family in every for name in family.names.split("|")}
    unseen = {name for family in families.HELD_OUT_FAMILIES for name in family.names.split("|")}
    assert not trained & unseen
    (verbs, nouns), (new_verbs, new_nouns) = patterns.VOCABULARY["train"], patterns.VOCABULARY["test"]
    assert not set(new_verbs) & {*verbs, *schemas.VERBS}
    assert not set(new_nouns) & {*nouns, *lexicon.NOUNS, *lexicon.WORDS}
    declared = {tool.name for talk in talks(400) for tool in talk.tools}
    declared |= {tool.name for i in range(400) for tool in conversation(f"l{i}", "train", "train", late=True).tools}
    assert not declared & unseen
    assert not set(patterns.STAND_INS) & {*new_verbs, *new_nouns, *lexicon.HELD_OUT_NOUNS}
    assert not any(held_out(word) for word in patterns.STAND_INS)


def test_a_disguised_function_is_asked_for_by_its_new_words() -> None:
    family = Family("get_weather", "Weather for a town", "town:city", ("what is the weather in {0}", "Weather in {0}"))
    seen = set()
    for seed in range(60):
        values = Values(random.Random(seed), "train")
        declared = natural.disguised(natural.declare(family, values.rng), values, family.frames[0])
        word = declared.tool.name.removeprefix("get_")
        clause, call = natural.ask(declared, values, family.frames[0])
        assert f"the {word} in" in clause
        assert natural.renamed("Weather", declared.others) == word.capitalize()
        assert list(call.arguments) == [parameter.name for parameter in declared.tool.parameters] == ["town"]
        seen.add(word)
    assert "weather" in seen
    assert len(seen) > 10


def test_only_plain_training_text_ends_with_calls() -> None:
    assert any(talk.unanswered for talk in talks(40))
    pirates = [conversation(f"p{i}", "train", "train", manner="pirate") for i in range(40)]
    assert not any(talk.unanswered for talk in (*talks(40, "test"), *pirates))
    for talk in talks(40):
        called = bool(talk.exchanges[-1].calls)
        assert ("tool_calls" in talk.messages()[-1]) == (talk.unanswered and called)


def test_calls_fit_the_declared_functions_and_parse_back() -> None:
    for talk in talks(300):
        tools = {tool.name: tool for tool in talk.tools}
        assert len(tools) == len(talk.tools)
        said = [text.removesuffix("<|im_end|>") for text, mine in render(talk) if mine]
        expected = [turn for e in talk.exchanges for turn in ([e.calls, ()] if e.calls else [()])]
        if talk.unanswered and talk.exchanges[-1].calls:
            del expected[-1]
        for text, calls in zip(said, expected, strict=True):
            if not calls:
                assert "<tool_call>" not in text
                continue
            assert parse_calls(text, set(tools)) == list(calls)
            for call in calls:
                parameters = {p.name: p for p in tools[call.name].parameters}
                assert set(call.arguments) <= set(parameters)
                assert {p.name for p in parameters.values() if p.required} <= set(call.arguments)
                for name, value in call.arguments.items():
                    assert not parameters[name].choices or value in parameters[name].choices


def test_what_is_told_answers_what_was_asked() -> None:
    for talk in talks(300, "test"):
        for exchange in talk.exchanges:
            assert right_answer(exchange, exchange.answer)
            assert len(exchange.calls) == len(exchange.results)


def test_distractors_do_not_answer_the_request() -> None:
    wanted = Tool("get_weather", "", ())
    values = Values(random.Random(1), "train")
    names = {tool.name for _ in range(100) for tool in distractors(values, "train", [wanted], [], 4)}
    assert len(names) > 100
    assert not names & {"get_weather", "weather", "current_weather", "weather_forecast", "get_forecast_weather"}


def test_the_template_renders_as_transformers_does() -> None:
    render_jinja_template = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    template = TEMPLATE.read_text()
    for talk in talks(60):
        ours = "".join(text for text, _ in render(talk))
        theirs, spans = render_jinja_template(
            [talk.messages()], tools=talk.declarations(), chat_template=template, return_assistant_tokens_mask=True
        )
        assert ours == theirs[0]
        assert [ours[start:end] for start, end in spans[0]] == [text for text, mine in render(talk) if mine]


def test_the_template_takes_every_form_of_content_and_arguments() -> None:
    arguments = {"text": 'Zoë said "hi" & <left>', "count": 2, "tags": ["a", "b"], "deep": {"on": True}}
    call = {"type": "function", "id": "c1", "function": {"name": "note", "arguments": arguments}}
    quoted = {"type": "function", "id": "c1", "function": {"name": "note", "arguments": dumps(arguments)}}
    head = [{"role": "user", "content": [{"type": "text", "text": "Note "}, {"type": "text", "text": "it."}]}]
    tail = [{"role": "tool", "tool_call_id": "c1", "content": "ok"}]
    texts = [
        prompt([*head, {"role": "assistant", "content": content, "tool_calls": [form]}, *tail], [])
        for content in (None, "")
        for form in (call, quoted)
    ]
    assert len(set(texts)) == 1
    assert "Note it.<|im_end|>" in texts[0]
    assert (
        f'<tool_call>\n{{"name": "note", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'
        in texts[0]
    )
    assert texts[0].endswith("<|im_start|>assistant\n")


def test_a_signature_is_short_and_falls_back_to_json() -> None:
    properties = {
        "city": {"type": "string"},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "array", "items": {"type": "integer"}},
        "deep": {"type": "object", "properties": {"x": {"type": "number"}}},
        "note": {"type": ["string", "null"]},
    }
    function = {
        "name": "f",
        "description": "Does it\nslowly",
        "parameters": {"type": "object", "properties": properties, "required": ["city"]},
    }
    text = prompt(
        [{"role": "user", "content": "Hi"}],
        [{"type": "function", "function": function}, {"type": "function", "function": {"name": "g"}}],
    )
    deep = json.dumps(properties["deep"])
    signature = f'f(city: string, unit?: "c"|"f", days?: integer[], deep?: {deep}, note?: string|null)'
    assert f"\n{signature} - Does it\ng()<|im_end|>" in text


def test_calls_that_are_not_well_formed_are_not_calls() -> None:
    block = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert parse_calls(f"{block}\n{block}", {"f"}) == [Call("f", {"a": 1})] * 2
    for text in ("", "f(1)", block + " so", block[:-3], block.replace("1", "01"), block.replace('"a"', "a")):
        assert parse_calls(text, {"f"}) is None
    assert parse_calls(block, {"g"}) is None


def test_an_answer_may_not_add_numbers() -> None:
    expected = Exchange("compute", "", "The result is 42.", facts=("42",))
    assert right_answer(expected, "The result is 42.")
    assert not right_answer(expected, "The result is 142.")
    assert not right_answer(expected, "The result is 42 or 43.")


@pytest.mark.skipif(not (DEMO / "tokenizer.json").exists(), reason="the demo model has not been exported")
def test_tokens_of_the_pieces_are_tokens_of_the_whole() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    some = talks(40)
    for talk, (ids, said) in zip(some, encode(some, tokenizer), strict=True):
        whole = "".join(text for text, _ in render(talk))
        assert tokenizer.encode(whole, add_special_tokens=False).ids == ids
        assert len(said) == len(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == whole


@pytest.mark.skipif(not (DEMO / "tokenizer.json").exists(), reason="the demo model has not been exported")
@pytest.mark.parametrize("text", ["", "Zoë 😀 naïve\t\r\n", "a  b\n\n c", "日本語 テスト", "\x00\x7f", "x" * 500])
def test_the_tokenizer_spells_any_text(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(Path(DEMO / "tokenizer.json")))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
