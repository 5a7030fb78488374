"""Packaging of ppvilg. The ranges that ppvilg is known to need live in ppvilg/_versions.py, checked again on import."""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSIONS = runpy.run_path(str(ROOT / "ppvilg" / "_versions.py"))
README = ROOT / "README.md"

setup(
    name="ppvilg",
    version=re.search(r'__version__ = "([^"]+)"', (ROOT / "ppvilg" / "__init__.py").read_text("utf-8")).group(1),
    description="ERNIE-ViLG 2.0 for PaddlePaddle: Chinese text to image with knowledge and denoising experts",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ppvilg", "ppvilg.*"]),
    package_data={
        "ppvilg": [
            "data/tables/*",
            *(f"zoo/**/*.{ending}" for ending in ("safetensors", "json", "txt", "md", "png", "yml")),
        ]
    },
    install_requires=[
        *(each.name + each.specifier for each in VERSIONS["REQUIREMENTS"]),
        "numpy>=1.24",
        "omegaconf>=2.3,<3",
        "Pillow>=10",
        "safetensors>=0.6",
        "tqdm",
    ],
    extras_require={
        "cpu": [f"paddlepaddle=={VERSIONS['PADDLE'].tested}"],
        # Not on PyPI: add --extra-index-url with the index of your CUDA version, e.g.
        # https://www.paddlepaddle.org.cn/packages/stable/cu126/
        "gpu": [VERSIONS["PADDLE_GPU"].name + VERSIONS["PADDLE_GPU"].specifier],
        "test": ["pytest>=8", "pytest-xdist", "ruff", "scipy"],
    },
)
