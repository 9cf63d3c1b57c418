"""The place among peers: benchmarks/README.md, made from the figures in benchmarks/results/ and nothing else.

python benchmarks/peers.py            write the page
python benchmarks/peers.py --check    exit code 1 where the page is not the one that the results give

A comparison is a row: ours, the peer's, and how many times better ours is (below 1: worse, and said so). The rows of a
topic give one line at the top, with the best and the worst of them. A results file that is not there, or a figure it
lacks, gives a line under "Not measured". Every row names machine, date and load.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
PEERS = ("webdataset", "mosaicml-streaming", "litdata", "megatron-energon")
HEAD = """# The place among peers

Made by `python benchmarks/peers.py` from [results/](results); no figure here is typed. "Times better" is above 1 where
ours wins and below 1 where it loses. A load well above 0 means that others used the machine meanwhile; ratios of
interleaved runs and processor seconds bear that, wall times do not.
"""
NEVER = (
    "training step on a GPU, beside the published NeuroSTORM (`benchmarks/step.py --published DIR` is ready) and SwiFT",
    "any kernel on a GPU (`benchmarks/kernels.py` is ready; `results/static.md` counts compiled instructions)",
    "whole runs on GPUs: frames/s, MFU, data wait, scaling (`benchmarks/throughput.py` is ready)",
    "the time that the published code takes from an empty machine to its first training step",
    "anything on more than one machine, and any real object store",
)
"What no results file holds yet."


@dataclass(frozen=True)
class Row:
    """A comparison; `times` is how many times better ours is; `topic` is its line at the top of the page."""

    topic: str
    question: str
    ours: str
    peer: str
    times: float
    command: str
    source: Path
    when: str


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    text = page()
    if parser.parse_args().check:
        return 0 if PAGE.exists() and PAGE.read_text() == text else 1
    PAGE.write_text(text)
    return 0


def page() -> str:
    """Return the page."""
    found, missing = [], list(NEVER)
    for name, (rows_of, what) in SOURCES.items():
        files = sorted(RESULTS.glob(name))
        if not files:
            missing.append(what)
        for path in files:
            found += rows_of(json.loads(path.read_text()), path)
    if not any(RESULTS.glob("setup_*.json")):
        missing.append("from an empty folder to the first step, without a compiler (`benchmarks/setup.py` is ready)")
    lines = [HEAD, *in_short(found), *facts(), "## Every comparison", ""]
    lines += ["| question | ours | peer | times better | command | measured |", "|---|---|---|---|---|---|"]
    for row in found:
        link = f"[{row.when}](results/{row.source.with_suffix('.md').name})"
        times = f"**{_figure(row.times)}**" + (" (loses)" if row.times < 1 else "")
        lines.append(f"| {row.question} | {row.ours} | {row.peer} | {times} | `{row.command}` | {link} |")
    lines += ["", "## Not measured", "", *(f"- {line}" for line in missing), "", "## All results", ""]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        kind = " (a prediction, nothing measured)" if _is_prediction(record) else ""
        lines.append(f"- [{path.stem}](results/{path.with_suffix('.md').name}): {_when(record)}{kind}")
    return "\n".join(lines) + "\n"


def in_short(rows: list[Row]) -> Iterator[str]:
    """Yield a table with a line for each topic: from the least to the most times better, and where ours loses."""
    yield from ("| what | comparisons | times better | loses to |", "|---|---|---|---|")
    for topic in dict.fromkeys(row.topic for row in rows):
        of_topic = [row for row in rows if row.topic == topic]
        least, most = (_figure(pick(row.times for row in of_topic)) for pick in (min, max))
        span = least if least == most else f"{least} to {most}"
        lost = dict.fromkeys(row.peer.rpartition(":")[0] for row in of_topic if row.times < 1)
        yield f"| {topic} | {len(of_topic)} | {span} | {', '.join(lost) or 'none'} |"
    yield ""


def facts() -> Iterator[str]:
    """Yield what was measured without a peer's figure: from an empty folder to the first step, without a compiler."""
    for path in sorted(RESULTS.glob("setup_*.json")):
        record = json.loads(path.read_text())
        seconds, where = record["seconds"], f"[{_when(record)}](results/{path.with_suffix('.md').name})"
        yield f"**From an empty folder to the first training step**, no compiler there: {where}"
        yield ""
        yield from (f"- {name}: after {s:,.0f} s" for name, s in seconds.items())
        yield f"- the slim core alone, installed and imported: {record['slim_s']:,.0f} s"
        for name, outcome in record["tried"].items():
            said = f" (`{outcome['said']}`)" if outcome["said"] else ""
            yield f"- {name}: {'can' if outcome['installed'] else 'cannot'} be installed{said}"
        yield ""


