"""Embedders against transformers, with what sentence-transformers does around the model written out, in float32."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetModel,
    Phi3Config,
    Phi3Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from sirocco.runtime.embedding import load_embedder
from sirocco.runtime.errors import ContextLengthError, ModelLoadError, RequestError

from .families import SMALL, longrope, randomize

TOLERANCE = 1e-5
LENGTHS = [7, 1, 40, 23, 7, 60, 2, 23, 33]

ENCODER = {
    "vocab_size": 211,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 64,
}
DISTIL = {"vocab_size": 211, "dim": 60, "hidden_dim": 84, "n_layers": 3, "n_heads": 5, "max_position_embeddings": 64}
GEMMA = SMALL | {
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "use_bidirectional_attention": True,
}
MODELS = {
    "bert": (BertModel, BertConfig(**ENCODER)),
    "bert-masked-lm": (BertForMaskedLM, BertConfig(**ENCODER | {"hidden_act": "gelu_new", "type_vocab_size": 1})),
    "roberta": (RobertaModel, RobertaConfig(**ENCODER | {"max_position_embeddings": 66})),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ENCODER | {"max_position_embeddings": 70, "pad_token_id": 5})),
    "mpnet": (MPNetModel, MPNetConfig(**ENCODER | {"max_position_embeddings": 300})),
    "distilbert": (DistilBertModel, DistilBertConfig(**DISTIL)),
    "gemma3": (Gemma3TextModel, Gemma3TextConfig(**GEMMA)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL)),
    "qwen3-body": (Qwen3Model, Qwen3Config(**SMALL | {"tie_word_embeddings": True})),
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "llama-both-ways": (LlamaForCausalLM, LlamaConfig(**SMALL, is_causal=False)),
    "phi3-longrope": (
        Phi3Model,
        Phi3Config(**SMALL | {"head_dim": 16, "original_max_position_embeddings": 32}, rope_parameters=longrope(8)),
    ),
}


def save(name, folder, modules=()):
    """A random model, and the steps after it: (class, path, config, tensors) each. Returns the reference's body."""
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    model = randomize(model_class(config).eval())
    model.save_pretrained(folder)
    if modules:
        listed = [("Transformer", "", None, None), *modules]
        entries = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path, _, _) in enumerate(listed)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
    for _, path, step, tensors in modules:
        if step is not None:
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(step))
        if tensors is not None:
            save_file(tensors, folder / path / "model.safetensors")
    return getattr(model, model.base_model_prefix, model)


def pooling(width, *flags):
    return ("Pooling", "1_Pooling", {"word_embedding_dimension": width} | dict.fromkeys(flags, True), None)


def dense(path, size_in, size_out, activation="torch.nn.modules.linear.Identity", bias=False):
    config = {"in_features": size_in, "out_features": size_out, "bias": bias, "activation_function": activation}
    tensors = {"linear.weight": torch.randn(size_out, size_in) / size_in**0.5}
    return ("Dense", path, config, tensors | ({"linear.bias": torch.randn(size_out)} if bias else {}))


RESIDUAL = {"in_features": 60, "out_features": 20, "use_residual": True}
NORMALIZE = ("Normalize", "9_Normalize", None, None)


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(6, 211, (length,), generator=generator).tolist() for length in LENGTHS]


def states(model, sequence):
    """Hidden states [T, C] of a sequence alone."""
    with torch.no_grad():
        return model(torch.tensor([sequence])).last_hidden_state[0]


def assert_close(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_norms_by_the_names_of_the_first_checkpoints(sequences, tmp_path):
    reference = save("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in [name for name in tensors if "LayerNorm" in name]:
        head, _, ending = name.partition("LayerNorm")
        tensors[head + old["LayerNorm" + ending]] = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    assert_close(
        load_embedder(tmp_path, "float32", "cpu").embed(sequences[:1])[0], states(reference, sequences[0]).mean(0)
    )


@pytest.mark.parametrize("budget", [4096, 50])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_pooled_as_by_default(name, budget, sequences, tmp_path):
    """Averaged, or the last where attention is causal, whatever is computed together."""
    reference = save(name, tmp_path)
    embedder = replace(load_embedder(tmp_path, "float32", "cpu"), max_tokens=budget)
    causal = name in ("qwen3", "qwen3-body", "llama", "phi3-longrope")
    rows = [states(reference, sequence) for sequence in sequences]
    expected = torch.stack([row[-1] if causal else row.mean(0) for row in rows])
    assert embedder.width == expected.shape[1]
    assert_close(embedder.embed(sequences), expected)
    assert_close(embedder.embed(sequences[::-1]), expected.flip(0))  # a scratch cache is not empty any more


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "mpnet"])
def test_padding_within_a_text_is_not_counted(name, tmp_path):
    reference = save(name, tmp_path)
    pad = reference.config.pad_token_id
    texts = [[7, 8, 9, 10], [7, pad, 9, pad, pad, 8, 11], [pad, 9], [12, 13, pad]]
    expected = torch.stack([states(reference, text).mean(0) for text in texts])
    assert_close(load_embedder(tmp_path, "float32", "cpu").embed(texts), expected)


