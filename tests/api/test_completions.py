"""`/v1/completions` against a scripted engine."""

import pytest

from sirocco.runtime.errors import GenerationError, OverloadedError

from .harness import COMPLETIONS, ByteTokenizer, FakeEngine, ask


def complete(prompt="ab", engine=None, **fields):
    return ask(COMPLETIONS, {"prompt": prompt, **fields}, engine=engine)


@pytest.mark.parametrize(
    "prompt, ids",
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_prompt_forms(prompt, ids):
    engine = FakeEngine()
    reply = complete(prompt, engine, n=2).json
    assert [stream.prompt_token_ids for stream in engine.streams] == ids
    assert [choice["index"] for choice in reply["choices"]] == list(range(2 * len(ids)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert reply["usage"]["completion_tokens"] == 10 * len(ids)
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-")


def test_echo_with_logprobs():
    (choice,) = complete("ab", FakeEngine("c", "d"), echo=True, logprobs=1).json["choices"]
    assert choice["text"] == "abcd"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "d"],
        "token_logprobs": [None, -1.0, -0.5, -0.5],
        "top_logprobs": [None, {"b": -1.0}, {"c": -0.5}, {"d": -0.5}],
        "text_offset": [0, 1, 2, 3],
    }


def test_echo_with_logprobs_on_a_stream():
    first, second, _ = complete("ab", FakeEngine("c", "d"), echo=True, logprobs=0, stream=True).events
    assert first["choices"][0]["text"] == "abc" and second["choices"][0]["text"] == "d"
    assert first["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -0.5]
    assert second["choices"][0]["logprobs"]["text_offset"] == [3]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_without_a_completion(stream):
    """`max_tokens` 0 asks what the model thinks of the prompt alone."""
    engine = FakeEngine("c")
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = complete("ab", engine, echo=True, logprobs=1, max_tokens=0, n=2, **options)
    *choices, usage, _ = reply.events if stream else [reply.json, reply.json, None]
    choices = [choice for event in choices for choice in event["choices"]]
    assert [choice["text"] for choice in choices] == ["ab", "ab"]
    assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
    assert [choice["logprobs"]["tokens"] for choice in choices] == [["a", "b"]] * 2
    assert usage["usage"]["completion_tokens"] == 0 and usage["usage"]["prompt_tokens"] == 2
    assert engine.streams[0].params.max_tokens == 1
    assert complete("ab", max_tokens=0).status == 400


def test_echo_of_token_ids():
    assert complete([97, 98], echo=True).json["choices"][0]["text"] == "abHello"


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_count_the_text_and_not_the_names_of_tokens(stream):
    engine = FakeEngine("é", "x")
    engine.tokenizer = ByteTokenizer()
    reply = complete("aé<s>", engine, echo=True, logprobs=0, stream=stream)
    choices = [event["choices"][0] for event in reply.events[:-1]] if stream else reply.json["choices"]
    assert "".join(choice["text"] for choice in choices) == "aé<s>éx"
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    assert tokens == ["<s>", "a", "�", "�", "<", "s", ">", "�", "�", "x"]
    assert offsets == [0, 0, 1, 1, 2, 3, 4, 5, 5, 6]


def test_a_prompt_is_not_mistaken_for_the_special_token_before_it():
    engine = FakeEngine("x")
    engine.tokenizer = ByteTokenizer()
    (choice,) = complete("s", engine, echo=True, logprobs=0).json["choices"]
    assert choice["logprobs"]["tokens"] == ["<s>", "s", "x"] and choice["logprobs"]["text_offset"] == [0, 0, 1]


def test_special_tokens_given_as_ids_are_not_echoed():
    engine = FakeEngine("x")
    engine.tokenizer = ByteTokenizer()
    (choice,) = complete([256, 97, 256, 98], engine, echo=True, logprobs=0).json["choices"]
    assert choice["text"] == "abx" and choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("prompt", ["é" * 100 + "<s>", list(("é" * 100).encode())], ids=["text", "ids"])
def test_echo_of_a_truncated_prompt_is_what_was_computed(prompt):
    engine = FakeEngine("x")
    engine.tokenizer = ByteTokenizer()
    (choice,) = complete(prompt, engine, echo=True, logprobs=0, truncate_sequence=True).json["choices"]
    (stream,) = engine.streams
    assert len(stream.prompt_token_ids) == 127
    assert choice["text"] == bytes(stream.prompt_token_ids).decode(errors="replace") + "x"
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"]) - 1


def test_stream():
    events = complete("ab", stream=True, echo=True, stream_options={"include_usage": True}).events
    *chunks, last, done = events
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["total_tokens"] == 7
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["abHel", "lo"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_stream_of_several_prompts():
    events = complete(["ab", "c"], FakeEngine("x", "y", "z"), n=2, stream=True, logprobs=0).events[:-1]
    texts, offsets = {}, {}
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        offsets.setdefault(choice["index"], []).extend(choice["logprobs"]["text_offset"])
    assert texts == dict.fromkeys(range(4), "xyz")
    assert offsets == {index: [0, 1, 2] for index in range(4)}


def test_a_failing_prompt_ends_all():
    engine = FakeEngine()
    engine.failure, engine.failure_after = GenerationError("broken"), 1
    reply = complete(["a", "b"], engine, stream=True)
    assert reply.events[-1] == "[DONE]" and reply.events[-2]["error"]["message"] == "broken"
    assert all(stream.cancelled.is_set() for stream in engine.streams)
    assert complete(["a", "b"], engine).status == 500


def test_prompts_that_find_no_room_are_not_even_tokenised():
    engine = FakeEngine()
    engine.client.num_open = 15
    engine.tokenizer.encode = None
    assert complete(["a", "b"], engine).status == 429


def test_a_full_queue_cancels_the_prompts_before():
    class Full(FakeEngine):
        def submit(self, prompt, params):
            if self.streams:
                raise OverloadedError("full")
            return super().submit(prompt, params)

    engine = Full()
    assert complete(["a", "b"], engine).status == 429
    assert engine.streams[0].cancelled.is_set()


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a", [5]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),  # more than would ever fit into the queue
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
        ({"adapter": "pirate"}, "adapter"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 1000000}, "n"),
        ({"stream_options": {}}, "stream_options"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_fields_are_refused(fields, param):
    engine = FakeEngine()
    reply = complete(**{"engine": engine, **fields})
    assert reply.status == 400, reply.body
    assert (reply.error["param"] or "").startswith(param), reply.error
    assert engine.streams == []


def test_missing_prompt_names_the_field():
    reply = ask(COMPLETIONS, {"model": "fake"})
    assert reply.status == 400 and reply.error["param"] == "prompt"


def test_best_of_equal_to_n():
    assert complete(n=2, best_of=2).status == 200
