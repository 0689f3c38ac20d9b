"""A whole engine on interpreted Triton kernels says what it says on the torch definitions."""

import json
import os
import subprocess
import sys
from pathlib import Path

# What a step of a Qwen3 model launches; a kernel that never ran proves nothing.
KERNELS = {
    "attention_kernel",
    "merge_kernel",
    "norm_kernel",
    "norm_rope_write_kernel",
    "gated_kernel",
    "penalties_kernel",
    "chunk_best_kernel",
    "chunk_mass_kernel",
    "bound_kernel",
    "collect_kernel",
    "search_kernel",
    "draw_kernel",
}


def run(*arguments, **environment):
    program = Path(__file__).with_name("triton_engine.py")
    done = subprocess.run(
        [sys.executable, "-P", str(program), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tokens_equal_the_definitions():
    """Prompts kernel by kernel, decodes as a captured step is replayed, two steps in flight."""
    expected = run(TRITON_INTERPRET="0", SIROCCO_FORCE_TRITON="0")
    assert not expected["launches"]
    result = run("graphs", TRITON_INTERPRET="1", SIROCCO_FORCE_TRITON="1")
    assert result["tokens"] == expected["tokens"]
    assert result["misses"] == 0
    missing = KERNELS - {name for name, count in result["launches"].items() if count}
    assert not missing, f"never launched: {missing}"
