"""An estimate as text for the terminal."""

from collections.abc import Iterator

from fmri_scale.training.estimate.job import Estimate
from fmri_scale.training.progress import duration

FULL = 0.95
"Share of a device's memory that a run can use."


def as_lines(e: Estimate) -> Iterator[str]:
    """Yield lines: the job, memory by part, time, data, exchange, duration."""
    m, c = e.memory, e.communication
    size = f"{e.parameters:,} parameters, {e.micro_steps} forward passes a step"
    yield f"{e.nodes} x {e.ranks_per_node} {e.device}: {size}"
    yield "memory of a rank (parts do not all live at once)"
    parts = {
        "parameters": m.parameters,
        "optimizer state": m.optimizer,
        "gradients, buffers": m.gradients_and_buffers,
        "activations": m.activations,
        "libraries": m.runtime,
        "peak": m.peak,
    }
    for name, size_b in parts.items():
        yield f"  {name:<20}{size_b / 1e9:10.3f} GB"
    yield f"  {'there is':<20}{e.device_memory / 1e9:10.3f} GB"
    if m.peak > FULL * e.device_memory:
        yield "  DOES NOT FIT: lower optim.micro_batch, raise engine.zero_stage, or set model.checkpoint_blocks=true"
    yield f"  {'clips read ahead':<20}{m.loader / 1e9:10.3f} GB of the machine's memory"
    yield "a step"
    yield f"  {'operations':<20}{e.step_flops / 1e12:10.3f} TFLOP over all ranks"
    yield f"  {'computing':<20}{e.compute_s:10.4f} s"
    sent = f"{c.exposed_s:10.4f} s that computing waits, of {c.link_s:.4f} s; a rank sends {c.bytes_sent / 1e6:,.1f} MB"
    yield f"  {'exchange':<20}{sent}"
    yield f"  {'predicted':<20}{e.step_s:10.4f} s: {e.clips / e.steps / e.step_s:,.2f} clips/s"
    yield f"  {'tokens':<20}{e.tokens_per_step:10,}"
    yield "data"
    yield f"  {'read':<20}{e.read_per_node / 1e6:10.1f} MB/s a machine, {e.clip_bytes / 1e6:.2f} MB a clip"
    yield f"  {'checkpoint':<20}{e.checkpoint_bytes / 1e9:10.3f} GB"
    yield "the run"
    yield f"  {e.steps:,} steps, {e.clips:,} clips: {duration(e.run_s)} (h:mm:ss)"
    if e.clips_per_epoch is not None and e.epoch_s is not None:
        yield f"  an epoch is {e.clips_per_epoch:,} clips: {duration(e.epoch_s)}; the run makes {e.epochs:.2f}"
    else:
        yield "  data.corpus is not set: no epochs; sizes of clips are those of the MNI152 brain mask"
