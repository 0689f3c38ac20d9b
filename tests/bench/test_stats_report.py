"""Percentiles, tables, JSON."""

import json

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


def test_facts():
    assert report.peak_rss_mib() > 5
    assert set(report.versions("msgspec", "no-such-package")) == {"python", "platform", "msgspec"}
    assert "cores" in report.cpu_name()