def step_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """A training step on a CPU beside the published NeuroSTORM's and SwiFT's: time, processor time, memory."""
    keys = {"step_s": "s", "processor_s": "processor seconds", "peak_gb": "peak memory, GB"}
    for what, sides in record["pairs"].items():
        (_, ours), (peer, theirs) = sides.items()
        for key, unit in keys.items():
            yield Row(
                f"training step on a CPU, {what}" + (": memory" if key == "peak_gb" else ": time"),
                f"training step of the base model on a CPU, a clip of {record['frames']} frames, {what}: {unit}",
                _figure(ours[key]),
                f"{peer}: {_figure(theirs[key])}",
                theirs[key] / ours[key],
                record["command"],
                path,
                _when(record),
            )


def earlier_step_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """Results of before step_published.py, which hold a time of the published code that was taken apart from ours."""
    theirs = record.get("published", {})
    for part in theirs and (("forward_s",), ("backward_s",), ("forward_s", "backward_s")):
        ours_s, theirs_s = (sum(side[name] for name in part) for side in (record, theirs))
        yield Row(
            "training step on a CPU, masked autoencoder: time, taken apart",
            f"training step of the {record['model']} model on a CPU, one clip: {' and '.join(part)}".replace("_s", "")
            + ", s",
            _figure(ours_s),
            f"published NeuroSTORM with mamba's reference scan, timed before on two such cores: {_figure(theirs_s)}",
            theirs_s / ours_s,
            record["command"],
            path,
            _when(record),
        )


def gpu_step_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """A training step on a GPU beside the published code's: none where only a prediction was written."""
    for row in record["rows"]:
        if not (record["gpu"] and row.get("ours") and row.get("published")):
            continue
        for key, what in (("step_us", "time of a step, us"), ("peak_gb", "peak memory, GB")):
            ours, theirs = row["ours"][key], row["published"][key]
            yield Row(
                "training step on a GPU",
                f"training step of the base model on a GPU, {row['batch']} clips: {what}",
                _figure(ours),
                f"published NeuroSTORM: {_figure(theirs)}",
                theirs / ours,
                record["command"],
                path,
                _when(record),
            )


def loader_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """Clips per second of processor time, and the wait for the first, beside four loaders with as many processes."""
    rows = {(row["system"], row["workers"]): row for row in record["rows"] if not row["options"]}
    measures = (
        ("gb_per_processor_s", "read, GB per processor second", False),
        ("first_batch_s", "wait for the first batch, s", True),
    )
    for key, what, less in measures:
        for workers in (1, 2):
            for peer in PEERS:
                if (peer, workers) not in rows:
                    continue
                ours, theirs = rows["ours", workers][key], rows[peer, workers][key]
                yield Row(
                    f"loader: {what}",
                    f"loader, {workers} process{'es' * (workers > 1)}: {what}",
                    _figure(ours),
                    f"{peer}: {_figure(theirs)}",
                    theirs / ours if less else ours / theirs,
                    "python benchmarks/loader.py",
                    path,
                    _when(record),
                )


