"""Tests of this folder drive kernels on CPU tensors, which triton does only in a process that was told so at its start.

Any other process passes them on: one interpreting process runs all that were selected, beside the rest of the session,
and each test here reports what became of it there. Where SIROCCO_TEST_DEVICE names a GPU, and torch creates tensors on
it, they run as they are. Tests of `test_compile.py` always stay.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("SIROCCO_FORCE_TRITON") == "1"
ON_DEVICE = "SIROCCO_TEST_DEVICE" in os.environ
REPORT = "SIROCCO_TEST_REPORT"  # where the interpreting process says what became of its tests

if importlib.util.find_spec("triton") is None:  # as on macOS
    collect_ignore_glob = ["test_*.py"]

_running = pytest.StashKey[tuple["subprocess.Popen[str]", Path]]()
_outcomes = pytest.StashKey[dict[str, list[str]]]()
_reports: dict[str, list[str]] = {}


def _passed_on(item: pytest.Item) -> bool:
    if INTERPRETING or ON_DEVICE:
        return False
    return item.path.parent == Path(__file__).parent and item.path.name != "test_compile.py"


def pytest_collection_finish(session: pytest.Session) -> None:
    items = [item for item in session.items if _passed_on(item)]
    if not items or session.config.option.collectonly:
        return
    report = Path(tempfile.mkstemp(suffix=".json")[1])
    environment = os.environ | {"TRITON_INTERPRET": "1", "SIROCCO_FORCE_TRITON": "1", REPORT: str(report)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(item.nodeid for item in items)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=session.config.rootpath, env=environment, **pipe)
    session.config.stash[_running] = process, report
    for item in items:
        item.add_marker(pytest.mark.timeout(1200))  # the first waits for all


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not _passed_on(pyfuncitem):
        return None
    stash = pyfuncitem.config.stash
    if _outcomes not in stash:
        process, report = stash[_running]
        output = process.communicate()[0]
        stash[_outcomes] = json.loads(report.read_text() or "{}") | {"": ["", output[-4000:]]}
    outcomes = stash[_outcomes]
    outcome, said = outcomes.get(pyfuncitem.nodeid, outcomes[""])
    if outcome == "skipped":
        pytest.skip(said)
    if outcome != "passed":
        pytest.fail(said, pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _reports[report.nodeid] = [report.outcome, report.longreprtext]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if REPORT in os.environ and INTERPRETING:
        Path(os.environ[REPORT]).write_text(json.dumps(_reports))
    elif running := session.config.stash.get(_running, None):
        process, report = running
        if process.poll() is None:
            process.kill()
        report.unlink(missing_ok=True)


class Launching(Protocol):
    """Within it, each of these kernels has to be launched."""

    def __call__(self, *kernels: str) -> AbstractContextManager[None]: ...


@pytest.fixture
def launching() -> Launching:
    from sirocco.kernels.triton.common import launches

    @contextmanager
    def watch(*kernels: str) -> Iterator[None]:
        before = launches()
        yield
        after = launches()
        for kernel in kernels:
            assert after.get(kernel, 0) > before.get(kernel, 0), f"{kernel} was not launched"

    return watch
