"""Weak and strong scaling: what a model of the exchange predicts for 1 to 1,024 ranks, beside what was measured.

python benchmarks/scaling.py --preset base --zero 1 --batch 8 --gpu h200 --strong-batch 1024
python benchmarks/scaling.py --measured benchmarks/results/throughput_MACHINE_*-ranks.json

Without --measured all is a prediction and the measured column stays empty. With it, every series of result files of
throughput.py (same settings, several numbers of ranks) is a table; its prediction takes the computing time from the
fewest ranks measured and adds the exchange, and no more ranks are predicted than were measured.

The model (`fmri_scale estimate` uses the same): a rank sends, in fp32 over rings, twice its gradients' bytes with ZeRO
0 to 2 (reduce-scatter and all-gather) and three times with ZeRO 3 (Rajbhandari et al. 2020, ZeRO, section 7); ZeRO 2
reduces and ZeRO 3 gathers anew in every forward pass of an accumulated step. Inside a machine the ring runs at
`node_link`; as soon as there is another machine, at the rank's share of the network. Half of the computing can hide
ZeRO 3's gathers; stages 0 to 2 reduce after the backward pass and hide nothing. Ideal is the same without exchange.
Not in the model: stragglers, reading, checkpoints, several jobs on one network.
Writes scaling_WHAT.json, .md and .svg under benchmarks/results/.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

from fmri_scale.config import Config, load_config
from fmri_scale.models import cost
from fmri_scale.training.estimate.communication import LATENCY_S, OVERLAP, bytes_sent, communication
from fmri_scale.training.estimate.devices import CPU_LINK, GPUS, LINK, Device
from fmri_scale.training.estimate.memory import FLOAT
from fmri_scale.training.estimate.speed import compute_seconds

ROOT = Path(__file__).resolve().parents[1]
RANKS = [2**k for k in range(11)]
SOURCES = {
    "a100": "NVLink 3: 600 GB/s both ways (NVIDIA A100 data sheet); network 200 Gbit/s per GPU (DGX A100 data sheet)",
    "h100": "NVLink 4: 900 GB/s both ways (NVIDIA H100 data sheet); network 400 Gbit/s per GPU (DGX H100 data sheet)",
    "h200": "NVLink 4: 900 GB/s both ways (NVIDIA H200 data sheet); network 400 Gbit/s per GPU (DGX H200 data sheet)",
    "cpu": "assumed, not measured: loopback or a 10 Gbit/s network",
}
"Where the bandwidths of links come from; the model takes one direction, less what links do not reach."
SETTINGS = ("preset", "zero_stage", "checkpointing", "compile", "backend", "loader")
"What the points of a series have in common."


@dataclass(frozen=True)
class Predicted:
    """A step at a number of ranks; `ideal` and `rate` are frames per second of all ranks, without and with exchange."""

    ranks: int
    batch: int
    global_batch: int
    sent: float
    link_s: float
    exposed_s: float
    step_s: float
    rate: float
    ideal: float

    @property
    def efficiency(self) -> float:
        """Share of the ideal."""
        return self.rate / self.ideal


def main() -> None:
    """Predict or compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", help="name in configs/model/")
    parser.add_argument("--zero", type=int, default=1, choices=range(4))
    parser.add_argument("--batch", type=int, default=8, help="clips of a forward pass of a rank")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes of a step and rank (weak)")
    parser.add_argument("--strong-batch", type=int, default=1024, help="clips of a step over all ranks (strong)")
    parser.add_argument("--gpu", default="h200", choices=sorted(GPUS))
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument("--measured", type=Path, nargs="+", help="result files of throughput.py")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    if args.measured:
        record = compare([json.loads(path.read_text()) for path in args.measured])
        stem = args.out / (args.measured[0].stem.rpartition("_")[0].replace("throughput", "scaling_measured"))
    else:
        record = predict(args)
        stem = args.out / f"scaling_{args.preset}_zero{args.zero}_{GPUS[args.gpu].name.replace(' ', '-')}"
    record["command"] = " ".join(["python benchmarks/scaling.py", *sys.argv[1:]])
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    plot(record, stem.with_suffix(".svg"))
    print(report(record))


