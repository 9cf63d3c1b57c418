"""The schema of a run: every key a user can set, its type, default, unit and meaning.

The string under a field is its documentation; `fmri-scale config` prints it. Values are checked for type by
OmegaConf when a file is loaded, and for sense by `check` (fmri_scale/config/check.py) when it is complete.
"""

from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """Shape of the backbone and its decoder (defaults: the published NeuroSTORM, 7.7 M parameters)."""

    image_size: list[int] = field(default_factory=lambda: [96, 96, 96])
    "Voxels of a volume along x, y, z."
    num_frames: int = 20
    "Frames of a clip."
    in_channels: int = 1
    "Channels of the input volume."
    patch_size: list[int] = field(default_factory=lambda: [6, 6, 6, 1])
    "Voxels and frames of a patch: x, y, z, t."
    embed_dim: int = 36
    "Width of the first stage."
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    "Blocks of each stage; the number of entries is the number of stages."
    window_size: list[int] = field(default_factory=lambda: [4, 4, 4, 4])
    "Tokens of a scan window along x, y, z, t."
    first_window_size: list[int] = field(default_factory=lambda: [4, 4, 4, 4])
    "Window of the first stage of the encoder."
    last_stage_full: bool = True
    "The last stage's window spans its whole token grid in space and its blocks are not shifted."
    wrap_shift: bool = True
    "Shifted windows go on at the opposite edge of the token grid (published); false: they end in zero padding there."
    channel_multiplier: int = 2
    "Growth of the width from stage to stage."
    mlp_ratio: float = 4.0
    "Hidden width of the MLP over the block's width."
    state_dim: int = 16
    "States of the selective scan per channel."
    conv_dim: int = 4
    "Taps of the causal depthwise convolution."
    expand: int = 2
    "Inner width of the mixer over the block's width."
    bidirectional: bool = False
    "Scan each window backwards too, with a decay and a skip of its own; the published model scans forwards only."
    dropout: float = 0.0
    "Dropout in the MLP and, outside pretraining, after the patch embedding."
    drop_path: float = 0.0
    "Largest rate of stochastic depth, reached linearly at the last block."
    prompt_len: int = 0
    "Learnable prompt tokens put before every window of every encoder block."
    strd: str = "off"
    "Spatiotemporal redundancy dropout: off, published (the released code's formula) or paper (grows with redundancy)."
    strd_rate: float = 0.5
    "With strd=paper: probability with which a token equal to its neighbours in space and time is dropped."
    brain_tokens: bool = False
    "Neither compute nor score patches without a voxel of the corpus' mask; false: compute all (published)."
    checkpoint_blocks: bool = False
    "Recompute each block in the backward pass instead of keeping its activations."
    backend: str = "auto"
    "Kernels: auto, torch, triton or mamba_ssm."


@dataclass
class MaskConfig:
    """What the masked autoencoder hides."""

    strategy: str = "token"
    "Unit that is hidden as a whole: token, window, tube, region or group; or mixture, one of them for each clip."
    ratio: float = 0.5
    "Fraction hidden; of what, mask.ratio_of says. 1 only with mask.groups: all of these."
    tube_len: int = 0
    "Frames of a tube, and for which a region or group is hidden; 0 is the whole clip."
    atlas: str = ""
    "Regions: a folder made by fmri-shards atlas, or a label image (NIfTI)."
    labels: str = ""
    "Table (TSV) with the columns index, name and, optionally, group, where the atlas is a label image."
    loss_on: str = "brain"
    "Voxels of masked patches that are scored: brain (inside the corpus mask) or all (as published)."
    ratio_of: str = "units"
    "units (of regions and groups: their tokens), brain (tokens that hold brain; only these are hidden) or regions."
    groups: list[str] = field(default_factory=list)
    "Groups of the atlas of which regions, or which themselves, are drawn; empty: all."
    mixture: dict[str, float] = field(default_factory=dict)
    "Strategies and their weights, for strategy mixture: {token: 1, region: 2} hides regions in two clips of three."
    schedule_steps: int = 0
    "Steps over which ratio_start and mixture_start turn linearly into ratio and mixture; 0: no schedule."
    ratio_start: float = 0.0
    "mask.ratio at step 0; 0: the same throughout."
    mixture_start: dict[str, float] = field(default_factory=dict)
    "mask.mixture at step 0; empty: the same throughout."


@dataclass
class LossConfig:
    """How the error on hidden voxels is weighed. Defaults: the plain mean square; all else needs decoded volumes."""

    patch_norm: bool = False
    "Compare patches less their mean and over their standard deviation: shape counts, level and contrast do not."
    temporal_weight: float = 0.0
    "Share of the loss, 0 to 1, that is of the change from frame to frame, in which a constant error cancels."
    region_weights: dict[str, float] = field(default_factory=dict)
    "Weight of voxels of mask.atlas by name of their region or group; what is not named has 1."
    equal_regions: bool = False
    "All regions of mask.atlas count alike, whatever their size."


