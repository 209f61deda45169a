"""
Draw pictures of the pages into ``docs/images``.

    python experiments/pictures.py             # pendulum.png and toy.png, from the tables in docs/results.md
    python experiments/pictures.py cheetah     # cheetah.png, from the tables in docs/dm_control.md
    python experiments/pictures.py dmc_walker  # dmc_walker.png, likewise
    python experiments/pictures.py h1_mean     # h1_mean.png, from the tables in docs/results.md
    python experiments/pictures.py h1_suite    # h1_suite.png: how episodes of the nine tasks begin; needs OpenGL
    python experiments/pictures.py loop        # loop.png: what takes turns in a training

The curves of a run are drawn by ``ezm plot``.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
CONTROL = {  # tasks, budgets of the published means, and the headings of both tables in docs/dm_control.md
    "cheetah": (("cheetah-run",), (25_000, 50_000, 100_000), "The cheetah", "The cheetah: what others publish"),
    "dmc_walker": (
        ("walker-stand", "walker-walk", "walker-run"),
        (25_000, 50_000, 100_000),
        "The walker",
        "The walker: what others publish",
    ),
}
COLORS = ("#c23b22", "#2a6fbb", "#888888", "#3a923a")


def numbers(cell: str) -> list[float]:
    """
    :param cell: of a table
    :return: the numbers in it, without thousands separators
    """
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?=[,\s]|$)", cell)]


def tables(text: str, heading: str) -> list[list[list[str]]]:
    """
    :param text: a page in Markdown
    :param heading: of a section or a part of one
    :return: cells of the tables in it, with their heads
    :raises LookupError: if there is none
    """
    found: list[list[list[str]]] = []
    if match := re.search(rf"\n(##+) {re.escape(heading)}\n(.*?)(?=\n##+ |\Z)", text, re.DOTALL):
        for block in re.findall(r"(?:^\|.*\n)+", match[2] + "\n", re.MULTILINE):
            head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            found.append([head, *rows])
    if not found:
        raise LookupError(f"there is no table below {heading!r}")
    return found


def table(text: str, heading: str) -> list[list[str]]:
    """
    :param text: a page in Markdown
    :param heading: of a section
    :return: cells of the first table in it, without its head
    :raises LookupError: if there is none
    """
    return tables(text, heading)[0][1:]


def new_figure(width: float, height: float) -> Figure:
    """
    :param width: inches
    :param height: inches
    :return: a figure with a canvas of its own
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_pendulum(rows: list[list[str]]) -> Figure:
    """
    :param rows: algorithm, steps, return of each seed, mean
    :return: mean and range over the seeds, against steps
    """
    curves: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for algorithm, steps, *cells in rows:
        curves[algorithm].append((numbers(steps)[0], [value for cell in cells[:-1] for value in numbers(cell)]))
    figure = new_figure(6.6, 3.6)
    panel = figure.subplots()
    for color, (algorithm, points) in zip(COLORS, curves.items(), strict=True):
        steps = [step for step, _ in points]
        seeds = [values for _, values in points]
        panel.plot(steps, [np.mean(values) for values in seeds], marker="o", color=color, label=algorithm)
        panel.fill_between(steps, [min(values) for values in seeds], [max(values) for values in seeds], color=color, alpha=0.2)
    panel.set_xlabel("environment steps")
    panel.set_ylabel("return: mean and range of the seeds")
    panel.set_title("Pendulum-v1", fontsize=11)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8)
    return figure


