"""The SavedModel behind TensorFlow Serving's gRPC interface, asked by its official stubs and by another's client.

The server is `serving_helpers`' stand-in: what is tested is the model, the messages and the clients.
"""

import pathlib
import re
import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf
from data_helpers import by_pillow
from PIL import Image
from run_helpers import CLASSES, IMAGE_SIZE, RATIO
from serving_helpers import MODEL
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
from tflite_helpers import infer

from thumbnet_tf import preprocess

README = (pathlib.Path(__file__).parent.parent / "saved_models" / "README.md").read_text()
SMALL = IMAGE_SIZE // RATIO
ANSWER = {"classes", "scores", "probabilities"}


@pytest.fixture(scope="module")
def stub(grpc_address):
    with grpc.insecure_channel(grpc_address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def contents(files: list[str]) -> list[bytes]:
    return [pathlib.Path(file).read_bytes() for file in files]


def request(signature: str, name: str, values, model: str = MODEL, **spec) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest(model_spec={"name": model, "signature_name": signature, **spec})
    message.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return message


def outputs(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def assert_same(found: dict, wanted: dict) -> None:
    np.testing.assert_array_equal(found["classes"], wanted["classes"])
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=1e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_images_get_the_answers_of_the_saved_model(stub, ask, disc_files, count):
    images = contents(disc_files[:count])
    found = outputs(stub.Predict(request("serving_default", "image_bytes", images), timeout=60))
    assert set(found) == ANSWER and found["probabilities"].shape == (count, len(CLASSES))
    assert_same(found, ask("serving_default", images))
    np.testing.assert_array_equal(found["scores"], -np.sort(-found["probabilities"]))
    assert found["classes"][0, 0].decode() == CLASSES[found["probabilities"][0].argmax()]


def test_the_split_deployment_gives_the_same_answers(stub, ask, disc_files):
    images = contents(disc_files)
    small = outputs(stub.Predict(request("downscale", "image_bytes", images), timeout=60))
    assert small["thumbnail"].shape == (4, SMALL, SMALL, 3) and small["thumbnail"].dtype == np.uint8
    for png, pixels in zip(small["thumbnail_png"], small["thumbnail"], strict=True):
        np.testing.assert_array_equal(by_pillow(png), pixels)
    found = outputs(stub.Predict(request("thumbnail", "thumbnail_bytes", list(small["thumbnail_png"])), timeout=60))
    assert_same(found, ask("serving_default", images))


@pytest.mark.parametrize("side", [IMAGE_SIZE, 50])
def test_pixels_of_any_size(stub, ask, photos, side):
    images = photos(3, side)
    found = outputs(stub.Predict(request("pixels", "pixels", images), timeout=60))
    assert_same(found, ask("pixels", images))
    as_files = [tf.io.encode_png(image).numpy() for image in images]
    if side != IMAGE_SIZE:  # of this size they are taken as cropped, files aren't
        assert_same(found, ask("serving_default", as_files))


def test_versions_labels_and_output_filter(stub, disc_files):
    images = contents(disc_files[:1])
    cases = [
        ({}, 2),
        ({"version": {"value": 1}}, 1),
        ({"version_label": "stable"}, 1),
        ({"version_label": "canary"}, 2),
    ]
    for spec, version in cases:
        message = request("serving_default", "image_bytes", images, **spec)
        message.output_filter.append("scores")
        response = stub.Predict(message, timeout=60)
        assert response.model_spec.version.value == version and set(response.outputs) == {"scores"}


def test_metadata_names_every_signature(stub):
    message = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": MODEL})
    message.metadata_field.append("signature_def")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(message, timeout=60).metadata["signature_def"].Unpack(signatures)
    served = {name: value for name, value in signatures.signature_def.items() if not name.startswith("__")}
    assert {name: list(value.inputs) for name, value in served.items()} == {
        "serving_default": ["image_bytes"],
        "pixels": ["pixels"],
        "downscale": ["image_bytes"],
        "thumbnail": ["thumbnail_bytes"],
    }
    for name, signature in served.items():
        assert signature.method_name == "tensorflow/serving/predict"
        assert set(signature.outputs) == ({"thumbnail_png", "thumbnail"} if name == "downscale" else ANSWER)
        for tensor in (*signature.inputs.values(), *signature.outputs.values()):
            assert tensor.tensor_shape.dim[0].size == -1, "batching needs the batch's dimension first"


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (request("serving_default", "image_bytes", [b"no image"]), "INVALID_ARGUMENT", "image_bytes"),
        (request("serving_default", "image_bytes", [b""]), "INVALID_ARGUMENT", "image_bytes"),
        (request("serving_default", "image_bytes", ["a", "b"]), "INVALID_ARGUMENT", "[0 1]"),
        (request("serving_default", "image_bytes", np.zeros((0,), object)), "INVALID_ARGUMENT", "at least one"),
        (request("serving_default", "image", [b"x"]), "INVALID_ARGUMENT", "input alias: image_bytes"),
        (request("pixels", "pixels", np.zeros((1, 0, 8, 3), np.uint8)), "INVALID_ARGUMENT", "pixels"),
        (request("pixels", "pixels", np.zeros((1, 8, 8, 4), np.uint8)), "INVALID_ARGUMENT", "pixels"),
        (request("pixels", "pixels", np.zeros((1, 8, 8, 3), np.float32)), "INVALID_ARGUMENT", "float32"),
        (request("nothing", "pixels", [1]), "FAILED_PRECONDITION", "signature key"),
        (request("pixels", "pixels", [1], version_label="old"), "INVALID_ARGUMENT", "version label: old"),
        (request("pixels", "pixels", [1], version={"value": 7}), "NOT_FOUND", "version 7"),
        (request("pixels", "pixels", [1], model="other"), "NOT_FOUND", "other"),
    ],
)
def test_bad_requests_are_refused_and_the_model_goes_on(stub, disc_files, message, code, text):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(message, timeout=60)
    assert caught.value.code().name == code and text in caught.value.details()
    assert stub.Predict(request("serving_default", "image_bytes", contents(disc_files[:1])), timeout=60).outputs


