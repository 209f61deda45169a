"""What a study writes: its findings as JSON, a table, and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_ezm.evaluation import Interval
from sb3_ezm.files import write_text
from sb3_ezm.plotting.panels import save_figure

RESULTS, TABLE, FIGURE = "results.json", "results.md", "figure.png"


@dataclass(frozen=True)
class Claim:
    """
    A claim of the paper, and what became of it.

    :param text: what the paper says
    :param verdict: seen, not seen, or can't tell at this scale
    :param because: figures on which the verdict rests
    """

    text: str
    verdict: str
    because: str


@dataclass
class Report:
    """
    Findings of a study.

    :param study: its name
    :param scale: on what they rest: suite, preset, steps of each task
    :param rows: of the table; every row says on how many seeds and steps it rests
    :param claims: of the paper
    :param notes: what to know before reading the table
    :param details: anything else for the JSON file
    """

    study: str
    scale: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """
        :return: the report as text
        """
        lines = [f"# {self.study}: {self.scale}", ""]
        if self.rows:
            titles = list(dict.fromkeys(key for row in self.rows for key in row))
            lines += [_line(titles), _line(["---"] * len(titles))]
            lines += [_line([cell(row.get(title)) for title in titles]) for row in self.rows]
            lines.append("")
        lines += [f"**{claim.text}** {claim.verdict}: {claim.because}\n" for claim in self.claims]
        return "\n".join([*lines, *(f"{note}\n" for note in self.notes)])

    def write(self, out: Path, figure: Figure | None) -> None:
        """
        Write and print everything.

        :param out: folder of the study
        :param figure: for the picture
        """
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / RESULTS, json.dumps(asdict(self), indent=1, default=_plain))
        write_text(out / TABLE, self.markdown())
        print("\n" + self.markdown())
        if figure is not None:
            print(f"figure: {save_figure(figure, out / FIGURE, dpi=110)}")
        print(f"results: {out / RESULTS}", flush=True)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value: Any) -> str:
    """
    :param value: of a table
    :return: as text, numbers with three significant digits
    """
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return str(value).replace(" (one seed, no interval)", "")
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def new_figure(width: float, height: float) -> Figure:
    """
    :param width: inches
    :param height: inches
    :return: a figure without pyplot's windows
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure


def bars(rows: Mapping[str, Interval], title: str, zero: bool = True) -> Figure:
    """
    :param rows: estimates by name
    :param title: below the axis
    :param zero: draw a line at 0
    :return: a horizontal bar for each, with its interval
    """
    figure = new_figure(8.0, 1.2 + 0.34 * max(1, len(rows)))
    axes = figure.subplots()
    for position, interval in enumerate(rows.values()):
        axes.barh(position, interval.value, color="#2a6fbb" if interval.value >= 0 else "#c23b22", height=0.6)
        if interval.low is not None:
            axes.plot([interval.low, interval.high], [position, position], color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    if zero:
        axes.axvline(0.0, color="#555555", linewidth=0.8)
    return figure