def sharding_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """A whole build of a run beside inflating its file."""
    for kind, row in record["rows"].items():
        yield Row(
            "a whole build of shards, beside inflating the file alone",
            f"shards of a {kind} run of {record['source_frames']} volumes, whole build, processor seconds",
            _figure(row["build_processor_s"]),
            f"Python's gzip, inflating the file alone: {_figure(row['gzip_processor_s'])}",
            1 / row["times_gzip_processor"],
            "python benchmarks/sharding_speed.py",
            path,
            _when(record),
        )


def published_sharding_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """A run made ready beside the published scripts: processor time, memory, bytes."""
    keys = {"processor_s": "processor seconds", "peak_gb": "peak memory, GB", "stored_mb": "stored, MB"}
    peers = {"neurostorm": "published NeuroSTORM's script", "swift": "published SwiFT's script"}
    for kind, sides in record["rows"].items():
        for name, peer in peers.items():
            for key, what in keys.items() if name in sides else ():
                ours, theirs = sides["ours"][key], sides[name][key]
                yield Row(
                    f"a run made ready, beside the published scripts: {what.partition(',')[0]}",
                    f"a {kind} run of {record['source_frames']} volumes made ready for training: {what}",
                    _figure(ours),
                    f"{peer}: {_figure(theirs)}",
                    theirs / ours,
                    record["command"],
                    path,
                    _when(record),
                )


def fidelity_rows(record: dict[str, Any], path: Path) -> Iterator[Row]:
    """Unexplained variance of a series after int8, with a scale for each voxel and with one for the run."""
    series = {row["series"]: row["median"] for row in record["round_trip"]}
    for name, ours in series.items():
        what, _, kind = name.rpartition(": ")
        if kind != "a scale a voxel":
            continue
        theirs = series[f"{what}: one scale a run"]
        yield Row(
            "variance that int8 leaves unexplained",
            f"int8 round trip, {what}: median correlation (times: unexplained variance)",
            f"{ours:.5f}",
            f"one scale a run, as published: {theirs:.5f}",
            (1 - theirs**2) / (1 - ours**2),
            "python benchmarks/fidelity.py",
            path,
            _when(record),
        )


def no_rows(_: dict[str, Any], __: Path) -> Iterator[Row]:
    """No comparison with a peer: the results stand on their own page."""
    return iter(())


SOURCES = {
    "step_cpu_*.json": (earlier_step_rows, "training step on a CPU"),
    "step_published_*.json": (
        step_rows,
        "training step on a CPU with the published code in the same run (`benchmarks/step_published.py` is ready)",
    ),
    "step_[!cp]*.json": (gpu_step_rows, "training step on a GPU"),
    "loader_[!s]*.json": (loader_rows, "loader beside its peers"),
    "sharding_speed_*.json": (sharding_rows, "sharding beside gunzip (`benchmarks/sharding_speed.py` is ready)"),
    "sharding_published_*.json": (
        published_sharding_rows,
        "sharding beside the published scripts (`benchmarks/sharding_published.py` is ready)",
    ),
    "fidelity_*.json": (fidelity_rows, "fidelity of int8"),
    "science_known_truth_*.json": (no_rows, "what is planted, found (`benchmarks/science.py known_truth` is ready)"),
    "science_killed_*.json": (no_rows, "an experiment killed and resumed (`benchmarks/science.py killed` is ready)"),
    "science_haxby_*.json": (no_rows, "objects seen, from real scans (`benchmarks/science.py haxby` is ready)"),
}
"Names of results files: the rows they give, and what is not measured without them."


def _figure(value: float) -> str:
    """Return a number with three digits, whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _is_prediction(record: dict[str, Any]) -> bool:
    """Whether a record holds figures of a GPU that were computed, not measured."""
    return not record.get("gpu") and bool(record.get("floor_of") or record.get("device"))


def _when(record: dict[str, Any]) -> str:
    """Return machine, date and load of a record, as far as it tells them."""
    load = record.get("load_before", record.get("load"))
    if isinstance(load, list):
        load = max(load)
    told = [record.get("machine", record.get("gpu")), record.get("date"), None if load is None else f"load {load:.1f}"]
    return ", ".join(str(part) for part in told if part)


if __name__ == "__main__":
    sys.exit(main())
