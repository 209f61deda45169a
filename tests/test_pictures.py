"""The pictures that are drawn from tables of the pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments import pictures

RESULTS = (pictures.ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_tables_of_a_section() -> None:
    first, second, third = "| x | y |\n|---|---|\n| 1 | 2 |\n", "| z |\n|---|\n| 3 |\n", "| b |\n|---|\n| 4 |\n"
    page = f"# P\n\n## A\n\n{first}\nwords\n\n{second}\n### B\n\n{third}\n## C\n\nnothing\n"
    assert pictures.tables(page, "A") == [[["x", "y"], ["1", "2"]], [["z"], ["3"]]]
    assert pictures.table(page, "B") == [["4"]]
    for heading in ("C", "D"):
        with pytest.raises(LookupError, match=f"no table below '{heading}'"):
            pictures.tables(page, heading)


def test_the_curves_of_the_humanoid_are_those_of_the_tables() -> None:
    own, published = pictures.tables(RESULTS, "Twice the rate"), pictures.tables(RESULTS, "Beside other methods")[0]
    panel = pictures.draw_mean(own, published).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert lines["sb3-ezm, seed 0"][:2] == [[24_871.0, 0.071], [49_773.0, 0.09]]
    assert lines["SimbaV2"][:2] == [[100_000.0, 0.088], [200_000.0, 0.28]]
    assert len(lines) == len(own) + len(published) - 1
    assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == len(panel.lines)


@pytest.mark.parametrize("name", ["pendulum", "toy", "cheetah", "dmc_walker", "h1_mean", "loop"])
def test_every_picture_can_be_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", name, "--out", str(tmp_path)])
    pictures.main()
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
