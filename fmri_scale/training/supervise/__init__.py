"""Starting a run and answering for it: no rank is left behind, no false success is reported.

`python -m fmri_scale.training.supervise plan|run|signal` is what the scripts in launch/ call; see `__main__.py`.
Works before and beside the training processes: imports neither torch nor deepspeed.
"""
