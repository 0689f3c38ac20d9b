"""Run in a process of its own by `test_triton_engine.py`: the tokens of a tiny engine, and the kernels it launched."""

import json
import sys

import torch

from sirocco.runtime import graphs
from sirocco.runtime.build import assemble
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.interleaved import Mxfp4Experts
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.weights import loadable_modules
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

SHAPES["tiny"] |= {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
SHAPES["tiny-latent"] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "kv_lora_rank": 24,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "hidden_act": "silu",
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "max_position_embeddings": 4096,
}
SHAPES["tiny-hybrid"] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "shared_intermediate_size": 16,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_multiplier": 0.25,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}
SHAPES["tiny-mxfp4"] = {
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 21,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "quantization_config": {"quant_method": "mxfp4"},
}
PROMPTS = [[5], [7, 8, 9, 10, 11] * 5, list(range(40, 90)) * 3]  # a token, a few blocks, a few chunks and splits
SHORT = {"tiny-hybrid": 70, "tiny-mxfp4": 70}  # tokens of a prompt at most: interpreted, these take their time
SAMPLING = [
    Sampling(max_tokens=4, temperature=0.0),
    Sampling(max_tokens=3, temperature=1.0, seed=3, top_k=20, top_p=0.9, frequency_penalty=0.5),
    Sampling(max_tokens=2, temperature=0.7, seed=4, min_p=0.05, logprobs=2),
]


class Replaying:
    """In place of a CUDA graph: what was captured is called again."""

    def __init__(self, step, hidden):
        self.step, self.hidden = step, hidden

    def replay(self):
        self.hidden.copy_(self.step())


def vary_experts(model: Decoder) -> None:
    """Give MXFP4 experts codes of all kinds, which a random model leaves alike in all experts."""
    generator = torch.Generator().manual_seed(1)
    for _, module in loadable_modules(model):
        if isinstance(module, Mxfp4Experts):
            tensors = {}
            for name, slot in module.slots().items():
                low, high = (119, 124) if name.endswith("scales") else (0, 256)
                tensors[name] = torch.randint(low, high, slot.shape, generator=generator, dtype=torch.uint8)
                if slot.dtype is None:
                    tensors[name] = tensors[name] / 256 - 0.5
            module.assign(tensors)


def main(shape: str, captured: bool) -> None:
    loaded = random_model(shape, "float32", "cpu")
    vary_experts(loaded.model)
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=3, kv_memory=1 << 18, chunk_size=64), shape)
    core.depth = 1
    if captured:
        graphs.row_buckets = lambda most: [1, most]
        core.runner.capture(lambda step: (Replaying(step, hidden := step()), hidden))
    tokens: dict[int, list[int]] = {id: [] for id in range(len(PROMPTS))}
    for id, prompt in enumerate(PROMPTS):
        core.apply(EngineRequest(id, prompt[: SHORT.get(shape)], SAMPLING[id]))
    busy = True
    while busy:
        busy, outputs = core.step()
        for output in outputs:
            assert output.error is None, output.error
            tokens[output.id] += output.token_ids
    launched: dict[str, int] = {}
    if "sirocco.kernels.triton.common" in sys.modules:
        from sirocco.kernels.triton.common import launches

        launched = launches()
    print(json.dumps({"tokens": tokens, "launches": launched, "misses": core.runner.graph_misses}))


if __name__ == "__main__":
    main(sys.argv[1], captured=sys.argv[2:] == ["graphs"])
