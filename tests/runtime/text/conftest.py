"""Tokenizers trained on the spot and saved as model folders, as people publish them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

SENTENCE = "the quick brown fox jumps over a lazy dog and then it sleeps in the warm sun near an old river bank"


def corpus() -> list[str]:
    """Sentences of common words, the same every time."""
    pick, words = random.Random(7), SENTENCE.split()
    return [" ".join(pick.choices(words, k=pick.randint(3, 12))).capitalize() + "." for _ in range(400)]


def write_json(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE in the style of Qwen: special tokens, and added ones that are not special."""
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<tool_call>", normalized=False)])
    tokenizer.enable_truncation(5)  # as some published files have it
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
            "model_max_length": 10**30,
        },
    )
    return folder


def make_reference(folder: Path, legacy: bool) -> LlamaTokenizer:
    """transformers' Llama tokenizer over a sentencepiece model (its own reader of such files needs protobuf)."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(model.get_piece_size())}
    reference = LlamaTokenizer(vocab=pieces, merges=generate_merges(pieces, scores), legacy=legacy, add_bos_token=True)
    for added in json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].values():
        reference.add_tokens([tokenizers.AddedToken(**added)])
    return reference


@pytest.fixture(scope="session")
def llama_reference() -> Callable[[Path, bool], LlamaTokenizer]:
    return make_reference


@pytest.fixture(scope="session")
def llama_fast(tmp_path_factory: pytest.TempPathFactory, spm_bpe: Callable[..., Path]) -> Path:
    """A Llama-2 style tokenizer.json: byte fallback, a prefixed space, bos by template."""
    folder = tmp_path_factory.mktemp("llama_fast")
    make_reference(spm_bpe(), legacy=False).backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    write_json(folder, "tokenizer_config.json", config)
    return folder


def train_sentencepiece(folder: Path, model_type: str, vocab_size: int, **options: object) -> None:
    text = folder / "corpus.txt"
    text.write_text("\n".join(corpus()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        vocab_size=vocab_size,
        minloglevel=2,
        num_threads=1,
        **options,
    )


@pytest.fixture(scope="session")
def spm_bpe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders with one Llama-style sentencepiece BPE model, each with its own tokenizer_config.json."""
    base = tmp_path_factory.mktemp("spm_bpe")
    train_sentencepiece(
        base,
        "bpe",
        420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
    )

    def folder(**config: object) -> Path:
        made = tmp_path_factory.mktemp("llama")
        (made / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
        added = {
            "420": {"content": "<|user|>", "special": True, "normalized": False},
            "421": {"content": "<tool>", "special": False, "normalized": False},
        }
        defaults = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
        write_json(made, "tokenizer_config.json", defaults | config)
        return made

    return folder


@pytest.fixture(scope="session")
def spm_unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model with sentencepiece's default normalisation and byte fallback."""
    folder = tmp_path_factory.mktemp("spm_unigram")
    train_sentencepiece(folder, "unigram", 340, byte_fallback=True)
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "SomethingElse"})
    write_json(folder, "special_tokens_map.json", {"eos_token": "</s>", "bos_token": {"content": "<s>"}})
    write_json(folder, "added_tokens.json", {"<extra>": 340})
    return folder


@pytest.fixture(scope="session")
def word_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose text is not its tokens' bytes joined."""
    folder = tmp_path_factory.mktemp("word_piece")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
