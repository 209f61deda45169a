"""Markdown tables of a run's findings. Imports neither PyTorch nor NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_stages.files import Row

UPDATE_TARGET_MS = 16.0  # for a full medium update on one H100: the paper's 220,000 updates then take an hour
STEPS_PER_HOUR = 1_000_000  # of each task
EQUAL_TO_MCTX = "tf32, five heads"  # the same arithmetic in the same precision
NO_TIME = "no time left"


def markdown(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """
    :param rows: rows of the table
    :param columns: keys, also used as the header
    :return: a Markdown table, empty without rows; missing cells are dashes
    """
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    body = ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join([*lines, *body]) if body else ""


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("\n", " ").replace("|", "/")


def update_table(ladder: Row) -> str:
    """
    :param ladder: contents of ``ladder.json``
    :return: milliseconds, first calls and memory of one update by size and rung
    """
    columns = ("size", "rung", "update ms", "draw ms", "reanalyze ms", "learn ms", "first updates s", "reserved MiB", "error")
    rows = ladder.get("rungs", [])
    missing = [f"{row['size']}/{row['rung']}" for row in rows if row.get("error") == NO_TIME]
    table = markdown((row for row in rows if row.get("error") != NO_TIME), columns)
    return "\n\n".join(part for part in (table, f"No time was left for {', '.join(missing)}." if missing else "") if part)


def acting_table(ladder: Row) -> str:
    """
    :param ladder: contents of ``ladder.json``
    :return: milliseconds of acting, by number of roots
    """
    rows = [row for row in ladder.get("rungs", []) if "acting 9 ms" in row]
    return markdown(rows, ("size", "rung", *(f"acting {roots} ms" for roots in (9, 36, 72, 144, 288))))


def stepping_table(ladder: Row) -> str:
    """
    :param ladder: contents of ``ladder.json``
    :return: environment steps per second, by number of threads
    """
    return markdown(ladder.get("stepping", []), ("threads", "envs", "steps/s"))


def search_table(ladder: Row) -> str:
    """
    :param ladder: contents of ``ladder.json``
    :return: times of searches, compared with mctx
    """
    names = ("float32", "float32, five heads", "tf32, five heads", "bf16", "graphs", "graphs, bf16")
    columns = ("B", *(f"{name} ms" for name in names), "mctx ms", *(f"mctx / {name}" for name in names), "error")
    return markdown(ladder.get("searching", []), columns)


def sanity_table(sanity: Row) -> str:
    """
    :param sanity: contents of ``sanity.json``
    :return: what was checked and how it went
    """
    rows = []
    training, loading = (sanity.get(name, {}) for name in ("training", "save and load"))
    for precision in ("float32", "bfloat16"):
        if precision in training:
            found = training[precision]
            about = f"first {found['first difference']:.1e}, largest {found['largest difference']:.1e}"
            rows.append({"check": f"losses of a CPU, {precision}", "passed": found["within bounds"], "found": about})
    if "within bounds" in loading:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in loading.items() if name.startswith("largest"))
        rows.append({"check": "saved there, loaded on a CPU", "passed": loading["within bounds"], "found": differences})
    for name, part in sanity.items():
        if "error" in part:
            rows.append({"check": name, "passed": False, "found": part["error"].strip().splitlines()[-1]})
    return markdown(rows, ("check", "passed", "found"))


def targets_table(ladder: Row, training: Row, device: str) -> str:
    """
    :param ladder: contents of ``ladder.json``
    :param training: contents of ``training.json``
    :param device: name of the device
    :return: targets and measurements
    """
    rows: list[Row] = []
    paper = [row for row in ladder.get("rungs", []) if row["size"] == "paper" and "update ms" in row]
    if paper:
        best = min(paper, key=lambda row: row["update ms"])
        found = f"{best['update ms']:.1f} ms ({best['rung']})"
        rows.append(
            {"target": "full medium update <= 16 ms", "found": found, "reached": best["update ms"] <= UPDATE_TARGET_MS}
        )
    for row in ladder.get("searching", []):
        if "mctx ms" in row:
            ratios = {name.removeprefix("mctx / "): row[name] for name in row if name.startswith("mctx / ")}
            best = max(ratios, key=lambda name: float(ratios[name]))
            target = f"search no slower than mctx, B = {row['B']}"
            equal = ratios.get(EQUAL_TO_MCTX)
            found = "" if equal is None else f"{equal:.2f}x ({EQUAL_TO_MCTX}); "
            reached = None if equal is None else equal >= 1.0
            rows.append({"target": target, "found": f"{found}best {ratios[best]:.2f}x ({best})", "reached": reached})
    progress = training.get("progress", {})
    if progress:
        per_hour = progress["environment steps/s"] * 3600 / 9
        found = f"{per_hour:,.0f}, extrapolated from {progress['seconds']:.0f} s at constant speed"
        rows.append({"target": "1 M steps of each task in an hour", "found": found, "reached": per_hour >= STEPS_PER_HOUR})
        steps, seconds = progress["steps per task"], progress["seconds"]
        found = f"{steps:,} in {seconds:.0f} s"
        reached = steps * 420 / max(seconds, 420) >= 250_000  # longer runs at constant speed
        rows.append({"target": "250,000 steps of each task in seven minutes", "found": found, "reached": reached})
    text = markdown(rows, ("target", "found", "reached"))
    return f"{text}\n\nOn {device}." if rows else ""