def test_a_bad_image_is_named_by_its_position(stub, disc_files, ask):
    images = contents(disc_files)
    images[2] = images[2][: len(images[2]) // 2]
    with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT(.|\n)*positions\] \[2\]"):
        stub.Predict(request("serving_default", "image_bytes", images), timeout=60)
    thumbnail = tf.io.encode_png(np.zeros((SMALL, SMALL + 1, 3), np.uint8)).numpy()
    with pytest.raises(grpc.RpcError, match=rf"INVALID_ARGUMENT(.|\n)*{SMALL} x {SMALL} pixels"):
        stub.Predict(request("thumbnail", "thumbnail_bytes", [thumbnail]), timeout=60)


def test_an_independent_client(grpc_address, ask, disc_files, photos):
    """`ovmsclient` has its own copy of the protocol and asks the default signature only."""
    ovmsclient = pytest.importorskip("ovmsclient", reason="ovmsclient isn't installed; see the extra `serving`")
    client = ovmsclient.make_grpc_client(grpc_address)
    images = contents(disc_files)
    assert_same(client.predict({"image_bytes": images}, MODEL, timeout=60), ask("serving_default", images))
    facts = client.get_model_metadata(MODEL)
    assert facts["inputs"] == {"image_bytes": {"shape": [-1], "dtype": "DT_STRING"}}
    assert facts["outputs"]["probabilities"] == {"shape": [-1, len(CLASSES)], "dtype": "DT_FLOAT"}
    assert client.get_model_status(MODEL, 1)[1]["state"] == "AVAILABLE"
    with pytest.raises(ovmsclient.tfs_compat.base.errors.InvalidInputError, match="image_bytes"):
        client.predict({"image_bytes": [b"no image"]}, MODEL, timeout=60)
    with pytest.raises(ovmsclient.tfs_compat.base.errors.ModelNotFoundError):
        client.predict({"image_bytes": images}, "other", timeout=60)


def test_python_of_the_readme(grpc_address, ask, disc_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(disc_files[0], "cat.jpg")
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("localhost:8500", grpc_address)
    exec(compile(code, "README.md", "exec"), {})
    wanted = ask("serving_default", contents(disc_files[:1]))
    assert capsys.readouterr().out.strip() == str(wanted["classes"][0])


@pytest.mark.parametrize("variant", ["int8", "float32"])
def test_python_of_the_readme_without_a_server(exported, ask, disc_files, tmp_path, monkeypatch, capsys, variant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models" / "thumbnet").mkdir(parents=True)
    (tmp_path / "saved_models" / "thumbnet" / "1").symlink_to(exported)
    with Image.open(disc_files[0]) as image:
        image.save("cat.jpg", quality=90)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[2]
    assert "thumbnet_int8.tflite" in code and "import thumbnet_tf" not in code
    exec(compile(code.replace("thumbnet_int8", f"thumbnet_{variant}"), "README.md", "exec"), {})
    served, lite = (line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    wanted = ask("serving_default", contents(["cat.jpg"]))
    assert served[0] == wanted["classes"][0, 0].decode()
    assert float(served[1]) == pytest.approx(wanted["scores"][0, 0], abs=1e-5)
    crop = preprocess.eval_crop(preprocess.decode_image(contents(["cat.jpg"])[0]), IMAGE_SIZE, 0.875).numpy()
    scores = infer((exported / "tflite" / f"thumbnet_{variant}.tflite").read_bytes(), crop[None])[0]
    assert lite[0] == CLASSES[scores.argmax()]
    assert float(lite[1]) == pytest.approx(scores.max() / (256 if variant == "int8" else 1), abs=1e-6)
