"""Packaging of thumbnet_tf; `pip install -e .` or with an extra, `pip install -e '.[test]'`."""

from setuptools import find_packages, setup

setup(
    name="thumbnet_tf",
    version="0.1.0",
    description="ThumbNet for Keras 3 and TensorFlow: a classifier that infers on one thumbnail",
    packages=find_packages(include=["thumbnet_tf", "thumbnet_tf.*"]),
    package_data={"thumbnet_tf": ["demo_page/*"]},
    python_requires=">=3.11,<3.13",
    install_requires=[
        "absl-py>=1.4,<2",  # tensorflow-model-optimization pins it
        "ai-edge-litert>=2.1,<3",  # runs TFLite files
        "array_record>=0.8,<1",
        "flatbuffers>=24.3",
        "h5py>=3.11,<4",
        "importlib_resources>=6,<8",  # tensorflow-datasets imports it and does not declare it
        "keras>=3.15,<3.16",
        "matplotlib>=3.10,<4",
        "numpy>=1.26,<3",
        "pillow>=10,<14",
        "requests>=2.32,<3",
        "tensorflow>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tensorflow-model-optimization>=0.8.1,<0.9",
        "tensorflow-serving-api>=2.21,<2.22",
        "tf_keras>=2.21,<2.22",  # what tensorflow-model-optimization quantises
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "serving": ["kserve>=0.21,<0.22", "ovmsclient>=2023.1"],
        # pytest 9.2 ignores what pytest-xdist 3.8 keeps tests together by
        "test": ["pytest>=8.3,<9", "pytest-xdist>=3.6,<4", "pyyaml>=6,<7", "ruff>=0.13,<1"],
    },
)
