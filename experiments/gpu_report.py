"""
Turn a run of ``experiments/gpu.py`` into tables and curves for docs/performance.md and docs/results.md.

    python experiments/gpu_report.py runs/gpu [--images docs/images] [--out section.md]

The curve is drawn next to the published ones (needs matplotlib). A run that was cut short is reported up to that point.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gpu_stages import tables
from gpu_stages.files import CURVES, FILM, LADDER, SANITY, TRAINING, Row, read_json
from gpu_stages.summary import curve_table, device_name, training_text

from sb3_ezm.evaluation import read_evaluations
from sb3_ezm.plotting import plot_curves, published_curves, suite_references
from sb3_ezm.plotting.published import Reference

TASKS = 9


def performance_section(folder: Path) -> str:
    """
    :param folder: folder of the run
    :return: Markdown for docs/performance.md
    """
    sanity, ladder, training = (read_json(folder / name) for name in (SANITY, LADDER, TRAINING))
    device = device_name(sanity)
    parts = [
        ("## On one GPU", f"`python experiments/gpu.py`, {device}."),
        ("### Targets", tables.targets_table(ladder, training, device)),
        ("### One update by size and by how it is computed", tables.update_table(ladder)),
        ("### Acting by number of environments", tables.acting_table(ladder)),
        ("### Environment steps per second", tables.stepping_table(ladder)),
        ("### Searches of the paper's network beside mctx", tables.search_table(ladder)),
        ("### Does it compute what a CPU computes", tables.sanity_table(sanity)),
    ]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in parts if text)


def results_section(folder: Path, picture: str | None) -> str:
    """
    :param folder: folder of the run
    :param picture: path of the drawn curves, relative to the page
    :return: Markdown for docs/results.md
    """
    parts = ["## Nine H1 tasks on one GPU", training_text(read_json(folder / TRAINING))]
    if (folder / CURVES).exists():
        parts += [last_evaluation(folder / CURVES), "Returns with falls ignored:", curve_table(folder / CURVES)]
    if picture is not None:
        parts.append(f"![returns of nine tasks against steps, beside the published curves]({picture})")
    if not (folder / FILM).exists():
        parts.append("That machine made no film; `python examples/film_h1.py model.zip --out film.gif` makes one anywhere.")
    return "\n\n".join(part for part in parts if part)


def last_evaluation(path: Path) -> str:
    """
    :param path: file of the evaluations
    :return: the last returns under both protocols, next to the published ones after the same number of steps
    """
    rows = read_evaluations(path)
    last = [row for row in rows if row.timesteps == rows[-1].timesteps]
    steps = last[0].timesteps / TASKS
    published, references = published_curves("medium"), suite_references("medium")
    lines: list[Row] = []
    for name, reference in references.items():
        theirs = float(np.mean([np.interp(steps, seed[name].steps, seed[name].returns, right=np.nan) for seed in published]))
        own = {row.protocol: row for row in last if row.task == name}
        line: dict[str, Any] = {"task": name, "random": reference.random, "published EZ-M, falls ignored": theirs}
        line |= {f"falls {protocol}": row.mean_return for protocol, row in own.items()}
        lines.append(line)
    columns = ("falls respected", "falls ignored", "published EZ-M, falls ignored")
    means = {column: _normalized(lines, column, references) for column in columns}
    lines.append({"task": "**normalized mean**", "random": 0.0, **means})
    heading = (
        f"After {steps:,.0f} steps of each task ({last[0].seconds:.0f} s of training), {last[0].episodes} episodes of each:"
    )
    return f"{heading}\n\n{tables.markdown(lines, ('task', 'random', *columns))}"


def _normalized(lines: list[Row], column: str, references: dict[str, Reference]) -> float | None:
    if any(column not in line for line in lines):
        return None
    return float(np.mean([references[line["task"]].normalize(line[column]) for line in lines]))


def main() -> None:
    """Print both sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of `experiments/gpu.py`")
    parser.add_argument("--images", type=Path, help="folder for the drawn curves (default: none is drawn)")
    parser.add_argument("--out", type=Path, help="also write the sections to this file")
    args = parser.parse_args()
    picture = None
    if args.images is not None and (args.run / CURVES).exists():
        args.images.mkdir(parents=True, exist_ok=True)
        plot_curves([args.run / CURVES], "medium", args.images / "h1_gpu_curves.png")
        picture = f"{args.images.name}/h1_gpu_curves.png"
    text = f"{performance_section(args.run)}\n\n{results_section(args.run, picture)}\n"
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
