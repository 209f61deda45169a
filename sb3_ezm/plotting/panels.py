"""The grid of panels that the figures of a suite share: one per task and one for their average, with notes below."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import Protocol
from sb3_ezm.files import replacing

COLUMNS = 5
PANEL_SIZE = (3.3, 2.6)  # inches
TITLE_HEIGHT = 0.4
LEGEND_HEIGHT = 0.35
LINE_HEIGHT = 0.13  # of a line of notes
NOTE_WIDTH = 280  # characters of a line of notes
OWN_COLORS: dict[Protocol, str] = {"respected": "#2a6fbb", "ignored": "#c23b22"}
REFERENCE_COLOR = "#999999"


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int) -> Path:
    """
    :param figure: what to save
    :param path: its suffix (``.png``, ``.svg``, ``.pdf``) decides the format; missing folders are created
    :param dpi: dots per inch
    :return: the path
    :raises ConfigurationError: if the suffix is unknown
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ConfigurationError(f"A picture is written as .png, .svg or .pdf, not as {path.suffix!r} ({path}).")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    return path


class SuiteFigure:
    """
    Panels, five in a row, a legend for all of them, and notes.

    :param n_panels: how many panels
    :param title: above them
    :param notes: below them; long ones are wrapped
    """

    def __init__(self, n_panels: int, title: str, notes: Sequence[str]) -> None:
        self.notes = tuple(notes)
        lines = [line for note in notes for line in textwrap.wrap(note, NOTE_WIDTH, subsequent_indent="    ")]
        rows = -(-n_panels // COLUMNS)
        notes_height = LINE_HEIGHT * len(lines) + 0.1
        footer = notes_height + LEGEND_HEIGHT
        height = PANEL_SIZE[1] * rows + TITLE_HEIGHT + footer
        self.figure = Figure(figsize=(PANEL_SIZE[0] * COLUMNS, height))
        FigureCanvasAgg(self.figure)  # a separate canvas, without pyplot's global state and windows
        self.figure.set_layout_engine("constrained", rect=(0.0, footer / height, 1.0, 1.0 - footer / height))
        panels = np.ravel(self.figure.subplots(rows, COLUMNS, squeeze=False))
        for panel in panels[n_panels:]:
            panel.remove()
        self.panels: list[Axes] = list(panels[:n_panels])
        self.figure.suptitle(title, fontsize=12)
        self.figure.text(0.006, 0.05 / height, "\n".join(lines), fontsize=7.5, va="bottom", linespacing=1.2, color="#333333")
        self._legend_at = notes_height / height

    def add_legend(self) -> None:
        """Put every label of the panels, once, between the panels and the notes."""
        entries: dict[str, Artist] = {}
        for panel in self.panels:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                entries.setdefault(str(label), handle)
        if entries:
            self.figure.legend(
                list(entries.values()),
                list(entries),
                loc="lower center",
                bbox_to_anchor=(0.5, self._legend_at),
                ncols=len(entries),
                fontsize=9,
                frameon=False,
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        :param path: its suffix (``.png``, ``.svg``, ``.pdf``) decides the format; missing folders are created
        :return: the path
        :raises ConfigurationError: if the suffix is unknown
        """
        return save_figure(self.figure, path, dpi=100)
