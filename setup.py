"""What trainyard needs, each with its reason; the rest of the metadata is in pyproject.toml.

Horovod is not listed. One of two ways to connect ranks, it is not needed for the other
(torch.distributed); and its release does not compile against today's PyTorch, so that
`python -m launch.horovod_build --install` builds it and brings what its own metadata asks for
(cloudpickle, pyyaml, packaging, cffi). `make train` and `make test` do all of this.
"""

from setuptools import find_packages, setup

# DALI's two wheels; both run without a GPU and bring their decoders (nvImageCodec, nvJPEG).
# From 2.0 on a batch is memory of its own (dynamic executor), handed out without a copy; from 2.4
# on pipeline/data/dali/resampling.py gives an operator of DALI's functions compiled already.
DALI_CUDA13 = "nvidia-dali-cuda130>=2.4"
DALI_CUDA12 = "nvidia-dali-cuda120>=2.4"

DOCS = ["sphinx", "myst-parser", "furo"]  # the pages: make docs
EXPORT = [
    "safetensors",
    "onnx",
    "onnxscript",  # what torch.onnx writes its graphs with
    "onnxruntime",  # holds an exported network's output to PyTorch's
]

setup(
    packages=find_packages(include=["pipeline*", "launch*"]),
    install_requires=[
        "torch>=2.6",  # param_names in optimizers, get_total_norm; GradScaler for CPU and GPU alike
        "numpy",  # order and augmentation plans
        "pyarrow",  # the manifest: an Arrow file, memory-mapped
        "google-crc32c",  # checksums of TFRecord files
        "numba",  # compiles the resize of CPU decoding, which DALI runs on its threads
        "pillow",  # draws the demo images, reads sizes when a data set is scanned
        "docstring-parser",  # shows the fields' docstrings in --help
        "pyyaml",  # the resolved configuration of a run
        "tensorboard",  # the scalars and images of a run
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
        # Weights in other forms: pipeline.export.
        "export": EXPORT,
        "test": [
            *EXPORT,
            *DOCS,
            "pytest",
            "pytest-xdist",  # `make test` runs the suite in parallel
            "hypothesis",  # damages containers, and reduces what it finds to little
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
