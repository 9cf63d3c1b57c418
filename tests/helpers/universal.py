"""DeepSpeed's own way to another number of ranks: convert a checkpoint to a universal one, load it, tell what came.

`python -m tests.helpers.universal CHECKPOINT FOLDER ARGUMENTS...` prints the loaded groups' weight decay and where the
step counters of the optimizer's tensors lie, as JSON.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from fmri_scale.train import read_arguments
from fmri_scale.training import dist, launch
from tests.helpers.trainee import adam_steps


def main() -> int:
    """Convert, load, print; return 0."""
    place = launch.discover()
    place.export()
    device = dist.start(place, timeout_s=120.0)
    from deepspeed.checkpoint import ds_to_universal

    from fmri_scale.training import build
    from fmri_scale.training.ds_config import deepspeed_config

    folder = Path(sys.argv[2])
    options = ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    places = ["--input_folder", f"{sys.argv[1]}/engine", "--output_folder", str(folder / "engine")]
    with mock.patch.object(sys, "argv", ["ds_to_universal", *places, *options]):
        ds_to_universal.main(ds_to_universal.parse_arguments())
    config = read_arguments(sys.argv[3:])
    derived = deepspeed_config(config, 1)
    derived["checkpoint"]["load_universal"] = True
    with mock.patch.object(build, "deepspeed_config", return_value=derived):
        engine = build.build_engine(config, build.build_model(config), place, device)
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    engine.checkpoint_engine = TorchCheckpointEngine()
    engine.load_checkpoint(str(folder), tag="engine")
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    print(json.dumps({"weight_decay": decays, "adam_steps": adam_steps(engine)}))
    dist.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
