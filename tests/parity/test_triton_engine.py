"""A whole engine on interpreted Triton kernels says what it says on the torch definitions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import tensor
from torch.testing import assert_close

SAMPLING_KERNELS = {
    "penalties_kernel",
    "chunks_kernel",
    "min_p_kernel",
    "bound_kernel",
    "collect_kernel",
    "draw_kernel",
}
# What a step of each model launches; a kernel that never ran proves nothing.
KERNELS = {
    "tiny": {"attention_kernel", "merge_kernel", "norm_kernel", "norm_rope_write_kernel", "gated_kernel"},
    "tiny-latent": {
        "latent_attention_kernel",
        "norm_rope_write_latent_kernel",
        "norm_kernel",
        "gated_kernel",
        "grouped_matmul_kernel",
    },
    "tiny-hybrid": {
        "attention_kernel",
        "grouped_matmul_kernel",
        "conv_kernel",
        "log_decay_kernel",
        "scan_kernel",
        "update_kernel",
        "gated_norm_kernel",
    },
    "tiny-mxfp4": {"attention_kernel", "mxfp4_matmul_kernel", "clamped_swiglu_kernel", "norm_rope_write_kernel"},
}


def run(program, *arguments, **environment):
    program = Path(__file__).with_name(program)
    done = subprocess.run(
        [sys.executable, "-P", str(program), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("shape", KERNELS)
def test_tokens_equal_the_definitions(shape):
    """Prompts kernel by kernel, decodes as a captured step is replayed, with padding rows, two steps in flight."""
    expected = run("triton_engine.py", shape, TRITON_INTERPRET="0", SIROCCO_FORCE_TRITON="0")
    assert not expected["launches"]
    result = run("triton_engine.py", shape, "graphs", TRITON_INTERPRET="1", SIROCCO_FORCE_TRITON="1")
    assert result["tokens"] == expected["tokens"]
    assert result["misses"] == 0
    missing = (KERNELS[shape] | SAMPLING_KERNELS) - {name for name, count in result["launches"].items() if count}
    assert not missing, f"never launched: {missing}"


def test_embeddings_equal_the_definitions():
    """Of an encoder with biases by distance, and of a decoder with windows that looks both ways."""
    expected = run("triton_encoder.py", TRITON_INTERPRET="0", SIROCCO_FORCE_TRITON="0")
    assert not expected["launches"]
    result = run("triton_encoder.py", TRITON_INTERPRET="1", SIROCCO_FORCE_TRITON="1")
    for model, vectors in expected["vectors"].items():
        assert_close(tensor(result["vectors"][model]), tensor(vectors), rtol=1e-4, atol=1e-4)
    kernels = {
        "bidirectional_kernel",
        "norm_kernel",
        "unary_kernel",
        "gated_kernel",
        "rotate_kernel",
        "embedding_kernel",
    }
    assert not kernels - {name for name, count in result["launches"].items() if count}
