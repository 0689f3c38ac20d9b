"""An embedding model behind the engine and the HTTP route, and what both refuse."""

import asyncio
import base64
import json
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.testing import assert_close
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sirocco import AsyncEngine, ContextLengthError, Engine, RequestError
from sirocco.api.app import create_app
from sirocco.runtime.build import build_engine
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.process_client import ProcessClient
from sirocco.runtime.wire import EmbedRequest, EngineOptions

TEXTS = ["the wind from the south", "sand", "warm rain and the wind", "the wind from the south"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", sep_token="[SEP]", cls_token="[CLS]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder)) as engine:
        yield engine


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompts": {"a": "sand ", "b": "x"}, "default_prompt_name": "a"}, "sand "),
        ({"prompts": {"a": "sand "}, "default_prompt_name": None}, ""),
        ({"prompts": {"a": "sand "}}, ""),
    ],
    ids=["named", "null", "unnamed"],
)
def test_texts_are_embedded_behind_the_prompt_of_their_model(engine, folder, tmp_path, settings, said):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with Engine(str(tmp_path)) as other:
        found, expected = other.embed(TEXTS), engine.embed([said + text for text in TEXTS])
        assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-6)
        ids = [[5, 6]]  # are taken as they are
        assert_close(torch.tensor(other.embed(ids)), torch.tensor(engine.embed(ids)), rtol=0, atol=1e-6)


def test_an_engine_process_makes_the_same_vectors(engine, folder):
    async def main() -> list[list[float]]:
        client = ProcessClient(EngineOptions(model=str(folder)))
        async with AsyncEngine(str(folder), client=client) as other:
            return await other.embed(TEXTS)

    assert_close(torch.tensor(asyncio.run(main())), torch.tensor(engine.embed(TEXTS)), rtol=0, atol=1e-6)


def test_a_model_that_knows_no_capitals(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    cased = json.loads((folder / "tokenizer.json").read_text())
    cased["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(cased))
    with Engine(str(tmp_path)) as other:
        assert other.embed("Sand") != pytest.approx(other.embed("sand"), abs=1e-6)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with Engine(str(tmp_path)) as other:
        assert other.embed("Sand") == pytest.approx(other.embed("sand"), abs=1e-6)


@pytest.mark.parametrize("prompts", [{}, {"prompts": {"a": "x"}}])
def test_a_prompt_that_a_model_does_not_have(folder, tmp_path, prompts):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    named = {"default_prompt_name": "query"} | prompts
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(named))
    with pytest.raises(ModelLoadError, match="default_prompt_name 'query' is none of the prompts"):
        Engine(str(tmp_path))


def test_vectors_equal_transformers(engine, folder):
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    vectors = engine.embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([engine.asynchronous.tokenizer.encode(text)])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        assert torch.tensor(vector) == pytest.approx(mean, abs=1e-5)
    assert engine.embed(TEXTS[0]) == pytest.approx(vectors[0], abs=1e-6)  # alone and among others
    assert vectors[0] == pytest.approx(vectors[3], abs=1e-6)


def test_bad_requests(engine):
    with pytest.raises(ContextLengthError):
        engine.embed("wind " * 100)
    assert len(engine.embed("wind " * 100, truncate=True)) == 32
    with pytest.raises(RequestError, match="empty"):
        engine.embed([[]])
    with pytest.raises(RequestError, match="dimensions"):
        engine.embed("wind", dimensions=16)
    with pytest.raises(RequestError, match="no text"):
        engine.generate("wind")


def test_a_context_that_was_asked_for_bounds_what_is_taken(folder):
    core, info = build_engine(EngineOptions(model=str(folder), max_model_len=8))
    assert info.max_model_len == 8
    core.apply(EmbedRequest(1, [[4] * 8]))
    core.apply(EmbedRequest(2, [[4] * 9]))
    _, outputs = core.advance()
    good, bad = outputs.embedded
    assert len(good.vectors) == 1
    assert bad.code == "context_length_exceeded"
    assert "at most 8" in (bad.error or "")


def test_one_bad_request_does_not_harm_those_beside_it(engine):
    async def body() -> list[object]:
        inner = engine.asynchronous
        good = [inner.embed(text) for text in TEXTS]
        return await asyncio.gather(*good, inner.embed([[10**6]]), return_exceptions=True)

    *vectors, error = asyncio.run_coroutine_threadsafe(body(), engine._loop).result(20)
    assert isinstance(error, RequestError)
    assert all(len(vector) == 32 for vector in vectors)


def test_the_route(engine):
    async def body() -> None:
        transport = httpx.ASGITransport(create_app(engine.asynchronous))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answer = (await http.post("/v1/embeddings", json={"input": TEXTS})).json()
            assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
            assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
            packed = (await http.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"})).json()
            floats = array("f", base64.b64decode(packed["data"][1]["embedding"])).tolist()
            assert floats == pytest.approx(answer["data"][1]["embedding"], abs=1e-6)
            for bad in ({"input": []}, {"input": ["a", 3]}, {"input": "a", "dimensions": 0}, {"input": [[]]}, {}):
                assert (await http.post("/v1/embeddings", json=bad)).status_code == 400, bad
            generating = {"messages": [{"role": "user", "content": "Hi"}]}
            assert (await http.post("/v1/chat/completions", json=generating)).status_code == 400

    asyncio.run_coroutine_threadsafe(body(), engine._loop).result(20)
