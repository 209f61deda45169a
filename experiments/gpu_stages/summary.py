"""The summary of a run, rewritten after every stage from the files in its folder. Imports neither PyTorch nor NumPy."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from gpu_stages import tables
from gpu_stages.files import CURVES, LADDER, SANITY, TRAINING, Row, read_json


def device_name(sanity: Row) -> str:
    """
    :param sanity: contents of ``sanity.json``
    :return: the device's name, with versions
    """
    machine = sanity.get("machine", {})
    packages = machine.get("packages", {})
    name = machine.get("name") or machine.get("processor") or "an unknown device"
    cuda = f", CUDA {machine['CUDA']}" if "CUDA" in machine else ""
    return f"{name}{cuda}, {machine.get('cpus', '?')} CPU cores, PyTorch {packages.get('torch', '?')}"


def summarize(out: Path, stages: list[dict[str, Any]]) -> str:
    """
    :param out: folder of the results
    :param stages: how each one went
    :return: Markdown
    """
    sanity, ladder, training = (read_json(out / name) for name in (SANITY, LADDER, TRAINING))
    parts = [
        "# Run on one device",
        device_name(sanity),
        tables.markdown(stages, ("stage", "status", "seconds")),
        *_section("Targets", tables.targets_table(ladder, training, device_name(sanity))),
        *_section("Sanity", tables.sanity_table(sanity)),
        *_section("One update", tables.update_table(ladder)),
        *_section("Acting", tables.acting_table(ladder)),
        *_section("Environments", tables.stepping_table(ladder)),
        *_section("Searches beside mctx (paper's network)", tables.search_table(ladder)),
        *_section("Training", training_text(training)),
        *_section("Curve", curve_table(out / CURVES)),
        *(f"## Output of {row['stage']}: {row['status']}\n\n```\n{row['output']}\n```" for row in stages if row.get("output")),
        *(
            f"## {row['size']}/{row['rung']}\n\n```\n{row['traceback']}\n```"
            for row in ladder.get("rungs", [])
            if "traceback" in row
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def training_text(training: Row) -> str:
    """
    :param training: contents of ``training.json``
    :return: what was chosen, why, and the outcome
    """
    if "choice" not in training:
        return ""
    rows = [{"figure": name, "value": value} for name, value in training["choice"].items()]
    rows += [{"figure": name, "value": value} for name, value in training.get("progress", {}).items()]
    rows += [
        {"figure": f"evaluations: {name}", "value": str(value)} for name, value in training.get("evaluations", {}).items()
    ]
    rows += [{"figure": f"model: {name}", "value": str(value)} for name, value in training.get("model", {}).items()]
    text = tables.markdown(rows, ("figure", "value"))
    failed = [
        f"- {row['rung']}, after {row['updates']} updates: `{row['error'].strip().splitlines()[-1]}`"
        for row in training.get("failed attempts", [])
    ]
    return text + ("\n\nFailed attempts:\n\n" + "\n".join(failed) if failed else "")


def curve_table(path: Path, tasks: int = 9) -> str:
    """
    :param path: file of the evaluations
    :param tasks: number of tasks
    :return: each task's returns with falls ignored, by steps per task
    """
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        lines = [row for row in csv.DictReader(file) if row["protocol"] == "ignored"]
    rows: dict[int, Row] = {}
    for line in lines:
        row = rows.setdefault(int(line["timesteps"]), {"steps of each task": int(line["timesteps"]) // tasks})
        row[line["task"].removeprefix("h1-")] = float(line["mean_return"])
        row.setdefault("scores", []).append(float(line["score"] or 0.0))
    for row in rows.values():
        scores = row.pop("scores")
        row["normalized mean"] = sum(scores) / len(scores)
    columns = list(next(iter(rows.values()), {}))
    return tables.markdown([rows[steps] for steps in sorted(rows)], columns)
