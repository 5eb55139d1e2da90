"""Packaging of nxdi. The settings of the development tools are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version in `src/nxdi/_version.py`, read without importing the library."""
    match = re.search(r'__version__ = "(.+)"', (ROOT / "src/nxdi/_version.py").read_text())
    assert match is not None
    return match.group(1)


DEMO = ["gguf>=0.17"]
SERVE = ["fastapi>=0.115", "uvicorn>=0.30"]  # of examples/serve_fastapi.py
VLLM = ["vllm>=0.32,<0.34"]
TEST = [
    "compressed-tensors>=0.11",
    "hypothesis>=6.100",
    "mypy>=1.15",
    "psutil",  # which compressed-tensors imports and does not require
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "setuptools>=77",
    "wheel",
]

setup(
    name="nxdi",
    version=read_version(),
    description="LLM inference as static graphs for AWS Trainium and Inferentia, or any CPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"nxdi": ["py.typed", "**/*.cpp", "**/*.h"]},
    install_requires=[
        "torch>=2.9",
        "transformers>=4.57,<6",
        "safetensors>=0.4.3",
        "numpy",
        "tqdm",
        "filelock",
        "packaging",
        "pyyaml",
    ],
    extras_require={"demo": DEMO, "serve": SERVE, "test": DEMO + SERVE + TEST, "vllm": VLLM},
    entry_points={
        "console_scripts": [
            "nxdi=nxdi.cli:main",
            "inference_demo=nxdi.cli.inference_demo:main",
        ],
        "vllm.platform_plugins": ["nxdi=nxdi.integrations.vllm:register"],
        "vllm.general_plugins": ["nxdi=nxdi.integrations.vllm:register_models"],
    },
)