@dataclass
class ObjectiveConfig:
    """What is minimised: reconstruction, contrast between clips (as SwiFT's), or a weighted sum of both."""

    reconstruction: float = 1.0
    "Weight of the error on hidden voxels (mask, loss); 0 trains the encoder by contrast alone."
    instance: float = 0.0
    "Weight of the instance contrast: two clips of a run against those of other runs in the micro-batches of all ranks."
    local: float = 0.0
    "Weight of the local-local contrast: two changes of a clip against another clip of its run; needs augment."
    temperature: float = 0.1
    "Of both contrasts; small ones look at the most similar clips alone."
    width: int = 128
    "Numbers of the projection that is compared; no part of a release."
    span_frames: int = 0
    "Frames of a run within which two clips that share none are drawn; 0: twice model.num_frames."

    @property
    def contrasts(self) -> bool:
        """Whether clips are compared."""
        return self.instance > 0 or self.local > 0

    @property
    def views(self) -> int:
        """Clips that are encoded to be compared, for each clip of the batch."""
        return 0 if not self.contrasts else 4 if self.local > 0 else 2


@dataclass
class DataConfig:
    """Where clips come from and how they are read."""

    corpus: str = ""
    "Folder made by fmri-shards build, or its URL (http, https, s3, gs or what else fsspec knows)."
    split: str = "train"
    "Split to train on: train, val, test or all."
    normalisation: str = "run_z"
    "run_z (NeuroSTORM), voxel_z, frame_z or none."
    num_readers: int = 0
    "Reader processes of a rank; 0 reads in the training process."
    prefetch_mb: int = 256
    "Memory of a rank for clips read ahead and in use, in MB (at least two micro-batches)."
    verify: bool = True
    "Compare every frame that is read with its checksum."
    more_corpora: list[str] = field(default_factory=list)
    "Further corpora, built with the same mask and TR, read together with data.corpus."
    weights: dict[str, float] = field(default_factory=dict)
    "Share of each dataset in the stream, by name, relative; empty: by size and data.temperature."
    temperature: float = 1.0
    "Shares proportional to clips ** (1 / temperature): 1 by size, larger nearer to equal."
    lanes: int = 1
    "Parts of the order, for locality (see fmri_scale/data/pool.py); 1 shuffles everything with everything."
    shuffle_block: int = 0
    "Clips shuffled among each other inside a lane; 0 is the whole lane."
    min_jitter: int = 0
    "Least range in frames over which clip boundaries move from epoch to epoch; costs clips where nothing is left over."
    retries: int = 3
    "Times a failed read is repeated, with growing pauses, before the clip counts as bad."
    on_bad_sample: str = "raise"
    "raise stops the run; substitute takes a deterministic neighbour, counts it and logs its name."
    max_bad_fraction: float = 1e-4
    "Share of substituted clips, of those since the run was started or resumed, above which it stops."
    max_bad_clips: int = 16
    "Substituted clips allowed whatever their share."
    stall_timeout_s: float = 120.0
    "Seconds without a clip after which the reader's stack is logged and the reader replaced."
    access: str = "auto"
    "Shards at a URL: range (byte ranges), stream (whole shards into the cache) or auto (what the store can)."
    cache_dir: str = ""
    "Folder of the local cache for corpora at a URL; empty is ~/.cache/fmri_scale."
    cache_gb: float = 50.0
    "Size at which the cache forgets what was used longest ago, in GB; 0 keeps no clip data."


@dataclass
class AugmentConfig:
    """Changes to clips of training on the device, drawn from (seed, epoch, clip id); all off by default."""

    rotation_deg: float = 0.0
    "Largest rotation about each axis, one for a whole clip, in degrees."
    translation_mm: float = 0.0
    "Largest shift along each axis, one for a whole clip, in mm."
    scale: float = 0.0
    "Largest relative change of size, one for a whole clip; 0.05 is 5 % smaller to 5 % larger."
    shift_frames: float = 0.0
    "Largest shift in time, in frames; between frames the signal is interpolated."
    noise_sd: float = 0.0
    "Standard deviation of Gaussian noise in normalised units, drawn anew for every voxel and frame of the brain."


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    steps: int = 1000
    "Optimizer steps of the run."
    global_batch: int = 8
    "Clips per optimizer step over all ranks, whatever their number."
    micro_batch: int = 1
    "Clips per forward pass of one rank; accumulation makes up the rest."
    lr: float = 5e-5
    "Peak learning rate."
    min_lr_ratio: float = 0.1
    "Learning rate at the last step over the peak."
    warmup_steps: int = 100
    "Steps of linear warm-up."
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    "AdamW moment decays."
    eps: float = 1e-8
    "AdamW epsilon."
    weight_decay: float = 0.01
    "Decay of matrices; norms, biases, embeddings, A_log, D and mask tokens have none."
    clip_grad: float = 1.0
    "Global gradient norm above which gradients are scaled down; 0 turns it off."
    ema_decay: float = 0.0
    "Decay per step of a moving average of the weights that checkpoints keep beside them, e.g. 0.9999; 0 keeps none."
    base_width: int = 0
    "model.embed_dim for which optim.lr was tuned: rates of matrices shrink with the width from there (muP); 0: never."


