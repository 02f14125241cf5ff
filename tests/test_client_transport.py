"""The client and its server: what is tried again, what ends the command, and how a server is addressed."""

import base64
import json
import pathlib
import threading
import time
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
from run_helpers import CLASSES
from serving_helpers import LOCAL, columns, free_port, http_server
from tensorflow_serving.apis import predict_pb2

from thumbnet_tf import client
from thumbnet_tf.client import Options
from thumbnet_tf.client_transport import GrpcTransport, RestTransport, Target
from thumbnet_tf.config import UserError


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Makes pauses between tries short, and returns a list of those asked for."""
    asked = []

    class Quick(threading.Event):
        def wait(self, timeout):
            asked.append(timeout)
            return super().wait(0.01)

    monkeypatch.setattr(client, "Event", Quick)
    return asked


# TensorFlow Serving's own words
NO_SIGNATURE = 'Serving signature name: "serving_default" not found in signature def'
NO_INPUT = (
    "Failed to process element: 0 key: image_bytes of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not "
    "have named input: image_bytes"
)
TOO_MANY = "Task size 64 is larger than maximum input batch size 32"


def predictions(count: int) -> str:
    """Returns the body of a right REST answer."""
    row = {"classes": ["cat", "dog"], "scores": [0.75, 0.25], "probabilities": [0.25, 0.75]}
    return json.dumps({"predictions": [row] * count})


@pytest.mark.parametrize("status", [503, 429, 504])
def test_a_busy_server_is_asked_again(status, disc_files, capsys, pauses):
    def answer(body, number):
        return (status, '{"error": "busy"}') if number < 3 else (200, predictions(2))

    with http_server(answer) as (address, seen):
        client.main(Options(rest=address, files=tuple(disc_files[:2]), version_label="stable"))
    assert [request["path"] for request in seen] == ["/v1/models/thumbnet/labels/stable:predict"] * 4
    assert [line[1:] for line in columns(capsys.readouterr().out)] == [["cat 0.7500", "dog 0.2500"]] * 2
    assert len(pauses) == 3
    for pause, longest in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_refused_request_is_not_sent_again_but_its_images_are(disc_files, capsys):
    def answer(body, number):
        good = len(body["instances"]) == 1 and number != 2
        return (200, predictions(1)) if good else (400, '{"error": "image_bytes must be whole images"}')

    with http_server(answer) as (address, seen):
        client.main(Options(rest=address, files=tuple(disc_files), version=3, on_bad_image="skip", workers=1))
    assert [len(request["instances"]) for request in seen] == [4, 1, 1, 1, 1]
    assert seen[0]["path"] == "/v1/models/thumbnet/versions/3:predict"
    assert [line[0] for line in columns(capsys.readouterr().out)] == [disc_files[0], *disc_files[2:]]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (200, "{", "must answer as TensorFlow Serving does"),
        (200, '{"outputs": []}', "KeyError"),
        (200, '{"predictions": []}', "0 rows for 4 images"),
        (200, '{"predictions": [[0.1, 0.2]]}', "TypeError"),
        (200, json.dumps({"predictions": [{"classes": ["a"], "scores": [1, 2]}] * 4}), "4 rows for 4 images"),
        (400, json.dumps({"error": NO_INPUT}), "correct --model, --version, --version_label or --signature"),
        (400, json.dumps({"error": NO_SIGNATURE}), "'serving_default' (HTTP 400 Serving signature name"),
        (400, json.dumps({"error": TOO_MANY}), "lower one or raise the other. Received: HTTP 400 Task size 64 is"),
        (200, '{"predictions": [{"classes": 5, "scores": [1]}]}', "with classes and scores; see --model"),
        (404, '{"error": "no such model"}', "no such model"),
        (500, "<html>broken</html>", "the server failed; see its log. Received: HTTP 500 (<html>broken</html>)"),
    ],
)
def test_answers_that_end_the_command(status, body, text, disc_files):
    with http_server(lambda content, number: (status, body)) as (address, seen), pytest.raises(UserError) as caught:
        client.main(Options(rest=f"http://{address}/", files=tuple(disc_files)))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert len(seen) == 1, "none of these may be tried again"


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("FAILED_PRECONDITION", 'Serving signature key "thumbnail" not found.'),
        ("INVALID_ARGUMENT", "Unrecognized servable version label: old"),
        (
            "INVALID_ARGUMENT",
            "Signature input alias: thumbnail_bytes(feed name: thumbnail_bytes:0) not found in request and no "
            "default value provided. Inputs expected to be in the request {image_bytes}, or default input alias set: ",
        ),
        ("INVALID_ARGUMENT", "Inputs contains invalid name. Used request inputs: , request input: image_bytes"),
        (
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=2 len({image_bytes}) != len({a,b}). Sent extra: ",
        ),
        (
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: classes Outputs expected to be in the set {}.",
        ),
        ("INVALID_ARGUMENT", TOO_MANY),
    ],
)
def test_grpc_tells_a_wrong_question_from_a_wrong_image(code, details):
    target = Target("localhost:1", "thumbnet", 0, "", "thumbnail", 1)
    transport = GrpcTransport(target)
    answer = types.SimpleNamespace(code=lambda: grpc.StatusCode[code], details=lambda: details)
    found = transport._explained(answer)
    transport.close()
    assert isinstance(found, UserError) and details.split("{")[0].strip() in str(found)
    assert ("--batch_size" if details == TOO_MANY else "correct --model") in str(found)


def test_a_hanging_server_is_given_up(disc_files, pauses):
    release = threading.Event()

    def answer(body, number):
        release.wait()
        return 200, predictions(1)

    with http_server(answer) as (address, seen):
        try:
            with pytest.raises(UserError, match=rf"nothing from {address} in 3 tries \(last: nothing within --timeout"):
                client.main(Options(rest=address, files=(disc_files[0],), timeout_seconds=0.2, retries=2))
            assert len(pauses) == 2
            end = time.monotonic() + 60
            while len(seen) < 3:  # the server may note a request after the client has given it up
                assert time.monotonic() < end
                threading.Event().wait(0.01)
        finally:
            release.set()
    assert len(seen) == 3


def test_a_command_that_ends_does_not_wait_for_a_server_that_hangs(disc_files, pauses):
    release, bad = threading.Event(), base64.b64encode(pathlib.Path(disc_files[0]).read_bytes()).decode()

    def answer(body, number):
        if body["instances"] == [{"image_bytes": {"b64": bad}}]:
            return 400, '{"error": "no image"}'
        release.wait()
        return 200, predictions(1)

    options = {"files": tuple(disc_files[:4]), "batch_size": 1, "workers": 2, "timeout_seconds": 0.5, "retries": 20}
    with http_server(answer) as (address, seen):
        try:
            with pytest.raises(UserError, match=f"an image was refused.*Received: {disc_files[0]} "):
                client.main(Options(rest=address, **options))
            assert len(pauses) <= 2 and len(seen) <= 4
        finally:
            release.set()


@pytest.mark.parametrize("classes", [[[1, 2]], ["cat"], 3, [["cat", "dog", "cow"]]])
def test_grpc_answers_of_another_kind_are_one_line(classes):
    transport = GrpcTransport(Target("localhost:1", "other", 0, "", "serving_default", 1))
    outputs = {"classes": tf.make_tensor_proto(classes), "scores": tf.make_tensor_proto([[0.75, 0.25]])}
    response = predict_pb2.PredictResponse(outputs=outputs)
    transport._stub = types.SimpleNamespace(Predict=lambda request, timeout: response)
    with pytest.raises(UserError, match=r"with classes and scores.*Received: another answer from localhost:1 \(\w+: "):
        transport.predict([b"image"])
    transport.close()


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_no_server(kind, disc_files, pauses):
    address = f"{LOCAL}:{free_port()}"
    with pytest.raises(UserError, match=rf"start it as saved_models/README.md says.*nothing from {address} in 3 tries"):
        client.main(Options(**{kind: address}, files=tuple(disc_files), retries=2, workers=1))
    assert len(pauses) == 2


def test_a_batch_may_be_larger_than_grpcs_default_limit(grpc_address, ask, photos):
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), dtype=np.uint8)
    data = tf.io.encode_png(noise).numpy()
    assert len(data) > 4 * 2**20
    transport = GrpcTransport(Target(grpc_address, "thumbnet", 0, "", "serving_default", 60))
    rows, sent = transport.predict([data])
    transport.close()
    wanted = ask("serving_default", [data])
    assert sent > len(data) and [name for name, _ in rows[0]] == [name.decode() for name in wanted["classes"][0]]
    np.testing.assert_allclose([score for _, score in rows[0]], wanted["scores"][0], atol=1e-6)
    assert set(dict(rows[0])) == set(CLASSES)


def test_urls():
    def url(address: str, version: int = 0, label: str = "") -> str:
        return RestTransport(Target(address, "m", version, label, "thumbnail", 1)).url

    assert url("localhost:8501") == "http://localhost:8501/v1/models/m:predict"
    assert url("https://host/base/", 3) == "https://host/base/v1/models/m/versions/3:predict"
    assert url("host:80", 0, "canary") == "http://host:80/v1/models/m/labels/canary:predict"
