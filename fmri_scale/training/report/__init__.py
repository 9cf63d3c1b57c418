"""One page about a run, made from its folder alone: curves, speed, faults, configuration, environment, pictures.

`write_report(run_dir, out)`; read gather.py (what is taken from the folder), figures.py (curves), page.py (HTML). Needs
neither W&B nor a network, and the page loads nothing from anywhere.
"""

from fmri_scale.training.report.page import write_report

__all__ = ["write_report"]
