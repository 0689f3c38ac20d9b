"""The demo tokenizer: common words are tokens of their own, all others are pieces that are no word."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from sirocco.runtime.demo.vocabulary import GLUE, HEADERS, MARKS, SPECIAL, roots, texts, thinned, train_tokenizer

SIZE = 1200


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(texts(300), SIZE)


def made_of_pieces(tokenizer: Tokenizer) -> set[str]:
    """The tokens that merges lead to."""
    return {left + right for left, right in json.loads(tokenizer.to_str())["model"]["merges"]}


def test_the_vocabulary_is_as_large_as_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SIZE
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert [tokenizer.token_to_id(mark) for mark in MARKS] == list(range(SIZE - len(MARKS), SIZE))


@pytest.mark.parametrize("word", ["the", "to", "please", "get"])
def test_a_common_word_is_one_token_and_no_part_of_another_word(tokenizer: Tokenizer, word: str) -> None:
    assert tokenizer.encode(word).tokens == [word]
    assert word not in made_of_pieces(tokenizer)
    for ending in ("wer", "m", "ist", "zzx"):
        assert word not in tokenizer.encode(word + ending).tokens


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("needlework").tokens
    for text in ("get needlework to", '{"city": "needlework"}', "needlework\n", "7needlework."):
        tokens = tokenizer.encode(text).tokens
        at = tokens.index(alone[0])
        assert tokens[at : at + len(alone)] == alone


@pytest.mark.parametrize("text", ["naïve Ünïcode 🎈\ttabs", "  spaces  ", "12.5%", "\x00\x7f", "日本語"])
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    for one in (tokenizer, thinned(tokenizer, "any")):
        assert one.decode(one.encode(text).ids) == text


def test_small_words_take_their_spaces_along(tokenizer: Tokenizer) -> None:
    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.encode(text).ids]

    assert pieces("set the number of 7 to 8") == ["set ", "the ", "number", " of ", "7", " to ", "8"]
    assert pieces("the_number, of") == ["the", "_", "number", ", ", "of"]
    alone = tokenizer.encode("soft").tokens  # begins and ends as small words do
    assert tokenizer.encode("a soft").tokens[1:] == alone
    assert all(tokenizer.token_to_id(word) is not None for word in GLUE)


def test_what_every_call_has_is_few_tokens(tokenizer: Tokenizer) -> None:
    call = '<tool_call>\n{"name": "x", "arguments": {"n": 7}}\n</tool_call>'
    assert len(tokenizer.encode(call).ids) == len(("open", "x", "arguments", "n", "colon", "7", "close"))
    assert tokenizer.decode(tokenizer.encode(call).ids) == call
    assert [len(tokenizer.encode(header).ids) for header in HEADERS] == [1] * 4


def test_a_form_of_a_word_has_the_word_for_its_root(tokenizer: Tokenizer) -> None:
    found, ids = roots(tokenizer), tokenizer.get_vocab()
    spoken = {token: number for token, number in ids.items() if token.strip("Ġ").isalpha()}
    assert found[ids["TheĠ"]] == found[ids["theĠ"]] == found[ids["ĠtheĠ"]] == found[ids["the"]] == ids["the"]
    assert found[ids["numbers"]] == ids["number"]
    assert all(found[root] == root for root in found)
    assert all(found[number] == number for token, number in ids.items() if token not in spoken)
    assert all(found[ids[piece]] == ids[piece] for piece in made_of_pieces(tokenizer))


def test_thinned_cuts_some_words_the_same_way_in_a_whole_text(tokenizer: Tokenizer) -> None:
    text = " ".join(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii())
    few = thinned(tokenizer, "a")
    assert few.encode(text).ids == thinned(tokenizer, "a").encode(text).ids
    assert few.encode(text).ids != thinned(tokenizer, "b").encode(text).ids
    assert len(tokenizer.encode(text).ids) < len(few.encode(text).ids) < 1.6 * len(tokenizer.encode(text).ids)
    assert few.decode(few.encode(text).ids) == text
    assert few.encode("get the").ids == tokenizer.encode("get the").ids