@dataclass
class EngineConfig:
    """How the step is executed."""

    zero_stage: int = 1
    "DeepSpeed ZeRO stage, 0 to 3."
    dtype: str = "fp32"
    "fp32, or bf16: matrix products in bf16; weights, gradients, their sums and the optimizer's state stay fp32."
    deterministic: bool = False
    "Only bit-repeatable operations."
    max_bad_steps: int = 10
    "Steps in a row with a non-finite loss or gradient after which the run stops."
    timeout_s: float = 1800.0
    "Seconds a collective operation may take."
    offload_optimizer: str = "none"
    "Where the optimizer's state lives and its step is made: none (the device), cpu, or nvme (ZeRO 3)."
    offload_parameters: str = "none"
    "Where ZeRO 3 keeps its part of the weights between uses: none (the device), cpu or nvme."
    offload_dir: str = ""
    "Folder on a local disk for what is offloaded to nvme."
    compile: str = "off"
    "torch.compile of the blocks: off, inductor, or aot_eager (no code generation: to look for faults); not ZeRO 3."
    cuda_graphs: bool = False
    "Replay the compiled blocks as CUDA graphs; needs engine.compile=inductor and a GPU."


@dataclass
class GuardConfig:
    """What is told, and what stops a run that goes wrong; numbers that are not finite: engine.max_bad_steps."""

    spike_sd: float = 6.0
    "Standard deviations above the mean of the losses before it that make a loss a spike; 0 looks for none."
    spike_window: int = 128
    "Losses that are compared with."
    hash_every: int = 1000
    "Steps between comparisons of the weights that the ranks hold, to the bit; 0 makes none."
    hang_s: float = 900.0
    "Seconds without a step, validation or checkpoint after which all ranks write their stacks and end; 0 never."
    straggler_ratio: float = 3.0
    "A rank whose own time of a step is this many times the median of the others is named in the log; 0 names none."
    end_margin_s: float = 120.0
    "Seconds before the job's end, where a scheduler tells it, by which the run has saved and stopped."


@dataclass
class CheckpointConfig:
    """When training state is saved and how much of it is kept."""

    every_steps: int = 500
    "Steps between checkpoints; 0 saves only at the end and on a signal."
    keep_last: int = 3
    "Newest checkpoints kept."
    keep_every: int = 0
    "Steps whose multiples are kept for ever; 0 keeps none."
    resume: str = "auto"
    "auto continues from the newest whole checkpoint of the run folder; never refuses a folder that has one."
    allow_change: bool = False
    "Continue even though the configuration changed the model or the data order."


@dataclass
class LogConfig:
    """What is reported, where and how often."""

    every_steps: int = 10
    "Steps between rows of metrics.jsonl and W&B."
    pictures_every: int = 0
    "Steps between pictures of reconstructions; 0 draws one at the end."
    validate_every: int = 0
    "Steps between measurements of the loss on the validation split; 0 measures none."
    validate_clips: int = 256
    "Clips of a validation over all ranks, the same every time; 0 takes all."
    wandb: str = "auto"
    "auto (online with a key, else offline), online, offline or off."
    wandb_project: str = "fmri_scale"
    "W&B project."
    wandb_name: str = ""
    "W&B run name; empty takes the run folder's name."
    level: str = "INFO"
    "Lowest level of messages on the terminal."
    profile_steps: list[int] = field(default_factory=list)
    "First and last step of a trace of rank 0 (time and memory) in profile/; SIGUSR2 to a rank traces its next three."


@dataclass
class LaunchConfig:
    """What the scripts of launch/ give to every rank."""

    env: list[str] = field(default_factory=list)
    "Environment variables as NAME=VALUE, for all ranks on all nodes; they win over those of the shell."


@dataclass
class Config:
    """A run."""

    run_dir: str = ""
    "Folder of the run: checkpoints, metrics, logs."
    seed: int = 0
    "Seed of weights, data order and masks."
    start_from: str = ""
    "Release (folder or organisation/name) that gives weights, model.* and data.normalisation; empty: the seed does."
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
