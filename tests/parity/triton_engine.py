"""Run in a process of its own by `test_triton_engine.py`: the tokens of a tiny engine, and the kernels it launched."""

import json
import sys

from sirocco.runtime.build import assemble
from sirocco.runtime.models.random import SHAPES, random_model
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
PROMPTS = [[5], [7, 8, 9, 10, 11] * 5, list(range(40, 90)) * 3]  # a token, a few blocks, a few chunks and splits
SAMPLING = [
    Sampling(max_tokens=4, temperature=0.0),
    Sampling(max_tokens=3, temperature=1.0, seed=3, top_k=20, top_p=0.9, frequency_penalty=0.5),
    Sampling(max_tokens=2, temperature=0.7, seed=4, logprobs=2),
]


class Replaying:
    """In place of a CUDA graph: what was captured is called again."""

    def __init__(self, step, hidden):
        self.step, self.hidden = step, hidden

    def replay(self):
        self.hidden.copy_(self.step())


def main(graphs: bool) -> None:
    loaded = random_model("tiny", "float32", "cpu")
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=3, kv_memory=1 << 18, chunk_size=64), "tiny")
    core.depth = 1
    if graphs:
        core.runner.capture(lambda step: (Replaying(step, hidden := step()), hidden))
    tokens: dict[int, list[int]] = {id: [] for id in range(len(PROMPTS))}
    for id, prompt in enumerate(PROMPTS):
        core.apply(EngineRequest(id, prompt, SAMPLING[id]))
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
    main(graphs=sys.argv[1:] == ["graphs"])
