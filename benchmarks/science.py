"""Does the platform find what is planted, nothing where nothing is, and go on after a kill? And what of real scans?

python benchmarks/science.py known_truth WORK             configs/experiments/known_truth.yaml
python benchmarks/science.py killed WORK                  the same in small, whole, and killed with SIGKILL three times
python benchmarks/science.py haxby WORK --folder DIR      haxby_objects.yaml; DIR: runs, events, mask

Each runs `fmri-scale experiment` in WORK, which goes on where it was stopped, and holds what was found against what is
claimed. Figures go to benchmarks/results/science_PART_MACHINE.json and .md; a claim that does not hold is written down
as one, and the exit code is 1.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from machine import processor, slug

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *(f"corpora.{name}.settings.{size}" for name in ("planted", "nothing") for size in ("subjects=24", "volumes=32")),
    "arms.token=[mask.strategy=token, mask.ratio=0.5, optim.steps=60, checkpoint.every_steps=20]",
    "seeds=[0]", "attribution.planted.permutations=200", "attribution.planted.clips=2",
)  # fmt: skip
"A known truth that is quick, for the kills; too small to find anything by."
KILL_AT = (
    "arms/token/seed-0/run/metrics.jsonl",
    "untrained/0/seed-0/features/planted.npz",
    "attribution/planted/test_openings.jsonl",
)
"Files at whose appearance an experiment is killed: in training, among features, in attribution."
SAME = ("report.html", "results.csv", "arms.csv", "attribution/planted/regions.csv", "tasks/planted/results.csv")
DECILE = 0.1
CONNECTIVITY = "connectivity (correlation)"


def main() -> int:
    """Run what is not done, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--folder", type=Path, help="of the Haxby runs")
    parser.add_argument("--seeds", default="", help="of known_truth and haxby, such as 0,1; theirs if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    record = {"machine": processor(), "date": str(date.today()), "load_before": os.getloadavg()[0]}
    given = [" --folder DIR" * (args.part == "haxby"), f" --seeds {args.seeds}" * bool(args.seeds)]
    record["command"] = f"python benchmarks/science.py {args.part} WORK{''.join(given)}"
    overrides = [f"seeds=[{args.seeds}]"] * bool(args.seeds) + [f"corpora.haxby.path={args.folder}"] * bool(args.folder)
    begun = time.monotonic()
    record |= PARTS[args.part](args.work, overrides)
    record["minutes"] = (time.monotonic() - begun) / 60
    text = page(record)
    print(text)
    stem = args.out / f"science_{args.part}_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return 0 if all(claim["holds"] for claim in record["claims"]) else 1


def known_truth(work: Path, overrides: list[str]) -> dict[str, Any]:
    """The cohort with planted regions and the one with none."""
    out = work / "known_truth"
    subprocess.run(command(out, "known_truth", overrides), cwd=ROOT, check=True)
    table, regions = pd.read_csv(out / "results.csv"), pd.read_csv(out / "attribution/planted/regions.csv")
    planted = json.loads((out / "data/planted/images/truth.json").read_text())["planted"]
    top = max(round(DECILE * len(regions)), len(planted))
    ranks = regions.set_index("region")["rank"][planted]
    area = table[table["metric"] == "auroc"].set_index(["task", "method"])
    pretrained, untrained = (area.loc[("planted", f"{name} (linear)")] for name in ("token", "untrained"))
    null = area.loc["nothing"]
    both = {("planted", CONNECTIVITY), ("nothing", CONNECTIVITY)} <= set(area.index)
    return {
        "title": "Known truth: 160 people with four planted regions; 160 people with nothing planted",
        "rows": rows_of(table),
        "regions": regions.head(top + 2)[["region", "rank", "z", "p_fwe"]].to_dict("records"),
        "planted": planted,
        "claims": [
            claim(
                "the pretrained probe beats the untrained backbone, intervals apart",
                pretrained["low"] > untrained["high"],
                f"{interval(pretrained)} against {interval(untrained)}",
            ),
            claim(
                "connectivity stands in both tables",
                both,
                "; ".join(interval(area.loc[(task, CONNECTIVITY)]) for task in ("planted", "nothing") if both),
            ),
            claim(
                f"the planted regions are among the first {top} of {len(regions)}",
                (ranks <= top).all(),
                ", ".join(f"{name} {rank}" for name, rank in ranks.items()),
            ),
            claim(
                "in the null cohort every interval holds chance",
                ((null["low"] <= 0.5) & (null["high"] >= 0.5)).all(),
                "; ".join(f"{name} {interval(row)}" for name, row in null.iterrows()),
            ),
        ],
    }


def killed(work: Path, _: list[str]) -> dict[str, Any]:
    """An experiment that is killed three times, beside one that is not."""
    whole, again = work / "small_whole", work / "small_killed"
    subprocess.run(command(whole, "known_truth", SMALL), cwd=ROOT, check=True)
    kills = [kill_at(again, mark) for mark in KILL_AT]
    subprocess.run(command(again, "known_truth", SMALL), cwd=ROOT, check=True)
    differ = [name for name in SAME if text_of(whole, name) != text_of(again, name)]
    figures = f"killed at {'; '.join(kills)}. Compared: {', '.join(SAME)}" + f"; differ: {differ}" * bool(differ)
    return {
        "title": "Known truth in small, killed and started again",
        "claims": [claim("killed three times and started again, it gives the same files", not differ, figures)],
    }


def haxby(work: Path, overrides: list[str]) -> dict[str, Any]:
    """Real scans; whatever comes out is told, so the only claim is that every baseline stands beside it."""
    out = work / "haxby"
    subprocess.run(command(out, "haxby_objects", overrides), cwd=ROOT, check=True)
    table = pd.read_csv(out / "results.csv")
    wanted = {"voxel patterns", CONNECTIVITY, "untrained (linear)", "majority"}
    return {
        "title": "Haxby 2001: 8 kinds of object, one person, leave-one-run-out over 8 runs",
        "rows": rows_of(table),
        "claims": [
            claim("all baselines stand in the table", wanted <= set(table["method"]), ", ".join(sorted(wanted)))
        ],
    }


PARTS = {"known_truth": known_truth, "killed": killed, "haxby": haxby}


def command(out: Path, name: str, overrides: tuple[str, ...] | list[str] = ()) -> list[str]:
    """Command line of an experiment."""
    program = Path(sys.executable).with_name("fmri-scale")
    file = ROOT / "configs" / "experiments" / f"{name}.yaml"
    return [str(program), "experiment", str(file), *overrides, "--out", str(out)]


def kill_at(out: Path, mark: str) -> str:
    """Kill an experiment with SIGKILL once a file is there; return what happened."""
    if (out / mark).exists():
        return f"{mark} (was there already)"
    child = subprocess.Popen(command(out, "known_truth", SMALL), cwd=ROOT)
    while child.poll() is None and not (out / mark).exists():
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    return mark if child.wait() == -signal.SIGKILL else f"{mark} (ended before)"


def text_of(out: Path, name: str) -> str:
    """Text of a file, without the folder's name."""
    return (out / name).read_text().replace(out.name, "")


def claim(text: str, holds: bool, figures: str) -> dict[str, Any]:
    """Return a claim with what bears it."""
    return {"claim": text, "holds": bool(holds), "figures": figures}


def interval(row: Any) -> str:
    """Value with its 95 % interval."""
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells of a table for the record."""
    kept = table[["task", "method", "metric", "value", "low", "high", "seed_sd", "units", "groups", "seeds"]]
    return json.loads(kept.to_json(orient="records"))


def page(record: dict[str, Any]) -> str:
    """The results as text."""
    where = f"{record['machine']}, {record['date']}, load {record['load_before']:.1f}"
    lines = [f"# {record['title']}", "", f"{where}; {record['minutes']:.0f} minutes; `{record['command']}`.", ""]
    for item in record["claims"]:
        lines.append(f"- {'holds' if item['holds'] else '**does not hold**'}: {item['claim']}: {item['figures']}")
    lines += ["", *table_of(record.get("rows", []))]
    if "regions" in record:
        lines += ["| region | rank | z | p over all regions |", "|---|---|---|---|"]
        for row in record["regions"]:
            mark = " (planted)" if row["region"] in record["planted"] else ""
            lines.append(f"| {row['region']}{mark} | {row['rank']} | {row['z']:.2f} | {row['p_fwe']:.3f} |")
        lines.append("")
    return "\n".join(lines)


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown table: a row a task and method, a column a metric."""
    if not rows:
        return []
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        text = f"{row['value']:.3f}" if row["low"] is None else interval(row)
        cells.setdefault((row["task"], row["method"]), {})[row["metric"]] = text
    units = f"{rows[0]['units']} units of {rows[0]['groups']} groups, {rows[0]['seeds']} seeds a task"
    lines = [f"Values with 95 % intervals by bootstrap over groups, means over seeds; {units}.", ""]
    lines += [f"| task | method | {' | '.join(metrics)} |", "|---|---|" + "---|" * len(metrics)]
    for (task, method), held in cells.items():
        lines.append(f"| {task} | {method} | {' | '.join(held.get(metric, '') for metric in metrics)} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
