"""Tests of the client: the right answers over gRPC, and what it does when the server or an image is bad."""

import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from data_helpers import by_pillow
from PIL import Image
from run_helpers import CLASSES, IMAGE_SIZE, RATIO
from serving_helpers import LOCAL, free_port, http_server

from thumbnet_tf import client, client_transport, flags
from thumbnet_tf.client import Options
from thumbnet_tf.client_thumbnails import TfliteDownscaler
from thumbnet_tf.client_transport import GrpcTransport, RestTransport, Target
from thumbnet_tf.config import FlagError, UserError
from thumbnet_tf.csv_files import read_rows

SMALL = IMAGE_SIZE // RATIO


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Makes pauses between tries short, and returns a list of those asked for."""
    asked, sleep = [], time.sleep
    monkeypatch.setattr(client_transport.time, "sleep", lambda seconds: (asked.append(seconds), sleep(0.01))[1])
    return asked


@pytest.fixture
def wanted(ask, disc_files) -> list[list[str]]:
    """Returns the columns that the client must print for `disc_files`, without their paths."""
    answer = ask("serving_default", [pathlib.Path(file).read_bytes() for file in disc_files])
    rows = zip(answer["classes"], answer["scores"], strict=True)
    return [[f"{name.decode()} {score:.4f}" for name, score in zip(*row, strict=True)] for row in rows]


def columns(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def predictions(count: int) -> str:
    """Returns the body of a right REST answer."""
    row = {"classes": ["cat", "dog"], "scores": [0.75, 0.25], "probabilities": [0.25, 0.75]}
    return json.dumps({"predictions": [row] * count})


def cut(file: str, folder: pathlib.Path) -> str:
    """Writes the first half of a file to another, and returns its path."""
    data = pathlib.Path(file).read_bytes()
    path = folder / f"cut{pathlib.Path(file).suffix}"
    path.write_bytes(data[: len(data) // 2])
    return str(path)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 3), (3, 1), (16, 2)])
def test_answers_come_in_order_whatever_the_batch(grpc_address, disc_files, wanted, capsys, batch_size, workers):
    files = tuple(disc_files * 3)
    client.main(Options(grpc=grpc_address, files=files, batch_size=batch_size, workers=workers, timeout_seconds=60))
    lines = columns(capsys.readouterr().out)
    assert [line[0] for line in lines] == list(files)
    assert [line[1:] for line in lines] == wanted * 3


def test_command_line(grpc_address, disc_files, wanted, tmp_path):
    folder, output = pathlib.Path(disc_files[0]).parent, tmp_path / "answers.csv"
    call = [sys.executable, "-m", "thumbnet_tf.client", f"--grpc={grpc_address}", "--timeout_seconds=60"]
    result = subprocess.run(
        [*call, f"--output={output}", "--top=2", "--version_label=canary", str(folder)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and not result.stdout, result.stderr
    summary = result.stderr.splitlines()[-1]
    assert re.search(r"12 images, 0 failed; 1 requests, 0\.\d\d MB sent; latency of a request p50 \d+ ms, p95", summary)
    rows = read_rows(output)
    assert list(rows[0]) == ["file", "label_1", "score_1", "label_2", "score_2", "error"]
    assert [row["file"] for row in rows] == [str(folder / f"{i}.png") for i in range(12)]
    first = [f"{rows[0][f'label_{rank}']} {float(rows[0][f'score_{rank}']):.4f}" for rank in (1, 2)]
    assert first == wanted[0][:2] and rows[0]["error"] == ""


def test_images_that_exif_says_to_turn_are_told(grpc_address, disc_files, tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(disc_files[0]) as image:
        image.save(tmp_path / "phone.jpg", exif=exif)
    files = (disc_files[0], str(tmp_path / "phone.jpg"))
    client.main(Options(grpc=grpc_address, files=files, timeout_seconds=60))
    assert "1 of 2 images carry an EXIF orientation, which is ignored" in caplog.text


def test_only_the_bad_image_of_a_batch_fails(grpc_address, disc_files, wanted, tmp_path, capsys):
    bad = cut(disc_files[2], tmp_path)
    files = (*disc_files[:2], bad, *disc_files[2:])
    options = {"grpc": grpc_address, "files": files, "timeout_seconds": 60.0}
    with pytest.raises(UserError, match=rf"^an image was refused; .*Received: {bad} \(image_bytes must be whole"):
        client.main(Options(**options))
    output = tmp_path / "answers.json"
    client.main(Options(**options, on_bad_image="skip", output=str(output), top=5))
    rows = json.loads(output.read_text())
    assert [row["file"] for row in rows] == list(files) and not capsys.readouterr().out.count("cut")
    assert rows[2]["top"] == []
    assert rows[2]["error"].startswith("image_bytes must be whole images") and rows[2]["error"].endswith("[0]")
    good = [[f"{label['label']} {label['score']:.4f}" for label in row["top"]] for row in rows if not row["error"]]
    assert good == wanted
    with pytest.raises(UserError, match="at least one image must be readable.*1 refused"):
        client.main(Options(**options | {"files": (bad,)}, on_bad_image="skip"))


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
def test_a_device_sends_thumbnails_only(grpc_address, exported, ask, disc_files, wanted, tmp_path, capsys, file_format):
    downscaler = exported / "tflite" / "downscaler_float32.tflite"
    bad = cut(disc_files[0], tmp_path)
    client.main(
        Options(
            grpc=grpc_address,
            files=(*disc_files, bad),
            downscaler=str(downscaler),
            thumbnail_format=file_format,
            timeout_seconds=60,
            on_bad_image="skip",
        )
    )
    lines = [line[1:] for line in columns(capsys.readouterr().out)]
    if file_format == "png":
        assert lines == wanted
    images = [pathlib.Path(file).read_bytes() for file in disc_files]
    decoded = [tf.io.decode_image(image, expand_animations=False) for image in images]
    sent = [TfliteDownscaler(str(downscaler), file_format, 95)(image) for image in decoded]
    exact = ask("downscale", images)["thumbnail"]
    assert [data[:4] for data in sent] == [{"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff\xe0"}[file_format]] * 4
    error = np.abs(np.array([by_pillow(data) for data in sent]) - exact)
    assert error.max() == 0 if file_format == "png" else 0 < error.mean() < 4
    scores = ask("thumbnail", sent)["scores"]
    assert [line[0].split()[1] for line in lines] == [f"{score:.4f}" for score in scores[:, 0]]


def test_saved_thumbnails(grpc_address, ask, disc_files, wanted, tmp_path, capsys):
    pngs = ask("downscale", [pathlib.Path(file).read_bytes() for file in disc_files])["thumbnail_png"]
    for i, png in enumerate(pngs):
        (tmp_path / f"{i}.png").write_bytes(png)
    client.main(Options(grpc=grpc_address, signature="thumbnail", files=(str(tmp_path),), timeout_seconds=60))
    assert [line[1:] for line in columns(capsys.readouterr().out)] == wanted
    with pytest.raises(UserError, match=f"thumbnail_bytes must be images of {SMALL} x {SMALL} pixels"):
        client.main(Options(grpc=grpc_address, signature="thumbnail", files=tuple(disc_files), timeout_seconds=60))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "other"}, "'other', version any, 'serving_default' (Servable not found"),
        ({"version": 7}, "'thumbnet', version 7, 'serving_default' (Could not find version 7"),
        ({"version_label": "old"}, "version old, 'serving_default' (Unrecognized servable version label: old"),
    ],
)
def test_unknown_models_and_versions(grpc_address, disc_files, options, text):
    with pytest.raises(UserError, match=re.escape(text)):
        client.main(Options(grpc=grpc_address, files=tuple(disc_files), timeout_seconds=60, **options))


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
        (400, '{"error": "input tensor alias not found in signature: image_bytes"}', "correct --model"),
        (404, '{"error": "no such model"}', "no such model"),
        (400, '{"error": "Serving signature key \\"serving_default\\" not found."}', "signature key"),
        (500, "<html>broken</html>", "the server failed; see its log. Received: HTTP 500 (<html>broken</html>)"),
    ],
)
def test_answers_that_end_the_command(status, body, text, disc_files):
    with http_server(lambda content, number: (status, body)) as (address, seen), pytest.raises(UserError) as caught:
        client.main(Options(rest=f"http://{address}/", files=tuple(disc_files)))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert len(seen) == 1, "none of these may be tried again"


def test_a_hanging_server_is_given_up(disc_files, pauses):
    release = threading.Event()

    def answer(body, number):
        release.wait()
        return 200, predictions(1)

    with http_server(answer) as (address, seen):
        try:
            with pytest.raises(UserError, match=rf"nothing from {address} in 3 tries \(last: nothing within --timeout"):
                client.main(Options(rest=address, files=(disc_files[0],), timeout_seconds=0.2, retries=2))
        finally:
            release.set()
    assert len(seen) == 3 and len(pauses) == 2


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_no_server(kind, disc_files, pauses):
    address = f"{LOCAL}:{free_port()}"
    with pytest.raises(UserError, match=rf"start it as saved_models/README.md says.*nothing from {address} in 3 tries"):
        client.main(Options(**{kind: address}, files=tuple(disc_files), retries=2, workers=1))
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --grpc=HOST:PORT and --rest=HOST:PORT. Received: none"),
        ({"rest": "a:1", "grpc": "b:1"}, "Received: --grpc=b:1 --rest=a:1"),
        ({"rest": "a:1", "version": 1, "version_label": "x"}, "give one of --version and --version_label"),
        ({"rest": "a:1", "output": "x.txt"}, "--output must end with .csv or .json. Received: 'x.txt'"),
        ({"rest": "a:1", "signature": "pixels"}, "--signature must be one of serving_default, thumbnail"),
    ],
)
def test_wrong_flags(options, message):
    with pytest.raises(FlagError, match=re.escape(message)):
        Options(files=("a.jpg",), **options)


def test_other_mistakes(disc_files, exported, tmp_path):
    with pytest.raises(UserError, match="give image files or folders behind the flags. Received: none"):
        Options(rest="a:1")
    with pytest.raises(UserError, match="a folder must hold images"):
        client.main(Options(rest="a:1", files=(str(tmp_path),)))
    with pytest.raises(UserError, match=r"--rest must be host:port or a URL. Received: 'ftp://a'"):
        client.main(Options(rest="ftp://a", files=tuple(disc_files)))
    lone = tmp_path / "tflite" / "downscaler.tflite"
    lone.parent.mkdir()
    lone.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"--downscaler must lie in the folder tflite of an export.*FileNotFoundError"):
        client.main(Options(rest="a:1", files=tuple(disc_files), downscaler=str(lone)))
    facts = json.loads((exported / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="--downscaler can't be read as a TFLite model"):
        client.main(Options(rest="a:1", files=tuple(disc_files), downscaler=str(lone)))
    lone.write_bytes((exported / "tflite" / "downscaler_float32.tflite").read_bytes())
    facts["preprocessing"]["image_size"] *= 2
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"must turn an image of {2 * IMAGE_SIZE} px into a thumbnail of {SMALL} px"):
        client.main(Options(rest="a:1", files=tuple(disc_files), downscaler=str(lone)))


def test_commands_of_the_documentation_parse():
    texts = (client.__doc__, (pathlib.Path(__file__).parent.parent / "saved_models" / "README.md").read_text())
    commands = [line for text in texts for line in re.findall(r"python -m thumbnet_tf\.client (.*)", text)]
    assert len(commands) >= 6
    for command in commands:
        values = absl_flags.FlagValues()
        flags.define(Options, "files", flag_values=values)
        rest = values(["client", *shlex.split(command)])
        assert flags.parsed(Options, rest[1:], "files", flag_values=values).files


def test_batches_stay_below_the_limits(tmp_path):
    files = []
    for i, size in enumerate((10, 40, 60, 200, 10, 10, 10, 10)):
        files.append(str(tmp_path / str(i)))
        pathlib.Path(files[-1]).write_bytes(bytes(size))
    found = list(client.batches(files, 3, 100))
    assert [[os.path.getsize(file) for file in batch] for batch in found] == [
        [10, 40],
        [60],
        [200],
        [10, 10, 10],
        [10],
    ]
    assert list(itertools.chain(*found)) == files


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
