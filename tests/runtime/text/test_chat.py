import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sirocco.runtime.errors import ModelLoadError, RequestError, TemplateError
from sirocco.runtime.text.chat import ChatTemplate, TemplateRenderer, validate_messages
from sirocco.runtime.text.tokenizer import load_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> at a place, ° and 'quotes'",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
SYSTEM = {"role": "system", "content": "  Be brief. "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_123456789",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"place": "Zürich", "n": 1.0}'},
        }
    ],
}
CHATS = {
    "one": [{"role": "user", "content": "Hi\n"}],
    "system": [SYSTEM, {"role": "user", "content": "Grüezi <b>"}],
    "turns": [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        {"role": "assistant", "content": "e ", "reasoning": "because"},
    ],
    "tool": [
        {"role": "user", "content": "Weather?"},
        CALL,
        {"role": "tool", "tool_call_id": "call_123456789", "content": '{"t": 3}'},
    ],
    "parallel": [SYSTEM, {"role": "user", "content": "x"}, {**CALL, "tool_calls": CALL["tool_calls"] * 2}],
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    made = TemplateRenderer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(byte_level: Path):
    return AutoTokenizer.from_pretrained(byte_level, bos_token="<|endoftext|>", pad_token=None)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "qwen3", "loops"])
@pytest.mark.parametrize("chat", CHATS)
def test_renders_as_transformers_does(name: str, chat: str, renderer: TemplateRenderer, reference):
    source = (TEMPLATES / f"{name}.jinja").read_text()
    template = ChatTemplate(source, SPECIAL, renderer)
    documents = [{"title": 'A "title"', "text": "words"}]
    num_rendered = num_refused = 0
    for tools in (None, TOOLS):
        for extra in ({}, {"enable_thinking": False, "date_string": "1 May 2025", "documents": documents}):
            for prompt in (True, False):
                options = {"tools": tools, "add_generation_prompt": prompt, **extra}
                messages = validate_messages(CHATS[chat])
                try:
                    expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
                except Exception as error:  # what transformers lets through depends on the template
                    with pytest.raises(TemplateError) as caught:
                        template.render(CHATS[chat], **options)
                    assert str(error) in str(caught.value)
                    num_refused += 1
                else:
                    assert template.render(CHATS[chat], **options) == expected
                    num_rendered += 1
    refusing = {("gemma", "system"), ("gemma", "parallel"), ("gemma", "tool"), ("llama3", "parallel")}
    assert (num_rendered, num_refused) == ((0, 8) if (name, chat) in refusing else (8, 0))


def test_continues_the_final_message_as_transformers_does(renderer: TemplateRenderer, reference):
    for name in ("chatml", "llama3", "qwen3"):
        source = (TEMPLATES / f"{name}.jinja").read_text()
        messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two, "}]
        expected = reference.apply_chat_template(
            messages, chat_template=source, tokenize=False, continue_final_message=True
        )
        template = ChatTemplate(source, SPECIAL, renderer)
        assert template.render(messages, continue_final_message=True) == expected
        assert messages[-1]["content"] == "One, two, "


def test_a_template_without_the_final_message_cannot_continue_it(renderer: TemplateRenderer):
    with pytest.raises(TemplateError, match="leaves out the final message"):
        ChatTemplate("fixed", renderer=renderer).render(CHATS["one"], continue_final_message=True)


def test_variables(renderer: TemplateRenderer):
    template = ChatTemplate(
        "{{ bos_token }}{{ eos_token }}{{ mood }}{{ tools is none }}", {"bos_token": "<s>"}, renderer
    )
    assert template.render(CHATS["one"], mood="calm", tools=[]) == "<s>calmTrue"
    assert template.render(CHATS["one"], bos_token="own") == "ownTrue"
    with pytest.raises(RequestError) as caught:
        template.render(CHATS["one"], messages=[])
    assert caught.value.param == "messages"


def test_strftime_now(renderer: TemplateRenderer):
    before = datetime.now()
    shown = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}", renderer=renderer).render(CHATS["one"])
    assert before.replace(microsecond=0) <= datetime.strptime(shown, "%Y-%m-%d %H:%M:%S") <= datetime.now()


def test_developer_is_system_unless_the_template_knows_it(renderer: TemplateRenderer):
    messages = [{"role": "developer", "content": "x"}]
    show = "{{ messages[0].role }}"
    assert ChatTemplate(show, renderer=renderer).render(messages) == "system"
    assert ChatTemplate(show + "{# developer #}", renderer=renderer).render(messages) == "developer"


def test_arender_leaves_the_loop_free(renderer: TemplateRenderer):
    # Long enough that a loop which is free turns many times meanwhile, on a busy machine too.
    template = ChatTemplate("{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}", renderer=renderer)

    async def main() -> None:
        renders = asyncio.gather(*(template.arender([{"role": "user", "content": str(i)}]) for i in range(20)))
        num_turns = 0
        while not renders.done():
            await asyncio.sleep(0)
            num_turns += 1
        assert await renders == [str(i) for i in range(20)]
        assert num_turns > 20

    asyncio.run(main())