def test_distances_beyond_those_with_a_bias_of_their_own(tmp_path):
    reference = save("mpnet", tmp_path)
    sequence = torch.randint(6, 211, (290,), generator=torch.Generator().manual_seed(5)).tolist()
    assert_close(load_embedder(tmp_path, "float32", "cpu").embed([sequence])[0], states(reference, sequence).mean(0))


def test_embedding_gemma(sequences, tmp_path):
    modules = [
        pooling(96, "pooling_mode_mean_tokens"),
        dense("2_Dense", 96, 130),
        dense("3_Dense", 130, 70, "torch.nn.modules.activation.Tanh", bias=True),
        NORMALIZE,
    ]
    reference = save("gemma3", tmp_path, modules)
    first, second = modules[1][3], modules[2][3]
    pooled = torch.stack([states(reference, sequence).mean(0) for sequence in sequences])
    vectors = torch.tanh(pooled @ first["linear.weight"].T @ second["linear.weight"].T + second["linear.bias"])
    embedder = load_embedder(tmp_path, "float32", "cpu")
    assert embedder.width == 70
    assert_close(embedder.embed(sequences), F.normalize(vectors, dim=-1))
    assert_close(embedder.embed(sequences, 70), F.normalize(vectors, dim=-1))
    body = sum(parameter.numel() for parameter in reference.parameters())
    assert embedder.num_bytes == 4 * (body + 130 * 96 + 70 * 130 + 70)
    assert_close(embedder.embed(sequences, 24), F.normalize(vectors[:, :24], dim=-1))


def test_qwen3_embedding(sequences, tmp_path):
    reference = save("qwen3", tmp_path, [pooling(96, "pooling_mode_lasttoken"), NORMALIZE])
    expected = torch.stack([states(reference, sequence)[-1] for sequence in sequences])
    assert_close(load_embedder(tmp_path, "float32", "cpu").embed(sequences), F.normalize(expected, dim=-1))


POOLED = {
    "pooling_mode_cls_token": lambda x: x[0],
    "pooling_mode_max_tokens": lambda x: x.max(0).values,
    "pooling_mode_mean_tokens": lambda x: x.mean(0),
    "pooling_mode_mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "pooling_mode_weightedmean_tokens": lambda x: (
        sum((i + 1) * row for i, row in enumerate(x)) / sum(range(len(x) + 1))
    ),
    "pooling_mode_lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("flags", [[flag] for flag in POOLED] + [list(POOLED)], ids=len)
def test_pooling(flags, sequences, tmp_path):
    reference = save("bert", tmp_path, [pooling(60, *flags)])
    rows = [states(reference, sequence) for sequence in sequences]
    expected = torch.stack([torch.cat([POOLED[flag](row) for flag in flags]) for row in rows])
    assert_close(load_embedder(tmp_path, "float32", "cpu").embed(sequences), expected)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 64),
        ({"tokenizer_config.json": {"model_max_length": 40}}, 40),
        ({"tokenizer_config.json": {"model_max_length": 1000000000000000019884624838656}}, 64),
        ({"tokenizer_config.json": {"model_max_length": 40}, "sentence_bert_config.json": {"max_seq_length": 50}}, 50),
        (
            {"tokenizer_config.json": {"model_max_length": 40}, "sentence_bert_config.json": {"max_seq_length": None}},
            40,
        ),
        ({"sentence_xlm-roberta_config.json": {"max_seq_length": 30}}, 30),
    ],
    ids=["nowhere", "tokenizer", "unlimited", "both", "null", "old name"],
)
def test_the_length_that_a_model_was_trained_for(files, wanted, tmp_path):
    save("bert", tmp_path, [pooling(60, "pooling_mode_mean_tokens")])
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert load_embedder(tmp_path, "float32", "cpu").max_len == wanted


def test_a_dense_step_that_adds_its_input(sequences, tmp_path):
    kind, path, config, tensors = dense("2_Dense", 60, 60, "torch.nn.modules.activation.Tanh")
    save("bert", tmp_path, [pooling(60, "pooling_mode_mean_tokens"), (kind, path, config, tensors)])
    plain = load_embedder(tmp_path, "float32", "cpu")
    (tmp_path / path / "config.json").write_text(json.dumps(config | {"use_residual": True}))
    residual = load_embedder(tmp_path, "float32", "cpu")
    (tmp_path / "modules.json").unlink()
    means = load_embedder(tmp_path, "float32", "cpu").embed(sequences)
    assert_close(residual.embed(sequences), plain.embed(sequences) + means)


@pytest.mark.parametrize("mode", ["cls", ["cls", "mean"], ["mean", "cls"]])
def test_newer_spelling_of_pooling(mode, sequences, tmp_path):
    config = {"embedding_dimension": 60, "pooling_mode": mode}
    reference = save("bert", tmp_path, [("Pooling", "1_Pooling", config, None)])
    rows = [states(reference, sequence) for sequence in sequences]
    kinds = {"cls": lambda row: row[0], "mean": lambda row: row.mean(0)}
    chosen = [mode] if isinstance(mode, str) else mode
    expected = torch.stack([torch.cat([kinds[kind](row) for kind in chosen]) for row in rows])
    assert_close(load_embedder(tmp_path, "float32", "cpu").embed(sequences), expected)


