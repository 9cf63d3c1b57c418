"""Everything about a run that arithmetic can tell, for a configuration on a number of machines."""

from dataclasses import dataclass

from fmri_scale.config import Config
from fmri_scale.data import open_corpora, sample_table
from fmri_scale.data.pool import clips_per_sample
from fmri_scale.errors import ConfigError
from fmri_scale.models import cost
from fmri_scale.models.shapes import encoder_stages
from fmri_scale.training.ds_config import accumulation
from fmri_scale.training.estimate.communication import Communication, communication
from fmri_scale.training.estimate.devices import Device
from fmri_scale.training.estimate.memory import FLOAT, Memory, checkpoint_bytes, memory
from fmri_scale.training.estimate.patches import computed_patches
from fmri_scale.training.estimate.speed import compute_seconds
from fmri_scale.training.views import stretch_frames
from sharding.mask import brain_mask

__all__ = ["Estimate", "checkpoint_bytes", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """A run in numbers; times in s, sizes in bytes, operations of the whole job.

    Attributes
    ----------
    micro_steps : forward passes of a rank per optimizer step.
    step_flops : operations of a step over all ranks, recomputation included.
    step_s : predicted seconds of a step, computing and exposed exchange.
    clip_bytes : read from the corpus for one clip.
    read_per_node : bytes per second that each machine reads at the predicted speed.
    clips_per_epoch : clips of the split; None without a corpus.
    """

    device: str
    nodes: int
    ranks_per_node: int
    parameters: int
    memory: Memory
    device_memory: float
    micro_steps: int
    step_flops: float
    compute_s: float
    communication: Communication
    step_s: float
    tokens_per_step: int
    clip_bytes: float
    read_per_node: float
    checkpoint_bytes: float
    steps: int
    clips: int
    clips_per_epoch: int | None

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def run_s(self) -> float:
        """Seconds of all steps, without checkpoints and pictures."""
        return self.steps * self.step_s

    @property
    def epoch_s(self) -> float | None:
        """Seconds of one pass over the data."""
        return None if self.clips_per_epoch is None else self.clips_per_epoch * self.run_s / self.clips

    @property
    def epochs(self) -> float | None:
        """Passes over the data in the run."""
        return self.clips / self.clips_per_epoch if self.clips_per_epoch else None


def estimate(config: Config, nodes: int, ranks_per_node: int, device: Device) -> Estimate:
    """Return the estimate of a run.

    Parameters
    ----------
    ranks_per_node : GPUs, or CPU processes, of each machine.
    device : of each rank.

    Raises
    ------
    ConfigError : no node or no GPU, or the global batch does not divide over the ranks.
    DataError, CorpusError : data.corpus is set and cannot be opened.
    """
    for what, number in (("nodes", nodes), ("gpus", ranks_per_node)):
        if number < 1:
            raise ConfigError(f"--{what} {number}: expected at least 1")
    optim, model, world_size = config.optim, config.model, nodes * ranks_per_node
    micro_steps = accumulation(optim.global_batch, optim.micro_batch, world_size)
    patches = computed_patches(model)
    total = cost(model, patches=patches).total
    compute_s = compute_seconds(config, device, world_size)
    u, stage = total.parameters * FLOAT, config.engine.zero_stage
    exchange = communication(u, stage, world_size, micro_steps, ranks_per_node, device, compute_s)
    step_s = compute_s + exchange.exposed_s
    num_voxels, per_epoch = corpus_facts(config)
    positions = encoder_stages(model, patches)[0].positions
    clip_bytes = bytes_of_clip(config, num_voxels)
    return Estimate(
        device=device.name,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        parameters=total.parameters,
        memory=memory(config, world_size, "cpu" if device.name == "CPU" else "gpu"),
        device_memory=device.memory,
        micro_steps=micro_steps,
        step_flops=(total.forward_flops + total.backward_flops) * optim.global_batch,
        compute_s=compute_s,
        communication=exchange,
        step_s=step_s,
        tokens_per_step=positions * model.num_frames * optim.global_batch,
        clip_bytes=clip_bytes,
        read_per_node=clip_bytes * optim.global_batch / nodes / step_s,
        checkpoint_bytes=checkpoint_bytes(config),
        steps=optim.steps,
        clips=optim.steps * optim.global_batch,
        clips_per_epoch=per_epoch,
    )


def corpus_facts(config: Config) -> tuple[int, int | None]:
    """Return the stored voxels of a frame, and the clips of an epoch (None without a corpus: then the brain mask's)."""
    if not config.data.corpus:
        return int(brain_mask().sum()), None
    corpora = open_corpora(config.data, check_shards=False)
    frames = sample_table(corpora, config.data.split).n_frames
    return corpora[0].num_voxels, int(clips_per_sample(frames, stretch_frames(config), config.data.min_jitter).sum())


def bytes_of_clip(config: Config, num_voxels: int) -> float:
    """Return the bytes read for a clip: int8 codes and their checksums by frame, float16 scale, statistics if used."""
    planes = 2 if config.data.normalisation == "voxel_z" else 1
    return stretch_frames(config) * (num_voxels + 8) + planes * 4 * num_voxels