def draw_toy(rows: list[list[str]]) -> Figure:
    """
    :param rows: task, random, SAC, EZ-M on all, EZ-M alone, ...
    :return: shares of the way from random to SAC, with the seeds as points
    """
    figure = new_figure(8.0, 3.2)
    panel = figure.subplots()
    for index, (_, random, sac, together, alone, *_) in enumerate(rows):
        (low,), (high,) = numbers(random), numbers(sac)
        shares = [(value - low) / (high - low) for value in numbers(together)]
        (single,) = [(value - low) / (high - low) for value in numbers(alone)]
        labels = ("EZ-M on all four, 4,000 steps each", "EZ-M on it alone, 4,000 steps") if index == 0 else (None, None)
        panel.bar(index - 0.2, np.mean(shares), 0.38, color=COLORS[0], label=labels[0])
        panel.plot([index - 0.2] * len(shares), shares, "k.", markersize=5)
        panel.bar(index + 0.2, single, 0.38, color="#e8a090", label=labels[1])
    panel.axhline(1.0, color=COLORS[1], linestyle="--", label="SAC on it alone, 40,000 steps")
    panel.set_xticks(range(len(rows)), [row[0] for row in rows])
    panel.set_ylabel("from random (0) to SAC (1)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    return figure


def draw_control(rows: list[list[str]], published: list[list[str]], tasks: Sequence[str], budgets: Sequence[int]) -> Figure:
    """
    :param rows: environment steps, updates, minutes, then return and deviation of each task
    :param published: method, then its returns in each task after each of the budgets
    :param tasks: their names
    :param budgets: environment steps
    :return: the evaluations of a training among published means
    """
    figure = new_figure(4.0 + 3.2 * len(tasks), 3.8)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for place, (panel, task) in enumerate(zip(panels, tasks, strict=True)):
        points = [(numbers(row[0])[0], *numbers(row[3 + place].replace("±", " "))) for row in rows]
        panel.errorbar(*zip(*points, strict=True), marker="o", capsize=3, linewidth=2, color="black", label="EZ-M, one seed")
        for index, (method, *cells) in enumerate(published):
            own = cells[place * len(budgets) : (place + 1) * len(budgets)]
            known = [(at, numbers(cell)[0]) for at, cell in zip(budgets, own, strict=True) if cell]
            style = {"marker": "sD^vP*Xph"[index], "markersize": 5, "linewidth": 1, "color": f"C{index}"}
            panel.plot([at for at, _ in known], [value for _, value in known], **style, label=method)
        panel.set_xlabel("environment steps")
        panel.set_title(task, fontsize=11)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("return")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def draw_mean(own: list[list[list[str]]], published: list[list[str]]) -> Figure:
    """
    :param own: table of each seed: steps, nine returns, normalized mean, published mean
    :param published: head, then for each method its means after the steps of the head
    :return: normalized means against steps
    """
    figure = new_figure(9.0, 4.4)
    panel = figure.subplots()
    for index, (head, *rows) in enumerate(own):
        points = [(numbers(row[0])[0], numbers(row[10])[0]) for row in rows]
        label = f"sb3-ezm, {head[0].partition(',')[0]}"
        panel.plot(
            *zip(*points, strict=True), color="black", linewidth=2, linestyle=("-", "--", ":", "-.")[index], label=label
        )
    steps = [numbers(cell)[0] for cell in published[0][1:-1]]
    for index, (method, *cells, _) in enumerate(published[1:]):
        known = [(at, numbers(cell)[0]) for at, cell in zip(steps, cells, strict=True) if cell]
        style = {"marker": "sD^vP*Xphd<"[index], "markersize": 5, "linewidth": 1, "color": f"C{index % 10}"}
        style["linestyle"] = ("-", "--")[index // 10]  # there are ten colors
        panel.plot(*zip(*known, strict=True), **style, label=method)
    panel.set_xlabel("environment steps of each task")
    panel.set_ylabel("normalized mean of nine H1 tasks")
    panel.grid(alpha=0.25)
    figure.legend(*panel.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def draw_loop() -> Figure:
    """
    :return: what takes turns in a training, as boxes and arrows; numbers as in docs/architecture.md
    """
    figure = new_figure(9.0, 3.2)
    axes = figure.add_subplot(xlim=(0.0, 18.0), ylim=(0.4, 7.0))
    axes.axis("off")
    places = {
        "act": (3.0, 5.2, "1  act\nsearch the model:\n$C$ candidates, $N$ simulations"),
        "step": (3.0, 1.6, "environments\none or more of each task"),
        "store": (9.0, 1.6, "2  store\na prioritized replay for each task"),
        "draw": (15.0, 1.6, "3  draw\nequal shares of every task,\nsegments of $K + n$ steps"),
        "reanalyze": (15.0, 5.2, "4  reanalyze\nsearch drawn states again:\nvalue and policy targets"),
        "learn": (9.0, 5.2, "5  learn\nunroll $K$ steps, losses, Adam"),
    }
    look = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": COLORS[1], "linewidth": 1.5}
    boxes = {
        name: axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=look).get_bbox_patch()
        for name, (x, y, text) in places.items()
    }
    arrows = (
        ("act", "step", "actions", "-"),
        ("step", "store", "", "-"),
        ("store", "draw", "", "-"),
        ("draw", "reanalyze", "segments", "-"),
        ("reanalyze", "learn", "", "-"),
        ("learn", "act", "", "-"),
        ("learn", "store", "new priorities", "--"),
    )
    for start, end, label, line in arrows:
        (x, y, _), (to_x, to_y, _) = places[start], places[end]
        arrow = {"arrowstyle": "-|>", "linewidth": 1.3, "linestyle": line, "color": "#444444"}
        ends = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 6.0, "shrinkB": 6.0}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow | ends)
        if label:
            axes.text((x + to_x) / 2, (y + to_y) / 2, label, ha="center", va="center", fontsize=9, backgroundcolor="white")
    note = r"a target network $\theta^-$, which follows the learner, searches in 1 and 4"
    axes.text(9.0, 6.75, note, ha="center", fontsize=9, color="#444444")
    return figure