def test_checking_the_messages_leaves_the_loop_free(renderer: TemplateRenderer):
    loop_turned = threading.Event()

    class ManyMessages(list):
        def __iter__(self):
            assert loop_turned.wait(20), "the loop stands still"
            return super().__iter__()

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.01, loop_turned.set)
        template = ChatTemplate("{{ messages[0].content }}", renderer=renderer)
        assert await template.arender(ManyMessages(CHATS["one"])) == "Hi\n"
        with pytest.raises(RequestError, match="must not be empty"):
            await template.arender([])

    asyncio.run(main())


def test_numbers_of_calls_and_schemas_may_be_large(renderer: TemplateRenderer):
    function = {"name": "f", "arguments": f'{{"n": {2**70}}}'}
    messages = [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]
    show = "{{ messages[0].tool_calls[0].function.arguments.n }} {{ tools[0] | tojson }}"
    tools = [{"maximum": 2**64, "multipleOf": 0.1}]
    shown = ChatTemplate(show, renderer=renderer).render(messages, tools=tools)
    assert shown == f'{2**70} {{"maximum": {2**64}, "multipleOf": 0.1}}'


def test_load_prefers_the_jinja_file(tmp_path: Path, byte_level: Path, renderer: TemplateRenderer):
    assert ChatTemplate.load(tmp_path) is None
    write = lambda name, value: (tmp_path / name).write_text(value)  # noqa: E731
    write("chat_template.json", json.dumps({"chat_template": "json"}))
    assert ChatTemplate.load(tmp_path).text() == "json"
    write("tokenizer_config.json", json.dumps({"chat_template": "config", "bos_token": {"content": "<s>"}}))
    assert ChatTemplate.load(tmp_path).text() == "config"
    write("chat_template.jinja", "{{ bos_token }}{{ eos_token }}")
    assert ChatTemplate.load(tmp_path, renderer=renderer).render(CHATS["one"]) == "<s>"
    tokenizer = load_tokenizer(byte_level)
    assert ChatTemplate.load(tmp_path, tokenizer, renderer).render(CHATS["one"]) == "<|im_end|>"
    assert ChatTemplate.load(tmp_path, template="own").text() == "own"


def test_named_templates(tmp_path: Path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path)
    assert (template.text(), template.text(with_tools=True), template.source) == ("plain", "tools", "tools")
    assert ChatTemplate({"rag": "only"}).text(with_tools=True) == "only"
    with pytest.raises(TemplateError):
        ChatTemplate({"rag": "a", "tool_use": "b"}).text()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("newer")
    (tmp_path / "chat_template.jinja").write_text("plain")
    assert ChatTemplate.load(tmp_path).source == "newer"


@pytest.mark.parametrize("value", [5, [1], [{"name": "default"}], {"default": 3}])
def test_broken_template_files(tmp_path: Path, value: object):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ModelLoadError):
        ChatTemplate.load(tmp_path)


DEEPSEEK = """{% for m in messages -%}
{% if m.role == 'user' %}<U>{{ m.content }}{% endif -%}
{% if m.role == 'assistant' %}<A>{% if m.content is none -%}
{% for c in m.tool_calls %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor -%}
{% else %}{{ m.content }}{% endif %}<end>{% endif -%}
{% if m.role == 'tool' %}<out>{{ m.content }}{% endif -%}
{% endfor %}"""


@pytest.mark.parametrize("content", [None, ""])
def test_templates_that_show_calls_beside_null_and_as_text_alone(content: str | None, renderer: TemplateRenderer):
    template = ChatTemplate(DEEPSEEK, renderer=renderer)
    called = {**CALL, "content": content}
    messages = [CHATS["one"][0], called, {"role": "tool", "tool_call_id": "call_123456789", "content": "sun"}]
    call = 'weather {"place": "Zürich", "n": 1.0}'
    assert template.render(messages) == f"<U>Hi\n<A>{call}<end><out>sun"
    given = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {"a": "é"}}}
    assert 'now {"a": "é"}' in template.render([messages[0], {**called, "tool_calls": [given]}])


def test_a_template_that_takes_arguments_as_text(renderer: TemplateRenderer):
    source = "{% for m in messages %}{{ m.content + '|' }}{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + "
    template = ChatTemplate(source + "c.function.arguments }}{% endfor %}{% endfor %}", renderer=renderer)
    assert template.render([CHATS["one"][0], CALL]) == 'Hi\n||weather {"place": "Zürich", "n": 1.0}'


def test_reasoning_goes_by_the_names_that_templates_read(renderer: TemplateRenderer):
    template = ChatTemplate("{{ messages[1].thinking }}|{{ messages[1].reasoning_content }}", renderer=renderer)
    for name in ("reasoning", "reasoning_content", "thinking"):
        answer = {"role": "assistant", "content": "x", name: "why"}
        assert template.render([CHATS["one"][0], answer]) == "why|why"
