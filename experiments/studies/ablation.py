"""Which parts of the method matter: the preset without each of them; and `compat`, with each behavior of the released code."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.studies.report import Claim, Report, bars
from experiments.studies.scores import CANNOT_TELL, SEEN, Final, final_of, table_of, verdict
from experiments.studies.trainings import Training, extent_of, ezm_arguments, run_trainings
from experiments.studies.variants import ABLATIONS, ADDITIONS, WITHOUT_SETTING, Variant, applicable, effective, released
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.errors import ConfigurationError, counted, did_you_mean
from sb3_ezm.evaluation import Interval, score_difference, score_mean
from sb3_ezm.tasks.registry import default_preset

BASE = "base"
_EMBEDDINGS = {f"policy_kwargs.embed_{network}" for network in ("representation", "dynamics", "reward", "prediction")}


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    tasks = resolve_tasks(args.tasks)
    preset = args.preset or default_preset(tasks.names) or "small"
    if args.study == "compat":
        candidates, notes = (
            released(max(spec.action_size for spec in tasks)),
            ["No option: " + "; ".join(WITHOUT_SETTING) + "."],
        )
    else:
        candidates, notes = (*ABLATIONS, *ADDITIONS), []
    variants, unchanged = applicable(_chosen(candidates, args.only), effective(preset, args.set))
    if len(tasks) == 1:  # nothing to share a replay with, and no embedding
        variants = [v for v in variants if not ({"independent_replay"} | _EMBEDDINGS) & set(v.changes)]
        notes.append("One task has neither a task embedding nor a replay of its own.")
    if unchanged:
        notes.append("Already so in these settings: " + ", ".join(variant.name for variant in unchanged) + ".")
    copies = ("--envs-per-task", args.envs_per_task) if args.envs_per_task else ()
    if copies:
        notes.append(f"Environments of each task: {args.envs_per_task}; steps are means over the tasks.")
    trainings = [
        Training(variant.name, seed, ezm_arguments(args, variant.pairs(), (*variant.options, *copies)))
        for variant in (Variant(BASE, "unchanged"), *variants)
        for seed in range(args.seeds)
    ]
    failed = run_trainings(trainings, args.out, args.workers, args.minutes)
    report = Report(args.study, f"{' '.join(args.tasks)}, preset {preset}, {extent_of(args)}", notes=notes)
    # A part that these settings lack anyway is no rival: to be worse than without it is to be worse than the unchanged ones.
    parts = [part.name for part in applicable(ABLATIONS, effective(preset, args.set))[0]]
    differences = _compare(report, variants, parts, trainings, args)
    unit = "score" if tasks.has_scores else "return"
    report.write(args.out, bars(differences, f"{unit} minus that of the unchanged settings") if differences else None)
    return 1 if failed else 0


def _chosen(candidates: tuple[Variant, ...], only: list[str]) -> tuple[Variant, ...]:
    names = {variant.name: variant for variant in candidates}
    for name in only:
        if name not in names:
            raise ConfigurationError(f"--only: there is no variant {name!r}. {did_you_mean(name, names)}")
    return tuple(variant for name, variant in names.items() if not only or name in only)


def _finals(name: str, trainings: list[Training], out: Path, protocol: str) -> dict[int, Final]:
    found = {t.seed: final_of(t, out, protocol) for t in trainings if t.name == name}
    return {seed: final for seed, final in found.items() if final is not None}


def _compare(
    report: Report, variants: list[Variant], parts: list[str], trainings: list[Training], args: argparse.Namespace
) -> dict[str, Interval]:
    base = _finals(BASE, trainings, args.out, args.protocol)
    if not base:
        report.notes.append("No training with the unchanged settings has ended yet: call again.")
        return {}
    first = next(iter(base.values()))
    names = list(first.scores)
    report.rows.append(_row(Variant(BASE, "unchanged"), list(base.values()), names))
    differences: dict[str, Interval] = {}
    known: dict[str, list[Final]] = {}
    for variant in variants:
        own = _finals(variant.name, trainings, args.out, args.protocol)
        seeds = sorted(own.keys() & base.keys())
        if not seeds:
            report.rows.append({"settings": variant.name, "what": variant.about, "seeds": 0})
            continue
        finals = [own[seed] for seed in seeds]
        difference = score_difference(table_of(finals, names), table_of([base[seed] for seed in seeds], names))
        report.rows.append({**_row(variant, finals, names), "difference": difference})
        differences[variant.name], known[variant.name] = difference, finals
    for variant in variants:
        if variant.claim:
            report.claims.append(_claim(variant, differences, known, parts, first.unit))
    return differences


def _row(variant: Variant, finals: list[Final], names: list[str]) -> dict[str, object]:
    return {
        "settings": variant.name,
        "what": variant.about,
        "seeds": len(finals),
        "environment steps of each task": min(final.steps for final in finals),
        f"mean {finals[0].unit}": score_mean(table_of(finals, names)),
        "minutes": sum(final.seconds for final in finals) / 60.0 / len(finals),
    }


def _claim(
    variant: Variant, differences: dict[str, Interval], known: dict[str, list[Final]], parts: list[str], unit: str
) -> Claim:
    if variant.name not in differences:
        return Claim(variant.claim, CANNOT_TELL, "no training has ended yet")
    difference, own = differences[variant.name], known[variant.name]
    because = f"without it the mean {unit} changes by {difference}, {counted(len(own), 'seed')}"
    found = verdict(difference, len(own), -1)
    if "most critical" in variant.claim and found == SEEN:
        undecided = [name for name in parts if name != variant.name and not _is_worse(own, known.get(name, []))]
        if undecided:
            found, because = CANNOT_TELL, f"{because}; not shown to be worse than {', '.join(undecided)}"
    return Claim(variant.claim, found, because)


def _is_worse(finals: list[Final], others: list[Final]) -> bool:
    """Whether there are enough seeds of both to say that the scores of the first are lower."""
    if not others:
        return False
    tasks = list(finals[0].scores)
    difference = score_difference(table_of(finals, tasks), table_of(others, tasks))
    return verdict(difference, min(len(finals), len(others)), -1) == SEEN
