import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sirocco.runtime.text.detokenize import Detokenizer, StopChecker
from sirocco.runtime.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "the quick brown fox jumps",
    " two leading  spaces",
    "emoji 😀👩‍👩‍👧‍👦🇫🇷 and more 🎉",
    "你好,世界 안녕하세요",
    "combining e\u0301 n\u0303\n\n\ttabs",
    "<|im_start|>user the<|im_end|>",
]


def splits(items: list[int], pick: random.Random) -> Iterator[list[int]]:
    at = 0
    while at < len(items):
        size = pick.choice([0, 1, 1, 1, 2, 3, 8])
        yield items[at : at + size]
        at += size


def streamed(tokenizer: Tokenizer, pieces: list[list[int]], skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip)
    return [*map(detokenizer.push, pieces), detokenizer.finish()]


@pytest.fixture(params=["byte_level", "llama_fast", "spm_bpe", "spm_unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder = request.getfixturevalue(request.param)
    return load_tokenizer(folder if isinstance(folder, Path) else folder())


@pytest.mark.parametrize("skip", [True, False])
def test_any_split_equals_decoding_the_whole(tokenizer: Tokenizer, skip: bool):
    pick = random.Random(1)
    samples = [tokenizer.encode(text) for text in TEXTS]
    samples += [[pick.randrange(tokenizer.vocab_size + 3) for _ in range(60)] for _ in range(40)]  # mostly bad UTF-8
    for ids in samples:
        whole = tokenizer.decode(ids, skip)
        for _ in range(8):
            assert "".join(streamed(tokenizer, list(splits(ids, pick)), skip)) == whole


def test_no_half_characters(tokenizer: Tokenizer):
    for text in TEXTS:
        pieces = streamed(tokenizer, [[i] for i in tokenizer.encode(text, add_special_tokens=False)], skip=False)
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_whole(byte_level: Path):
    tokenizer = load_tokenizer(byte_level)
    assert streamed(tokenizer, [[i] for i in tokenizer.encode("é!")]) == ["", "é", "!", ""]
    assert streamed(tokenizer, [tokenizer.encode("😀")[:2]]) == ["", "\ufffd"]


def test_a_first_space_is_kept_when_the_text_continues(spm_bpe: Callable[..., Path]):
    tokenizer = load_tokenizer(spm_bpe())
    ids = tokenizer.encode("fox", add_special_tokens=False)
    assert streamed(tokenizer, [ids]) == ["fox", ""]
    assert Detokenizer(tokenizer, continues=True).push(ids) == " fox"


def test_word_pieces(word_piece: Path):
    tokenizer = load_tokenizer(word_piece)
    assert tokenizer.byte_errors is None
    ids = [*tokenizer.encode("the quickest foxes jumped"), tokenizer.token_id("[SEP]"), *tokenizer.encode("over dogs")]
    pick = random.Random(3)
    for skip in (True, False):
        for _ in range(10):
            assert "".join(streamed(tokenizer, list(splits(ids, pick)), skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", ["byte_level", "spm_bpe", "word_piece"])
def test_a_special_token_that_a_parser_looks_for_is_shown(kind: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(kind)
    tokenizer = load_tokenizer(folder if isinstance(folder, Path) else folder())
    tag = {"byte_level": "<|im_start|>", "spm_bpe": "<|user|>", "word_piece": "[SEP]"}[kind]
    other = {"byte_level": "<|im_end|>", "spm_bpe": "</s>", "word_piece": "[UNK]"}[kind]
    fox = tokenizer.encode("fox", add_special_tokens=False)
    ids = [*fox, tokenizer.token_id(tag), *fox, tokenizer.token_id(other)]
    assert tag not in tokenizer.decode(ids)
    tokenizer.show([tag, "<no such token>"])
    text = tokenizer.decode(ids)
    assert text.count(tag) == 1 and other not in text and other in tokenizer.decode(ids, skip_special_tokens=False)
    assert "".join(streamed(tokenizer, [[i] for i in ids])) == text
    assert tokenizer.token_id(tag) in tokenizer.special_ids


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    found = [(at, len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)[0]], min(found)[2]) if found else (text, None)


def checked(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    checker = StopChecker(stops)
    shown = ""
    for piece in pieces:
        text, stopped = checker.push(piece)
        shown += text
        if stopped:
            assert checker.push("more") == ("", True)
            return shown + checker.finish(), checker.matched
    return shown + checker.finish(), checker.matched


def test_stops_do_not_depend_on_the_split():
    pick = random.Random(5)
    for _ in range(3000):
        stops = ["".join(pick.choices("ab", k=pick.randint(1, 4))) for _ in range(pick.randint(0, 3))]
        text = "".join(pick.choices("abc", k=pick.randint(0, 14)))
        cuts = sorted(pick.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert checked(stops, pieces) == first_stop(text, stops), (stops, pieces)


def test_only_what_may_become_a_stop_is_held_back():
    checker = StopChecker(["</s>", "STOP"])
    assert checker.push("fine < ") == ("fine < ", False)
    assert checker.push("a<") == ("a", False)
    assert checker.push("/s") == ("", False)
    assert checker.push("x ST") == ("</sx ", False)
    assert checker.push("OP and more") == ("", True)
    assert checker.matched == "STOP"


def test_finish_gives_back_what_never_became_a_stop():
    checker = StopChecker(["STOP"])
    assert checker.push("ST") == ("", False)
    assert (checker.finish(), checker.matched) == ("ST", None)


def test_a_stop_inside_one_that_never_completes():
    checker = StopChecker(["abcd", "bc"])
    assert checker.push("abc") == ("", False)
    assert (checker.finish(), checker.matched) == ("a", "bc")