def predict(args: argparse.Namespace) -> dict[str, Any]:
    """Return weak and strong scaling of a preset on a GPU, nothing of it measured."""
    device = GPUS[args.gpu]
    keys = [f"engine.zero_stage={args.zero}", "engine.dtype=bf16"]
    config = load_config([ROOT / f"configs/model/{args.preset}.yaml"], keys)
    series = []
    for kind in ("weak", "strong"):
        rows = []
        for ranks in RANKS:
            batch, whole = args.batch, args.batch * args.accumulation * ranks
            if kind == "strong":
                whole = args.strong_batch
                if whole % ranks:
                    continue
                batch = min(batch, whole // ranks)
            point = at(config, device, ranks, batch, whole, args.ranks_per_node)
            rows.append(row_of(point, None))
        series.append({"kind": kind, "of": f"{args.preset}, ZeRO {args.zero}", "rows": rows})
    return {
        "device": device.name,
        "date": date.today().isoformat(),
        "label": "PREDICTION, nothing measured",
        "inputs": inputs(args.gpu, device, args.ranks_per_node),
        "series": series,
    }


def at(config: Config, device: Device, ranks: int, batch: int, global_batch: int, ranks_per_node: int) -> Predicted:
    """Return the prediction for a number of ranks, computing included.

    Raises
    ------
    ValueError : the global batch is no multiple of the clips of one forward pass of all ranks.
    """
    config.optim.micro_batch, config.optim.global_batch = batch, global_batch
    return step(config, device, ranks, ranks_per_node, compute_seconds(config, device, ranks))


def step(config: Config, device: Device, ranks: int, ranks_per_node: int, compute_s: float) -> Predicted:
    """Return the prediction for a number of ranks whose computing takes `compute_s` in a step."""
    batch, whole = config.optim.micro_batch, config.optim.global_batch
    micro_steps, left = divmod(whole, batch * ranks)
    if left:
        raise ValueError(f"global batch {whole}: no multiple of {ranks} ranks x {batch} clips")
    u = cost(config.model).total.parameters * FLOAT
    stage = config.engine.zero_stage
    exchange = communication(u, stage, ranks, micro_steps, ranks_per_node, device, compute_s)
    step_s, frames = compute_s + exchange.exposed_s, whole * config.model.num_frames
    sent = bytes_sent(u, stage, ranks, micro_steps)
    return Predicted(
        ranks, batch, whole, sent, exchange.link_s, exchange.exposed_s, step_s, frames / step_s, frames / compute_s
    )


def compare(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the series that these results make, each with its prediction from the fewest ranks.

    Raises
    ------
    SystemExit : the files hold no series of several numbers of ranks.
    """
    gpus = {record["gpu"] for record in records}
    if len(gpus) > 1:
        raise SystemExit(f"results of different machines: {', '.join(map(str, gpus))}")
    gpu = gpus.pop()
    name, device = device_of(gpu)
    per_node = max(record["ranks_per_node"] or 1 for record in records)
    series = []
    for kind in ("weak", "strong"):
        for settings, rows in groups(records, kind).items():
            series.append({"kind": kind, "of": settings, "rows": against(rows, device, per_node, records[0]["set"])})
    if not series:
        raise SystemExit("no settings were measured at several numbers of ranks; see throughput.py --global-batch")
    return {
        "machine": records[0]["machine"],
        "gpu": gpu,
        "date": max(record["date"] for record in records),
        "load_before": max(record["load_before"] for record in records),
        "label": "measured, beside the prediction from the fewest ranks",
        "inputs": inputs(name, device, per_node),
        "series": series,
    }


def device_of(gpu: str | None) -> tuple[str, Device]:
    """Return key and links of what was measured; of a CPU nothing but the links is used."""
    if gpu is None:
        return "cpu", Device("CPU", 0, 1, 1, 1, 1, 0, CPU_LINK, CPU_LINK)
    key = next((key for key in GPUS if key.upper() in gpu.upper()), None)
    if key is None:
        raise SystemExit(f"{gpu}: links are known of {', '.join(GPUS)}")
    return key, GPUS[key]


def groups(records: list[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the points that worked by what they have in common, where several numbers of ranks were measured.

    Weak: the same clips of a step and rank. Strong: the same clips of a step. One point for each number of ranks.
    """
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in (row for record in records for row in record["rows"] if not row["failed"]):
        share = row["global_batch"] / row["ranks"] if kind == "weak" else row["global_batch"]
        words = [f"{name} {row[name]}" for name in SETTINGS] + [f"batch {row['batch']}"]
        words += [f"{share:g} clips a step" + " and rank" * (kind == "weak")]
        found[", ".join(words)].setdefault(row["ranks"], row)
    return {words: [rows[ranks] for ranks in sorted(rows)] for words, rows in found.items() if len(rows) > 1}


def against(rows: list[dict[str, Any]], device: Device, ranks_per_node: int, more: list[str]) -> list[dict[str, Any]]:
    """Return a series with its prediction: computing as at the fewest ranks, in proportion to the clips of a rank."""
    first = rows[0]
    preset = first["preset"]
    path = Path(preset) if preset.endswith(".yaml") else ROOT / f"configs/model/{preset}.yaml"
    config = load_config([path], [f"engine.zero_stage={first['zero_stage']}", *more])
    clip_s, told = 0.0, []
    for row in rows:
        config.optim.micro_batch, config.optim.global_batch = row["batch"], row["global_batch"]
        clips, measured_s = row["global_batch"] / row["ranks"], row["step_s"]["median"]
        if row is first:  # its exchange is taken off, so that its prediction is what was measured
            alone = step(config, device, row["ranks"], ranks_per_node, measured_s)
            clip_s = (measured_s - min(alone.exposed_s, 0.9 * measured_s)) / clips
        point = step(config, device, row["ranks"], ranks_per_node, clip_s * clips)
        told.append(row_of(point, measured_s))
    return told


def row_of(point: Predicted, measured_s: float | None) -> dict[str, Any]:
    """Return a row of a record; what was not measured is None."""
    rate = None if measured_s is None else point.rate * point.step_s / measured_s
    return {**vars(point), "efficiency": point.efficiency, "measured_step_s": measured_s, "measured_rate": rate}


def inputs(name: str, device: Device, ranks_per_node: int) -> dict[str, Any]:
    """Return what the model of the exchange assumes."""
    return {
        "ranks_per_node": ranks_per_node,
        "node_link_bytes_per_s": device.node_link,
        "network_link_bytes_per_s": device.network_link,
        "link_share_reached": None if name == "cpu" else LINK,
        "latency_s": LATENCY_S,
        "overlap_of_zero_3": OVERLAP,
        "source": SOURCES[name],
    }


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    given = record["inputs"]
    lines = [
        "# Scaling of training",
        "",
        f"**{record['label']}.** {record.get('machine') or record['device']}, {record['date']}; `{record['command']}`.",
        "",
        f"Links: {given['node_link_bytes_per_s'] / 1e9:g} GB/s of a rank inside a machine of "
        f"{given['ranks_per_node']} ranks, {given['network_link_bytes_per_s'] / 1e9:g} GB/s between machines "
        f"({given['source']}); {given['latency_s'] * 1e6:.0f} us a hop.",
    ]
    head = [
        "ranks",
        "batch",
        "global batch",
        "sent GB",
        "link ms",
        "waited ms",
        "step ms",
        "frames/s",
        "ideal frames/s",
    ]
    head += ["of ideal", "measured step ms", "measured frames/s"]
    for series in record["series"]:
        lines += ["", f"{series['kind'].capitalize()} scaling, {series['of']}:", ""]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in series["rows"]]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's cells; what was not measured stays empty."""
    told = [str(row["ranks"]), str(row["batch"]), str(row["global_batch"]), f"{row['sent'] / 1e9:.3g}"]
    told += [f"{row[name] * 1e3:.3g}" for name in ("link_s", "exposed_s")] + [f"{row['step_s'] * 1e3:.1f}"]
    told += [f"{row['rate']:,.1f}", f"{row['ideal']:,.1f}", f"{row['efficiency']:.3f}"]
    if row["measured_step_s"] is None:
        return [*told, "", ""]
    return [*told, f"{row['measured_step_s'] * 1e3:.1f}", f"{row['measured_rate']:,.1f}"]


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw frames per second over ranks: ideal, predicted and, where there is any, measured."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same figures give the same file
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(record["series"]), figsize=(5.5 * len(record["series"]), 4.5), layout="constrained", squeeze=False
    )
    for axes, series in zip(all_axes[0], record["series"], strict=True):
        rows = series["rows"]
        ranks = [row["ranks"] for row in rows]
        axes.plot(ranks, [row["ideal"] for row in rows], ":", color="grey", label="without exchange")
        axes.plot(ranks, [row["rate"] for row in rows], "-", color="#4477aa", label="predicted")
        measured = [(row["ranks"], row["measured_rate"]) for row in rows if row["measured_rate"] is not None]
        if measured:
            axes.plot(*zip(*measured, strict=True), "o", color="#cc3311", label="measured")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("ranks")
        axes.set_ylabel("frames per second, all ranks")
        axes.set_title(f"{series['kind']} scaling", fontsize=10)
        axes.legend()
    figure.suptitle(record["label"], fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