def draw_suite(path: Path) -> None:
    """
    :param path: of the picture: the first state of each task of ``h1-medium``, three in a row
    """
    from sb3_ezm.video import prefer_egl

    prefer_egl()
    from PIL import Image

    from sb3_ezm import make_task_set
    from sb3_ezm.multitask.factory import make_task_env

    tasks, (width, height), gap = make_task_set("h1-medium"), (300, 225), 4
    sheet = Image.new("RGB", (3 * (width + gap) - gap, 3 * (height + gap) - gap), "white")
    for index, name in enumerate(tasks.names):
        env = make_task_env(tasks, name, render_mode="rgb_array", env_kwargs={"width": width, "height": height})
        env.reset(seed=0)
        sheet.paste(Image.fromarray(env.render()), (index % 3 * (width + gap), index // 3 * (height + gap)))
        env.close()
    sheet.quantize(256).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "pendulum, toy, cheetah, dmc_walker, h1_mean, h1_suite or loop (default: the first two)"
    parser.add_argument("names", nargs="*", metavar="NAME", default=["pendulum", "toy"], help=names)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name in args.names:
        path = args.out / f"{name}.png"
        if name == "h1_suite":
            draw_suite(path)
        elif name == "loop":
            draw_loop().savefig(path, dpi=100)
        elif name == "toy":
            draw_toy(table(text, "Toy suite")).savefig(path, dpi=100)
        elif name in CONTROL:
            page = (ROOT / "docs" / "dm_control.md").read_text(encoding="utf-8")
            tasks, budgets, *headings = CONTROL[name]
            draw_control(*(table(page, heading) for heading in headings), tasks, budgets).savefig(path, dpi=100)
        elif name == "h1_mean":
            draw_mean(tables(text, "Twice the rate"), tables(text, "Beside other methods")[0]).savefig(path, dpi=100)
        elif name == "pendulum":
            draw_pendulum(table(text, "Pendulum-v1")).savefig(path, dpi=100)
        else:
            parser.error(f"there is no picture {name!r}: pendulum, toy, {', '.join(CONTROL)}, h1_mean, h1_suite, loop")
        print(path)


if __name__ == "__main__":
    main()
