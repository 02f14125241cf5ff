"""Tests of the client: the right answers over gRPC, and what it does when the server or an image is bad."""

import itertools
import json
import logging
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from data_helpers import by_pillow, exif
from PIL import Image
from run_helpers import IMAGE_SIZE, RATIO
from serving_helpers import columns, grpc_server

from thumbnet_tf import client, flags
from thumbnet_tf.client import Options
from thumbnet_tf.client_thumbnails import TfliteDownscaler
from thumbnet_tf.config import FlagError, UserError
from thumbnet_tf.csv_files import read_rows

SMALL = IMAGE_SIZE // RATIO


@pytest.fixture
def wanted(ask, disc_files) -> list[list[str]]:
    """Returns the columns that the client must print for `disc_files`, without their paths."""
    answer = ask("serving_default", [pathlib.Path(file).read_bytes() for file in disc_files])
    rows = zip(answer["classes"], answer["scores"], strict=True)
    return [[f"{name.decode()} {score:.4f}" for name, score in zip(*row, strict=True)] for row in rows]


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
    with Image.open(disc_files[0]) as image:
        image.save(tmp_path / "phone.jpg", exif=exif(6))
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
def test_a_device_sends_thumbnails_only(
    grpc_address, exported, ask, disc_files, wanted, tmp_path, capsys, caplog, file_format
):
    downscaler = exported / "tflite" / "downscaler_float32.tflite"
    bad = cut(disc_files[0], tmp_path)
    client.main(
        Options(
            grpc=grpc_address,
            files=(*disc_files, bad),
            downscaler=str(downscaler),
            thumbnail_format=file_format,
            version_label={"png": "stable", "jpeg": "canary"}[file_format],  # versions 1 and 2; E's is 1
            timeout_seconds=60,
            on_bad_image="skip",
        )
    )
    other = "version 2 of the model read thumbnails that version 1's E made"
    assert (other in caplog.text) == (file_format == "jpeg")
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


def test_the_exported_classifier_takes_saved_thumbnails(exported, ask, disc_files, wanted, tmp_path, capsys):
    pngs = ask("downscale", [pathlib.Path(file).read_bytes() for file in disc_files])["thumbnail_png"]
    for i, png in enumerate(pngs):
        (tmp_path / f"{i}.png").write_bytes(png)
    with grpc_server({1: exported.parent.parent / "thumbnet_classifier" / "1"}, {}) as address:
        client.main(Options(grpc=address, signature="thumbnail", files=(str(tmp_path),), timeout_seconds=60))
    assert [line[1:] for line in columns(capsys.readouterr().out)] == wanted


def test_large_files_of_which_thumbnails_are_sent_share_requests(grpc_address, exported, tmp_path, caplog):
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = rng.integers(0, 256, (900, 900, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 2_000_000  # two don't fit into a request
    tiny = exported / "tflite" / "downscaler_float32.tflite"
    with caplog.at_level(logging.INFO):
        client.main(Options(grpc=grpc_address, files=(str(tmp_path),), downscaler=str(tiny), timeout_seconds=60))
    assert "3 images, 0 failed; 1 requests" in caplog.text


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --grpc=HOST:PORT and --rest=HOST:PORT. Received: none"),
        ({"rest": "a:1", "grpc": "b:1"}, "Received: --grpc=b:1 --rest=a:1"),
        ({"rest": "a:1", "version": 1, "version_label": "x"}, "give one of --version and --version_label"),
        ({"rest": "a:1", "output": "x.txt"}, "--output must end with .csv or .json. Received: 'x.txt'"),
        ({"rest": "a:1", "batch_size": 257}, "--batch_size must be 1 to 256. Received: 257"),
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
    texts = [text.replace("\\\n", "") for text in texts]  # commands of two lines
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
