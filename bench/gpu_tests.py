"""The kernel tests on a device instead of in the interpreter, as a part of `sirocco bench gpu`.

    python -m sirocco.bench.gpu_tests DEVICE [--json FILE]

First every case of `bench kernels` against float64 in each dtype; then, in a clone of the repository with pytest, the
tests of the kernels with the device as torch's default.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from sirocco.bench.kernel_cases import CASES, Setting
from sirocco.bench.kernels import TOLERANCE, check
from sirocco.runtime.models.device import choose_device

TESTS = Path(__file__).resolve().parent.parent / "tests" / "kernels" / "triton"


def main() -> int:
    """Exit with 0 when everything agrees."""
    parser = argparse.ArgumentParser()
    parser.add_argument("device")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # Before the first product, or older versions of torch refuse deterministic ones.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(arguments.device)
    wrong = check_cases(device)
    result: dict[str, Any] = {"checked": len(CASES) * len(TOLERANCE), "wrong": wrong}
    for tests in ("begun", None):  # what is known already outlives tests that take too long
        result["tests"] = tests or run_tests(device)
        print(json.dumps(result, indent=2), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(result))
    return 1 if wrong or result["tests"] not in ("passed", "absent") else 0


def check_cases(device: torch.device) -> list[str]:
    """What is further from float64 than its dtype allows."""
    wrong = []
    for dtype, tolerance in TOLERANCE.items():
        for case in CASES:
            torch.manual_seed(0)
            error = check(case, Setting(device, dtype, small=True))
            if not error <= tolerance:
                wrong.append(f"{case.operator} {case.size} {dtype}: {error}")
    return wrong


def run_tests(device: torch.device) -> str:
    """`passed`, `failed`, or `absent` where there are no tests or nothing but a CPU to run them on."""
    if device.type == "cpu" or not TESTS.is_dir() or importlib.util.find_spec("pytest") is None:
        return "absent"
    import pytest

    os.environ["SIROCCO_TEST_DEVICE"] = str(device)  # the tests then stay in this process
    torch.set_default_device(device)
    ignored = TESTS / "test_compile.py"  # that is for machines without a GPU
    arguments = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", f"--ignore={ignored}", str(TESTS)]
    return "passed" if pytest.main(arguments) == 0 else "failed"


if __name__ == "__main__":
    raise SystemExit(main())
