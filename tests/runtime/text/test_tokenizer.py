import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from sirocco.runtime.errors import ModelLoadError, RequestError
from sirocco.runtime.text.tokenizer import load_tokenizer

TEXTS = [
    "",
    "a",
    "Hello world",
    "the quick brown fox jumps over",
    "tabs\tand\n\nnewlines  and   runs of    spaces",
    "trailing space ",
    "emoji 😀👩‍👩‍👧‍👦🇫🇷 and more 🎉",
    "你好,世界 こんにちは 안녕하세요",
    "combining e\u0301 n\u0303 and ﬁ ligature",
    'mixed 1234567890 [brackets] {json: "x"} <tag>',
    "zero\u200bwidth and \u00a0 nbsp",
]


def assert_same_ids(tokenizer, reference, texts):
    for text in texts:
        for special in (True, False):
            assert tokenizer.encode(text, special) == reference.encode(text, add_special_tokens=special), repr(text)


def assert_same_text(tokenizer, reference, texts):
    for text in texts:
        ids = reference.encode(text)
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip) == expected, repr(text)


def test_byte_level_equals_transformers(byte_level: Path):
    tokenizer, reference = load_tokenizer(byte_level), AutoTokenizer.from_pretrained(byte_level)
    reference.backend_tokenizer.no_truncation()
    texts = [*TEXTS, " leading", "<|im_start|>user\nhi<|im_end|>\n<tool_call> x <|endoftext|>"]
    assert_same_ids(tokenizer, reference, texts)
    assert_same_text(tokenizer, reference, texts)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.special_ids == set(reference.all_special_ids) | {tokenizer.token_id("<|im_start|>")}


def test_byte_level_named_tokens(byte_level: Path):
    tokenizer = load_tokenizer(byte_level)
    assert (tokenizer.eos_token, tokenizer.eos_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_id) == ("<|endoftext|>", 0)
    assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.unk_id) == (None, None, None)
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.token_id("<tool_call>") == tokenizer.vocab_size - 1
    assert tokenizer.token_id("no such token") is None


@pytest.mark.parametrize("kind", ["byte_level", "llama_fast", "spm"])
def test_token_bytes_join_to_the_text(kind: str, request: pytest.FixtureRequest, spm_bpe: Callable[..., Path]):
    tokenizer = load_tokenizer(spm_bpe() if kind == "spm" else request.getfixturevalue(kind))
    for text in TEXTS:
        data = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text, add_special_tokens=False))
        assert data.decode().removeprefix(" " if tokenizer.strips_first_space else "") == text
    assert tokenizer.token_bytes(tokenizer.vocab_size) == tokenizer.token_bytes(-1) == b""


def test_token_text_of_half_a_character(byte_level: Path):
    tokenizer = load_tokenizer(byte_level)
    ids = tokenizer.encode("é")
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xc3", b"\xa9"]
    assert tokenizer.token_text(ids[0]) == "\ufffd"
    assert tokenizer.token_text(tokenizer.eos_id) == "<|im_end|>"


def test_decode_passes_over_unknown_ids(byte_level: Path, spm_bpe: Callable[..., Path], word_piece: Path):
    for folder in (byte_level, spm_bpe(), word_piece):
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode("the fox", add_special_tokens=False)
        assert tokenizer.decode([-1, *ids, tokenizer.vocab_size + 5, 2**40]) == "the fox"


def test_llama_json_equals_transformers(llama_fast: Path):
    tokenizer, reference = load_tokenizer(llama_fast), AutoTokenizer.from_pretrained(llama_fast)
    assert_same_ids(tokenizer, reference, [*TEXTS, "<s>the</s> fox"])
    assert_same_text(tokenizer, reference, TEXTS)
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == 1


@pytest.mark.parametrize("legacy", [False, True, None])
def test_sentencepiece_bpe_equals_transformers(spm_bpe: Callable[..., Path], llama_reference, legacy: bool | None):
    folder = spm_bpe() if legacy is None else spm_bpe(legacy=legacy)
    tokenizer, reference = load_tokenizer(folder), llama_reference(folder, bool(legacy))
    texts = [*TEXTS, "<|user|>the fox<tool>jumps <tool>", "<s>the</s>fox", "<|user|><|user|>"]
    if not legacy:  # a legacy prefix in front of a space: transformers 5 drops it, sentencepiece (and we) do not
        texts.append("over <|user|> the")
    assert_same_ids(tokenizer, reference, texts)
    assert_same_text(tokenizer, reference, texts)
    assert tokenizer.vocab_size == len(reference) == 422
    assert {tokenizer.token_id("<|user|>"), 0, 1, 2} == tokenizer.special_ids


