"""One engine on random weights of a known geometry, as a part of `sirocco bench gpu`.

    python -m sirocco.bench.gpu_engine {sirocco,transformers} SHAPE REQUESTS PROMPT_LEN GEN_LEN DEVICE [--json FILE]

Both compute the same number of random tokens for all requests at once, after a round that does not count.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

_KINDS = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "LlamaForCausalLM": "llama"}


def main() -> int:
    """Write generated tokens a second over the whole round and what the engine says beside."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["sirocco", "transformers"])
    parser.add_argument("shape")
    parser.add_argument("requests", type=int)
    parser.add_argument("prompt_len", type=int)
    parser.add_argument("gen_len", type=int)
    parser.add_argument("device")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = run_sirocco if arguments.engine == "sirocco" else run_transformers
    result = run(arguments.shape, arguments.requests, arguments.prompt_len, arguments.gen_len, arguments.device)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
    return 0


def run_sirocco(shape: str, requests: int, prompt_len: int, gen_len: int, device: str) -> dict[str, Any]:
    """All requests at once, and one alone: its decode speed is what a single stream sees."""
    from sirocco.bench.offline import OfflineBench, measure

    bench = OfflineBench(
        engine={"device": device, "max_num_seqs": requests},
        model_shape=shape,
        prompt_lens=[prompt_len],
        gen_lens=[gen_len],
        concurrencies=sorted({1, requests}),
        iterations=1,
    )
    rows = measure(bench)
    return {
        "total_tps": rows[-1]["total_tps"],
        "single_decode_tps": rows[0]["decode_tps"],
        "ttft_ms": rows[-1]["ttft_ms"]["p50"],
        "itl_ms": rows[-1]["itl_ms"]["p50"],
        "dtype": rows[0]["dtype"],
        "path": rows[0]["path"],
    }


def run_transformers(shape: str, requests: int, prompt_len: int, gen_len: int, device: str) -> dict[str, Any]:
    """transformers' continuous batching on the same geometry."""
    import torch
    import transformers

    from sirocco.runtime.models.device import choose_device, choose_dtype
    from sirocco.runtime.models.random import SHAPES

    api: Any = transformers
    place = choose_device(device)
    fields = dict(SHAPES[shape])
    kind = _KINDS[fields.pop("architectures")[0]]
    dtype = choose_dtype("auto", fields.pop("dtype"), place)
    with place:
        config = api.AutoConfig.for_model(kind, **fields)
        model = api.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    settings = api.GenerationConfig(max_new_tokens=gen_len, do_sample=False, eos_token_id=-1, pad_token_id=0)
    rng = random.Random(0)
    seconds = 0.0
    for _ in range(2):  # the first makes the cache and captures graphs
        prompts = [[rng.randrange(fields["vocab_size"]) for _ in range(prompt_len)] for _ in range(requests)]
        start = time.perf_counter()
        outputs = model.generate_batch(prompts, generation_config=settings, persistent_manager=True)
        if place.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        generated = sum(len(output.generated_tokens) for output in outputs.values())
        if generated != requests * gen_len:
            raise SystemExit(f"{generated} tokens came, {requests * gen_len} were asked for")
    return {"total_tps": round(requests * gen_len / seconds, 1), "dtype": str(dtype).removeprefix("torch.")}


if __name__ == "__main__":
    raise SystemExit(main())
