"""What to install where a package is missing: the slim installation holds what releases need, extras the rest.

The table is `[project.optional-dependencies]` of pyproject.toml by names of import; a test holds the two together.
"""

EXTRAS = {
    "train": (
        *("deepspeed", "triton", "webdataset", "wandb", "pyarrow", "fsspec", "urllib3", "xxhash", "tqdm"),
        *("matplotlib", "sklearn", "pandas", "isal"),
    ),
    "hub": ("huggingface_hub",),
    "attribution": ("captum",),
    "cuda": ("mamba_ssm",),
    "cluster": ("distributed", "dask_jobqueue"),
    "bids": ("bids2table",),
}
"Modules by the extra that brings them."


def remedy(error: ModuleNotFoundError) -> str:
    """Return the line for the user where the missing module belongs to an extra; empty where it is a defect of ours."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"the package {module} is not installed; pip install 'fmri-scale[{extra}]'"
    return ""