def test_bfloat16_points_the_same_way(sequences, tmp_path):
    save("gemma3", tmp_path, [pooling(96, "pooling_mode_mean_tokens"), NORMALIZE])
    exact = load_embedder(tmp_path, "float32", "cpu").embed(sequences)
    rounded = load_embedder(tmp_path, "bfloat16", "cpu").embed(sequences)
    assert (exact * rounded).sum(-1).min() > 0.999


def test_settings_of_the_folder(sequences, tmp_path):
    save("bert", tmp_path, [pooling(60, "pooling_mode_mean_tokens")])
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    embedder = load_embedder(tmp_path, "float32", "cpu")
    assert embedder.max_len == 40
    assert embedder.num_bytes == sum(
        4 * p.numel() for n, p in BertModel(MODELS["bert"][1]).named_parameters() if "pooler" not in n
    )
    assert embedder.embed([]).shape == (0, 60)


@pytest.mark.parametrize(
    ("inputs", "dimensions", "error", "message"),
    [
        ([[1, 2], []], None, RequestError, "input 1 is empty"),
        ([[1] * 65], None, ContextLengthError, "input 0 has 65 tokens, the model takes at most 64"),
        ([[1], [211]], None, RequestError, "input 1 holds a token id that is out of range"),
        ([[-1]], None, RequestError, "input 0 holds a token id that is out of range"),
        ([[1]], 30, RequestError, "60 dimensions and cannot be cut"),
    ],
)
def test_wrong_input(inputs, dimensions, error, message, tmp_path):
    save("bert", tmp_path)
    with pytest.raises(error, match=message):
        load_embedder(tmp_path, "float32", "cpu").embed(inputs, dimensions)


@pytest.mark.parametrize(
    ("settings", "wrong", "right"),
    [({"is_matryoshka": True}, [0, 61], [1, 60]), ({"matryoshka_dimensions": [16, 32]}, [0, 17, 61], [16, 60])],
)
def test_dimensions(settings, wrong, right, tmp_path):
    save("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    embedder = load_embedder(tmp_path, "float32", "cpu")
    whole = embedder.embed([[7, 8, 9]])
    for size in right:
        assert torch.equal(embedder.embed([[7, 8, 9]], size), whole[:, :size])  # not normalised, so neither is this
    for size in wrong:
        with pytest.raises(RequestError, match="dimensions must be one of"):
            embedder.embed([[7, 8, 9]], size)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("WordWeights", "1_W", {}, None)], "a step 'WordWeights' in this place is not supported"),
        ([NORMALIZE], "a step 'Normalize' in this place"),
        ([pooling(61, "pooling_mode_mean_tokens")], "1_Pooling/config.json: word_embedding_dimension is 61"),
        ([pooling(60)], "pooling_mode is missing"),
        ([("Pooling", "1_Pooling", {"pooling_mode": "median"}, None)], "pooling_mode 'median' is not supported"),
        ([("Pooling", "1_Pooling", None, None)], "1_Pooling/config.json is missing"),
        (
            [pooling(60, "pooling_mode_mean_tokens"), ("Dense", "2_Dense", RESIDUAL, {})],
            "use_residual is not supported from 60 to 20 features",
        ),
        ([("Pooling", "../elsewhere", None, None)], "path must lie within the model folder"),
        ([pooling(60, "pooling_mode_mean_tokens"), dense("2_Dense", 50, 20)], "2_Dense/config.json: in_features is 50"),
        (
            [pooling(60, "pooling_mode_mean_tokens"), dense("2_Dense", 60, 20, "torch.nn.Wobble")],
            "activation_function 'Wobble' is not supported",
        ),
        (
            [pooling(60, "pooling_mode_mean_tokens"), ("Dense", "2_Dense", {"in_features": 60, "out_features": 2}, {})],
            "2 missing",
        ),
    ],
)
def test_wrong_modules(modules, message, tmp_path):
    save("bert", tmp_path, modules)
    with pytest.raises(ModelLoadError, match=message):
        load_embedder(tmp_path, "float32", "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["WhisperModel"]}, "'WhisperModel' is not supported for embeddings; known are BertModel, "),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"num_hidden_layers": 4}, "config.json says 4 layers, the weights hold 3"),
        ({"num_attention_heads": 7}, "hidden_size is not a multiple of num_attention_heads"),
        ({"architectures": ["RobertaModel"], "pad_token_id": 63}, "pad_token_id leaves none of 64 positions"),
        ({"intermediate_size": "wide"}, "intermediate_size must be an integer"),
    ],
)
def test_wrong_config(changes, message, tmp_path):
    save("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelLoadError, match=message):
        load_embedder(tmp_path, "float32", "cpu")
