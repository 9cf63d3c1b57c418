"""Pretrain: `python -m fmri_scale.train FILE.yaml... [key=value...]`, on one process or under any launcher.

    python -m fmri_scale.train configs/run/quickstart.yaml run_dir=runs/first data.corpus=corpus
    deepspeed --num_gpus 8 fmri_scale/train.py configs/run/base.yaml optim.lr=1e-4
    torchrun --nproc_per_node 8 -m fmri_scale.train configs/run/base.yaml
    srun --ntasks-per-node 8 python -m fmri_scale.train configs/run/base.yaml

Starting the same command again continues from the newest whole checkpoint. `fmri-scale config` lists all keys.
Exit codes: 0 done; 2 something the user can mend, said in one line; 75 stopped by SIGTERM or SIGUSR1 after a
checkpoint, start again; 130 Ctrl-C; 1 another rank was lost (start again) or a defect of this program.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if "TORCH_CPP_LOG_LEVEL" not in os.environ:  # else torch prints a C++ stack for each message to a lost rank
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
if not __package__:  # started by path: this folder's own modules must not hide others of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fmri_scale.config import Config
from fmri_scale.errors import ConfigError, FmriScaleError, LostRankError
from fmri_scale.log import configure_logging, get_logger
from fmri_scale.release.start import run_config, starter
from fmri_scale.training import dist, launch
from fmri_scale.training.signals import INTERRUPTED, StopRequest
from sharding.errors import ShardingError
from sharding.extras import remedy

log = get_logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    stop = StopRequest().listen()
    try:
        place = launch.discover()
        place.export()
        config = read_arguments(arguments)
        configure_logging(place.rank, config.log.level)
        device = dist.start(place, config.engine.timeout_s)
        from fmri_scale.training import loop  # here, so that DeepSpeed is imported as `dist.start` wants it

        begin = starter(config) if config.start_from else None
        return loop.run(config, place, device, stop, begin)
    except (FmriScaleError, ShardingError) as error:
        if dist.announce(str(error)):
            print(f"train: {error}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, LostRankError) else 2
    except ModuleNotFoundError as error:
        if not (line := remedy(error)):
            raise
        print(f"train: {line}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        stop.release()
        dist.stop()


def read_arguments(arguments: Sequence[str]) -> Config:
    """Return the configuration that the command line names.

    Raises
    ------
    ConfigError : an unknown option, a file or value that cannot be used, or no run_dir or data.corpus.
    """
    items = [a for a in arguments if not a.startswith("--local_rank") and not a.startswith("--local-rank")]
    for item in items:
        if item.startswith("-"):
            raise ConfigError(f"option {item!r}: expected YAML files and key=value, for example optim.lr=3e-4")
    files = [item for item in items if "=" not in item]
    config = run_config(files, [item for item in items if "=" in item])
    for key, value in (("run_dir", config.run_dir), ("data.corpus", config.data.corpus)):
        if not value:
            raise ConfigError(f"{key} is not set: give it in a YAML file or as {key}=FOLDER")
    return config


if __name__ == "__main__":
    sys.exit(main())
