"""Line charts as SVG text, for few points: readable in a browser and in a diff."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLORS = ("#0b6e99", "#c8553d", "#5c8001", "#7d4e9e", "#b8860b", "#4a4a4a", "#c2185b")
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 44, 52
_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Point:
    """A median with the least and the greatest value."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values to pixels by their logarithm."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.begin + share * (self.end - self.begin), 1)


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Both axes logarithmic: speeds of engines differ by factors. Lines without points are left out, values must be
    positive.
    """
    lines = [line for line in lines if line.points]
    points = [point for line in lines for point in line.points]
    xs = sorted({point.x for point in points})
    x_axis = _Axis(xs[0] / 1.2, xs[-1] * 1.2, _LEFT, _WIDTH - _RIGHT) if points else None
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 24, title, "start", 'font-size="15" font-weight="bold"'),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_label, "middle"),
        _text(18, (_TOP + _HEIGHT - _BOTTOM) / 2, y_label, "middle", _turned(18, (_TOP + _HEIGHT - _BOTTOM) / 2)),
    ]
    if x_axis is not None:
        ticks = _ticks(min(point.low for point in points), max(point.high for point in points))
        y_axis = _Axis(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP)
        body += _grid(x_axis, y_axis, xs, ticks)
        for i, line in enumerate(lines):
            body += _drawn(line, COLORS[i % len(COLORS)], x_axis, y_axis, _TOP + 8 + 20 * i)
    return "\n".join([*body, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from at most `low` to at least `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [step * 10.0**power for power in range(first, last + 1) for step in _STEPS]
    begin = max(i for i, mark in enumerate(marks) if mark <= low)
    end = min(i for i, mark in enumerate(marks) if mark >= high and i > begin)
    return marks[begin : end + 1]


def _grid(x_axis: _Axis, y_axis: _Axis, xs: Sequence[float], ticks: Sequence[float]) -> list[str]:
    body = []
    for tick in ticks:
        y = y_axis.at(tick)
        body.append(f'<path d="M{x_axis.begin} {y}H{x_axis.end}" stroke="#ddd"/>')
        body.append(_text(x_axis.begin - 8, y + 4, f"{tick:g}", "end"))
    body += [_text(x_axis.at(x), y_axis.begin + 18, f"{x:g}", "middle") for x in xs]
    body.append(f'<path d="M{x_axis.begin} {y_axis.begin}H{x_axis.end}" stroke="#333"/>')
    return body


def _drawn(line: Line, color: str, x_axis: _Axis, y_axis: _Axis, legend_y: float) -> list[str]:
    """The line, its points with their ranges, and its name at the right."""
    places = [(x_axis.at(point.x), y_axis.at(point.y), point) for point in line.points]
    path = "L".join(f"{x} {y}" for x, y, _ in places)
    body = [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>']
    for x, y, point in places:
        body.append(f'<path d="M{x} {y_axis.at(point.low)}V{y_axis.at(point.high)}" stroke="{color}"/>')
        body.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"><title>{point.y:.4g}</title></circle>')
    legend_x = _WIDTH - _RIGHT + 14
    body.append(f'<path d="M{legend_x} {legend_y}h18" stroke="{color}" stroke-width="2"/>')
    body.append(_text(legend_x + 24, legend_y + 4, line.name, "start"))
    return body


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{" " * bool(more)}{more}>{escape(text)}</text>'


def _turned(x: float, y: float) -> str:
    return f'transform="rotate(-90 {x:g} {y:g})"'
