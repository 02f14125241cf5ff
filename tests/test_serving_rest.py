"""The SavedModel behind a real KServe server on this machine, asked over REST as its V1 protocol says.

KServe and TensorFlow Serving share this protocol (the row format of https://www.tensorflow.org/tfx/serving/api_rest).
"""

import base64
import pathlib
import re
import shutil

import numpy as np
import pytest
import requests
import tensorflow as tf
from run_helpers import IMAGE_SIZE, RATIO
from serving_helpers import MODEL

from thumbnet_tf import client
from thumbnet_tf.client import Options

README = (pathlib.Path(__file__).parent.parent / "saved_models" / "README.md").read_text()
SMALL = IMAGE_SIZE // RATIO


@pytest.fixture
def post(kserve_address):
    def send(**body) -> requests.Response:
        return requests.post(f"http://{kserve_address}/v1/models/{MODEL}:predict", json=body, timeout=60)

    return send


def base64_of(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


@pytest.mark.parametrize("named", [False, True])
def test_images_get_the_answers_of_the_saved_model(post, ask, disc_files, named):
    images = [pathlib.Path(file).read_bytes() for file in disc_files]
    instances = [{"image_bytes": base64_of(image)} if named else base64_of(image) for image in images]
    wanted = ask("serving_default", images)
    for count in (1, 4):
        answer = post(instances=instances[:count])
        assert answer.status_code == 200
        rows = answer.json()["predictions"]
        assert [row["classes"] for row in rows] == wanted["classes"][:count].astype(str).tolist()
        for key in ("scores", "probabilities"):
            np.testing.assert_allclose([row[key] for row in rows], wanted[key][:count], atol=1e-6)


def test_pixels_and_thumbnails(post, ask, photos):
    pixels = photos(2, IMAGE_SIZE)
    rows = post(signature_name="pixels", instances=pixels.tolist()).json()["predictions"]
    np.testing.assert_allclose([row["scores"] for row in rows], ask("pixels", pixels)["scores"], atol=1e-6)
    thumbnail = tf.io.encode_png(photos(1, SMALL)[0]).numpy()
    rows = post(signature_name="thumbnail", instances=[base64_of(thumbnail)]).json()["predictions"]
    np.testing.assert_allclose(rows[0]["scores"], ask("thumbnail", [thumbnail])["scores"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instances": [base64_of(b"no image")]}, "whole images"),
        ({"instances": [base64_of(b"")]}, "whole images"),
        ({"instances": [[1.0, 2.0]], "signature_name": "pixels"}, "uint8"),
        ({"instances": [base64_of(b"\x89PNG")], "signature_name": "thumbnail"}, f"{SMALL} x {SMALL} pixels"),
    ],
)
def test_bad_requests_get_400_and_the_server_goes_on(post, ask, disc_files, body, text):
    answer = post(**body)
    assert answer.status_code == 400 and text in answer.json()["error"]
    assert post(instances=[base64_of(pathlib.Path(disc_files[0]).read_bytes())]).status_code == 200


def test_our_client(kserve_address, ask, disc_files, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(pathlib.Path(disc_files[0]).read_bytes()[:400])
    files = (*disc_files[:2], str(bad), *disc_files[2:])
    client.main(Options(rest=kserve_address, timeout_seconds=60, files=files, on_bad_image="skip", top=1))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    wanted = ask("serving_default", [pathlib.Path(file).read_bytes() for file in disc_files])
    assert [line[0] for line in lines] == disc_files
    for line, name, score in zip(lines, wanted["classes"][:, 0], wanted["scores"][:, 0], strict=True):
        assert line[1] == f"{name.decode()} {score:.4f}"


def test_python_of_the_readme(kserve_address, ask, disc_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(disc_files[0], "cat.jpg")
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0].replace("localhost:8501", kserve_address)
    assert "/labels/stable" in code
    code = code.replace("/labels/stable", "")  # KServe has no labels
    exec(compile(code, "README.md", "exec"), {})
    wanted = ask("serving_default", [pathlib.Path(disc_files[0]).read_bytes()])
    assert capsys.readouterr().out.strip() == str(wanted["classes"][0].astype(str).tolist())
