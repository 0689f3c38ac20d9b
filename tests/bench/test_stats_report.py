"""Percentiles, tables, JSON."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sirocco.bench import report
from sirocco.bench.stats import median, percentile, summary
from sirocco.runtime.errors import RequestError


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("percent", [0, 25, 50, 99, 100])
def test_percentile_is_numpys(count, percent):
    values = [float(x) for x in np.random.default_rng(count).normal(size=count)]
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_nothing_measured():
    assert percentile([], 50) is None and median([None]) is None
    assert summary([]) == {"mean": None, "p50": None, "p99": None}


def test_summary_is_in_milliseconds():
    assert summary([0.001, 0.003]) == {"mean": 2.0, "p50": 2.0, "p99": 2.98}
    assert median([3.0, None, 1.0, 2.0]) == 2.0


ROWS = [{"name": "x", "ms": {"p50": 1234.56, "p99": None}, "errors": {"http_429": 3}, "count": 7}]
COLUMNS = (
    ("name", "name"),
    ("p50", "ms.p50"),
    ("p99", "ms.p99"),
    ("errors", "errors"),
    ("n", "count"),
    ("-", "no.such"),
)


def test_table():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report.table(ROWS, COLUMNS))
    heading, line = capture.get().splitlines()
    assert heading.split() == ["name", "p50", "p99", "errors", "n", "-"]
    assert line.split() == ["x", "1,234.6", "-", "http_429", "3", "7", "-"]


def test_one_row_is_a_sheet():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report.sheet(ROWS[0], COLUMNS))
    assert [line.split()[:2] for line in capture.get().splitlines()][:3] == [
        ["name", "x"],
        ["p50", "1,234.6"],
        ["p99", "-"],
    ]


def test_json_file_and_stdout(tmp_path, capfd):
    path = tmp_path / "out.json"
    report.check_writable(str(path))
    report.publish(ROWS, COLUMNS, str(path))
    assert json.loads(path.read_text()) == ROWS
    assert "1,234.6" in capfd.readouterr().out
    report.publish(ROWS, COLUMNS, "-")
    captured = capfd.readouterr()
    assert json.loads(captured.out) == ROWS and "1,234.6" in captured.err


def test_file_that_cannot_be_written(tmp_path):
    with pytest.raises(RequestError, match="cannot be written"):
        report.check_writable(str(tmp_path / "no" / "x.json"))


def test_asking_leaves_no_file_and_changes_none(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("[]")
    report.check_writable(str(new))
    report.check_writable(str(old))
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == "[]"
    with pytest.raises(RequestError, match="cannot be written: Is a directory"):
        report.check_writable(str(tmp_path))


def test_disk_that_fills_up_costs_no_older_results(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    path.write_text("[]")

    def fill_up(self, data):
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(RequestError, match=r"out\.json cannot be written: No space left on device"):
        report.publish(ROWS, COLUMNS, str(path))
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "[]"


def test_json_goes_through_links_and_into_devices(tmp_path):
    (tmp_path / "link").symlink_to("real.json")
    for name in (str(tmp_path / "link"), os.devnull):
        report.check_writable(name)
        report.publish(ROWS, COLUMNS, name)
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == ROWS
    assert Path(os.devnull).is_char_device()


def test_a_pipe_stays_open_until_the_results_are_there(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        report.check_writable(str(pipe))
        report.publish(ROWS, COLUMNS, str(pipe))
        assert json.loads(reader.communicate(timeout=20)[0]) == ROWS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: a full device")
def test_results_for_stdout_by_its_name_go_where_it_stands(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "from sirocco.bench import report; report.publish([{'a': 1}], [('a', 'a')], '/dev/stdout')"
    with log.open("ab") as out:
        subprocess.run([sys.executable, "-P", "-c", code], stdout=out, timeout=100, check=True)
    first, rest = log.read_text().split("\n", 1)
    assert first == "before" and '"a": 1' in rest and rest.splitlines()[-1].split() == ["a", "1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: a full device")
def test_results_are_kept_where_the_table_cannot_be_shown(tmp_path):
    path = tmp_path / "out.json"
    code = f"from sirocco.bench import report; report.publish([{{'a': 1}}], [('a', 'a')], {str(path)!r})"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, timeout=100, check=False)
    assert done.returncode == 1 and json.loads(path.read_text()) == [{"a": 1}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: a full device")
def test_device_that_is_full():
    report.check_writable("/dev/full")
    with pytest.raises(RequestError, match="/dev/full cannot be written: No space left on device"):
        report.publish(ROWS, COLUMNS, "/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: a full device")
@pytest.mark.parametrize("width", [1, 10_000])
@pytest.mark.parametrize("json_file", [None, "-"])
def test_output_that_is_full(json_file, width):
    code = (
        "from sirocco.bench import report; from sirocco.runtime.errors import RequestError\n"
        f"try: report.publish([{{'a': 'x' * {width}}}], [('a', 'a')], {json_file!r})\n"
        "except RequestError as error: raise SystemExit(str(error))"
    )
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    assert done.stderr.splitlines()[-1] == "the output cannot be written: No space left on device"
    assert done.returncode == 1


def test_facts():
    assert report.peak_rss_mib() > 5
    assert set(report.versions("msgspec", "no-such-package")) == {"python", "platform", "msgspec"}
    assert "cores" in report.cpu_name()