def test_sentencepiece_prefix_space(spm_bpe: Callable[..., Path]):
    """Each tokenizer puts a space in front of a text; only a legacy one does so behind every added token as well."""
    text = "fox<tool>fox"
    legacy, modern = load_tokenizer(spm_bpe(legacy=True)), load_tokenizer(spm_bpe(legacy=False))
    bare = load_tokenizer(spm_bpe(add_prefix_space=False))
    assert b"".join(map(legacy.token_bytes, legacy.encode(text, False))) == b" fox<tool> fox"
    assert b"".join(map(modern.token_bytes, modern.encode(text, False))) == b" fox<tool>fox"
    assert b"".join(map(bare.token_bytes, bare.encode(text, False))) == b"fox<tool>fox"
    assert modern.decode(modern.encode(" two  spaces")) == " two  spaces"


def test_sentencepiece_unigram_equals_the_library(spm_unigram: Path):
    tokenizer = load_tokenizer(spm_unigram)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_unigram / "tokenizer.model"))
    for text in TEXTS:
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == [tokenizer.bos_id, *ids]
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.encode("fox<extra>", False) == [*reference.encode("fox"), 340]
    assert tokenizer.vocab_size == 341
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_sentencepiece_bad_bytes_decode_as_the_library_does(spm_bpe: Callable[..., Path]):
    folder = spm_bpe()
    tokenizer = load_tokenizer(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    byte = {value: reference.piece_to_id(f"<0x{value:02X}>") for value in range(256)}
    fox = reference.encode("fox")
    for data in (b"\xe4\xbd", b"\xe4\xbd\xa0\xff\xc3\xa9", b"\xf0\x9f\x98", b"\x80\x80", b"\xed\xa0\x80"):
        ids = [*fox, *(byte[value] for value in data), *fox]
        assert tokenizer.decode(ids) == reference.decode(ids), data


def test_strips_around_added_tokens(spm_bpe: Callable[..., Path]):
    added = {
        "420": {"content": "<|end|>", "special": True, "rstrip": True},
        "421": {"content": "<mask>", "lstrip": True},
        "422": {"content": "xx", "single_word": True},
    }
    tokenizer = load_tokenizer(spm_bpe(added_tokens_decoder=added))
    text = "fox<|end|> \n the  <mask> dog xx axx"
    data = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special_tokens=False)))
    assert data == b" fox<|end|>the<mask> dog xx axx"
    assert tokenizer.encode(text).count(422) == 1


def test_tokenizer_config_adds_tokens_to_tokenizer_json(byte_level: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    size = load_tokenizer(tmp_path).vocab_size
    config = {
        "added_tokens_decoder": {str(size): {"content": "<think>"}, str(size + 1): {"content": "<x>", "special": True}},
        "additional_special_tokens": ["<tool_call>"],
        "pad_token": "<never seen>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<think><x>") == [size, size + 1]
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.decode([size, size + 1, tokenizer.token_id("<tool_call>")]) == "<think>"
    assert tokenizer.pad_id is None


def test_lone_surrogates_are_the_callers_fault(byte_level: Path, spm_bpe: Callable[..., Path]):
    for folder in (byte_level, spm_bpe()):
        tokenizer = load_tokenizer(folder)
        with pytest.raises(RequestError, match="surrogate"):
            tokenizer.encode("a\ud800b")
        with pytest.raises(RequestError, match="surrogate"):
            tokenizer.encode_batch(["fine", "a\ud800b"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.model", b"not a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("added_tokens.json", b'{"<x>": "1"}'),
        ("README.md", b"no tokenizer here"),
    ],
)
def test_broken_folders(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_added_tokens_of_spaces_are_spaces(llama_fast: Path, spm_bpe: Callable[..., Path], tmp_path: Path):
    """Gemma's runs of spaces are added tokens, spelled as the pieces are; a special token is what it says."""
    shutil.copytree(llama_fast, tmp_path, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([tokenizers.AddedToken("▁▁▁▁", normalized=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = [*tokenizer.encode("the", False), tokenizer.token_id("▁▁▁▁"), *tokenizer.encode("fox", False)]
    assert tokenizer.decode(ids) == backend.decode(ids) == "the     fox"
    added = {"420": {"content": "▁▁"}, "421": {"content": "<▁>", "special": True}}
    tokenizer = load_tokenizer(spm_bpe(added_tokens_decoder=added))
    assert tokenizer.decode([420, 421], skip_special_tokens=False) == "  <▁>"[1:]
