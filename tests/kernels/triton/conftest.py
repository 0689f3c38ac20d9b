"""Tests of this folder drive kernels on CPU tensors, which triton does only in a process that was told so at its start.

Any other process passes them on: one interpreting process runs all that were selected, beside the rest of the session
and for all of its workers, and each test here reports what became of it there. Where SIROCCO_TEST_DEVICE names a GPU,
and torch creates tensors on it, they run as they are. Tests of `test_compile.py` always stay.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Protocol

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("SIROCCO_FORCE_TRITON") == "1"
ON_DEVICE = "SIROCCO_TEST_DEVICE" in os.environ
REPORT = "SIROCCO_TEST_REPORT"  # where the interpreting process says what became of its tests

if importlib.util.find_spec("triton") is None:  # as on macOS
    collect_ignore_glob = ["test_*.py"]

_running = pytest.StashKey["subprocess.Popen[bytes]"]()
_report = pytest.StashKey[Path]()
_outcomes = pytest.StashKey[dict[str, list[str]]]()
_reports: dict[str, list[str]] = {}


def _passed_on(item: pytest.Item) -> bool:
    if INTERPRETING or ON_DEVICE:
        return False
    return item.path.parent == Path(__file__).parent and item.path.name != "test_compile.py"


def pytest_collection_finish(session: pytest.Session) -> None:
    items = [item for item in session.items if _passed_on(item)]
    config = session.config
    if not items or config.option.collectonly:
        return
    for item in items:
        item.add_marker(pytest.mark.timeout(1200))  # the first waits for all
    folder = config._tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    config.stash[_report] = report = folder / "interpreted.json"
    try:
        output = (folder / "interpreted.txt").open("xb")
    except FileExistsError:
        return  # another worker is at it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "SIROCCO_FORCE_TRITON": "1", REPORT: str(report)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [item.nodeid for item in items]
    with output:
        process = subprocess.Popen(
            command, cwd=config.rootpath, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    config.stash[_running] = process
    Thread(target=_see_that_it_reports, args=(process, report), daemon=True).start()


def _see_that_it_reports(process: "subprocess.Popen[bytes]", report: Path) -> None:
    process.wait()
    if not report.exists():
        said = report.with_suffix(".txt").read_text(errors="replace")
        _write(report, {"": ["failed", said[-4000:]]})


def _write(path: Path, outcomes: dict[str, list[str]]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcomes))
    part.replace(path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not _passed_on(pyfuncitem):
        return None
    stash = pyfuncitem.config.stash
    if _outcomes not in stash:
        while not stash[_report].exists():  # another worker's child cannot be waited for
            time.sleep(0.1)
        stash[_outcomes] = json.loads(stash[_report].read_text())
    outcomes = stash[_outcomes]
    outcome, said = outcomes.get(pyfuncitem.nodeid) or outcomes.get("") or ("failed", "it was not run")
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
        _write(Path(os.environ[REPORT]), _reports)
    elif process := session.config.stash.get(_running, None):
        if session.shouldstop or session.shouldfail:
            process.kill()
        process.wait()  # other workers may need what it finds


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
