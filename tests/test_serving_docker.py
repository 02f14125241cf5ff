"""The real TensorFlow Serving, by its image, where there is docker: `pytest -m slow tests/test_serving_docker.py`."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import requests
from serving_helpers import LOCAL, MODEL, free_port

from thumbnet_tf import client
from thumbnet_tf.client import Options

FOLDER = pathlib.Path(__file__).parent.parent / "saved_models"
README = (FOLDER / "README.md").read_text()
IMAGE = re.search(r"tensorflow/serving:[\w.]+", README)[0]
FLAGS = re.findall(r"--\w+=\S+", re.search(rf"docker run.*?{IMAGE}(.*?)```", README, re.DOTALL)[1])  # the server's
START_SECONDS = 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ports(exported, tmp_path_factory):
    """Starts the container that saved_models/README.md describes, and gives its gRPC and REST ports."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("there is no docker here, or its daemon doesn't run")
    if subprocess.run(["docker", "pull", "--quiet", IMAGE], capture_output=True, timeout=1200).returncode:
        pytest.skip(f"{IMAGE} can't be pulled here")
    models = tmp_path_factory.mktemp("models")
    for config in FOLDER.glob("*.config"):
        shutil.copy(config, models)
    shutil.copytree(exported, models / MODEL / "1")
    grpc_port, rest_port = free_port(), free_port()
    command = ["docker", "run", "--rm", "--detach", "--volume", f"{models}:/models:ro"]
    command += ["--publish", f"{LOCAL}:{grpc_port}:8500", "--publish", f"{LOCAL}:{rest_port}:8501", IMAGE]
    command += FLAGS
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        _wait_for(f"http://{LOCAL}:{rest_port}/v1/models/{MODEL}/labels/stable", container)
        yield grpc_port, rest_port
    finally:
        subprocess.run(["docker", "stop", "--time", "5", container], capture_output=True)


def _wait_for(url: str, container: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(requests.RequestException):
            if "AVAILABLE" in requests.get(url, timeout=5).text:
                return
        time.sleep(0.5)
    log = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
    pytest.fail(f"TensorFlow Serving didn't start: {log.stderr[-2000:]}")


@pytest.mark.parametrize("interface", ["grpc", "rest"])
def test_the_real_server_answers_as_the_saved_model_does(ports, ask, disc_files, tmp_path, capsys, interface):
    address = f"{LOCAL}:{ports[interface == 'rest']}"
    bad = tmp_path / "bad.png"
    bad.write_bytes(pathlib.Path(disc_files[0]).read_bytes()[:400])
    options = {interface: address, "files": (*disc_files, str(bad)), "version_label": "stable", "timeout_seconds": 60.0}
    client.main(Options(**options, on_bad_image="skip"))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    answer = ask("serving_default", [pathlib.Path(file).read_bytes() for file in disc_files])
    assert [line[0] for line in lines] == disc_files
    scores = [[float(label.split(" ")[1]) for label in line[1:]] for line in lines]
    np.testing.assert_allclose(scores, answer["scores"], atol=1e-4)


def test_its_metrics_and_metadata(ports):
    base = f"http://{LOCAL}:{ports[1]}"
    assert ":tensorflow:serving" in requests.get(f"{base}/monitoring/prometheus/metrics", timeout=10).text
    facts = requests.get(f"{base}/v1/models/{MODEL}/metadata", timeout=10).json()
    served = facts["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "pixels", "downscale", "thumbnail"} <= set(served)
