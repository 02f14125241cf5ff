"""Tests of the demo: what the server gives away, and that the page equals Python."""

import http.client
import json
import os
import shutil
import subprocess
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import exif
from PIL import Image

from experiments import browser, demo_check
from thumbnet_tf import demo, demo_server, preprocess, publish
from thumbnet_tf.config import FlagError, UserError
from thumbnet_tf.demo_server import Resource, Server

ROOT = Path(__file__).parent.parent
LITERT = Path(os.environ.get("THUMBNET_LITERT_DIR", demo.LITERT_DIR)).expanduser()


@pytest.fixture
def litert(tmp_path) -> Path:
    """Returns a folder that looks as if npm had installed LiteRT.js."""
    packages = tmp_path / "litert" / "node_modules" / "@litertjs"
    for name, content in (
        ("core/package.json", json.dumps({"version": demo.LITERT_VERSION})),
        ("core/dist/index.js", "core"),
        ("core/wasm/litert_wasm_internal.js", "loader"),
        ("core/wasm/litert_wasm_internal.wasm", "wasm"),
        ("wasm-utils/dist/index.js", "utils"),
    ):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(content)
    return tmp_path / "litert"


@pytest.fixture
def version(tmp_path) -> Path:
    """Returns a folder that looks like an export's version."""
    folder = tmp_path / "models" / "thumbnet" / "3"
    (folder / "tflite").mkdir(parents=True)
    for name in ("downscaler_float32", "classifier_float32", "teacher_float32", "classifier_int8"):
        (folder / "tflite" / f"{name}.tflite").write_text(name)
    facts = {
        "name": "thumbnet",
        "version": 3,
        "labels": ["a", "b"],
        "preprocessing": {"image_size": 32, "thumbnail_size": 16, "crop_fraction": 0.875},
    }
    (folder / publish.MANIFEST).write_text(json.dumps(facts))
    return folder


@pytest.fixture
def server(version, litert) -> Iterator[Server]:
    """Serves both."""
    options = demo.Options(export_dir=str(version.parent), port=0, litert_dir=str(litert))
    with Server(options.host, options.port, demo.resources(options)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and body; the path is sent as it is."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.putrequest(method, path, skip_host=True)  # else http.client reads the path itself
    connection.putheader("Host", "localhost")
    connection.endheaders()
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def test_the_page_and_all_that_it_asks_for_are_served(server):
    status, headers, body = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body == (demo.PAGE / "index.html").read_bytes()
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'self'" in headers["Content-Security-Policy"] and "'sha256-" in str(headers)
    for path, kind, content in (
        ("/app.js?v=1", "text/javascript; charset=utf-8", (demo.PAGE / "app.js").read_bytes()),
        ("/style.css", "text/css; charset=utf-8", (demo.PAGE / "style.css").read_bytes()),
        ("/litert/core.js", "text/javascript; charset=utf-8", b"core"),
        ("/litert/wasm/litert_wasm_internal.wasm", "application/wasm", b"wasm"),
        ("/models/teacher.tflite", "application/octet-stream", b"teacher_float32"),
        ("/models/classifier.tflite", "application/octet-stream", b"classifier_float32"),
    ):
        status, headers, body = ask(server, path)
        assert (status, headers["Content-Type"], body) == (200, kind, content), path
        assert headers["Content-Length"] == str(len(content))
        assert ask(server, path, "HEAD")[2] == b""
    config = json.loads(ask(server, "/config.json")[2])
    assert config == {
        "name": "thumbnet",
        "version": 3,
        "labels": ["a", "b"],
        "image_size": 32,
        "thumbnail_size": 16,
        "crop_fraction": 0.875,
        "variant": "float32",
        "has_teacher": True,
    }


def test_what_the_page_names_exists(server):
    page = (demo.PAGE / "index.html").read_text()
    for name in ("icon.svg", "style.css", "app.js", "/litert/core.js", "/litert/wasm-utils.js"):
        assert f'"{name}"' in page and ask(server, "/" + name.lstrip("/"))[0] == 200
    for path in demo.PAGE.iterdir():
        assert "http://" not in path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in path.read_text(), path


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.json",
        "/models/../../manifest.json",
        "/models/%2e%2e/%2e%2e/manifest.json",
        "/..%2f..%2fsetup.py",
        "/litert/wasm/../package.json",
        "/litert/wasm/..\\..\\package.json",
        "//etc/passwd",
        "/etc/passwd",
        "/index.html/",
        "/models/",
        "/models/classifier_int8.tflite",
        "/app.js%00.html",
        "http://elsewhere/etc/passwd",
        "x://[",
        "*",
    ],
)
def test_nothing_else_is_served(server, path):
    status, headers, body = ask(server, path)
    assert (status, body) == (404, b"not found\n") and headers["X-Content-Type-Options"] == "nosniff"


def test_other_methods_are_refused_and_deleted_files_are_not_found(server, version):
    assert ask(server, "/", "POST")[0] == 501
    (version / "tflite" / "teacher_float32.tflite").unlink()
    assert ask(server, "/models/teacher.tflite")[0] == 404
    assert ask(server, "/")[0] == 200


def test_it_listens_at_home_and_says_when_it_can_not(server):
    host, port = server.server_address[:2]
    assert host == demo.Options().host == "127.0.0.1" and server.url == f"http://127.0.0.1:{port}/"
    with pytest.raises(UserError, match=rf"choose another --port. Received: 127.0.0.1:{port} \(Address already in use"):
        Server(host, port, server.resources)
    with pytest.raises(UserError, match=r"must name a free address of this machine.*Received: 192.0.2.1:0"):
        Server("192.0.2.1", 0, server.resources)
    with pytest.raises(FlagError, match=r"--port must be 0 to 65535. Received: 65536"):
        demo.Options(port=65536)


def test_missing_parts_are_told(version, litert, tmp_path):
    def found(**changes) -> dict[str, Resource]:
        return demo.resources(demo.Options(**{"export_dir": str(version), "litert_dir": str(litert), **changes}))

    assert {"/models/teacher.tflite", "/config.json", "/"} <= found().keys() and "/index.html" not in found()
    command = rf"`npm install --prefix {tmp_path}/new @litertjs/core@{demo.LITERT_VERSION}`"
    with pytest.raises(UserError, match=rf"{command}. Received: {tmp_path}/new, which holds none"):
        found(litert_dir=str(tmp_path / "new"))
    with pytest.raises(UserError, match=r"must hold downscaler_int8.tflite; export it.*Received: classifier_float32"):
        found(variant="int8")
    with pytest.raises(UserError, match=r"an export's folder, such as .* is expected. Received: .*nowhere"):
        found(export_dir="nowhere")
    (version / "tflite" / "teacher_float32.tflite").unlink()
    without = found()
    assert "/models/teacher.tflite" not in without
    assert json.loads(without["/config.json"].content)["has_teacher"] is False
    package = litert / "node_modules" / "@litertjs" / "core" / "package.json"
    package.write_text('{"version": "0.1.0"}')
    with pytest.raises(UserError, match=r"must hold LiteRT.js .*which holds 0.1.0"):
        found()
    (version / publish.MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"manifest lacks 'preprocessing'; export it again"):
        found()


def test_the_page_is_packaged():
    setup = (ROOT / "setup.py").read_text()
    assert 'package_data={"thumbnet_tf": ["demo_page/*"]}' in setup
    assert {path.name for path in demo.PAGE.iterdir()} >= {"index.html", "style.css", "app.js", "preprocess.js"}
    assert all(len(path.read_text().splitlines()) <= 320 for path in demo.PAGE.iterdir())


@pytest.mark.parametrize(
    ("height", "width", "size", "fraction"),
    [(240, 320, 128, 0.875), (97, 97, 96, 1.0), (31, 47, 96, 0.875), (64, 64, 64, 1.0), (1, 9, 16, 1.0)],
)
def test_the_page_crops_as_python_does(photos, height, width, size, fraction):
    if shutil.which("node") is None:
        pytest.skip("Node.js isn't installed")
    rng = np.random.default_rng(height)
    image = photos(1, max(height, width))[0][:height, :width]
    image = np.clip(image + rng.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
    rgba = np.concatenate([image, rng.integers(0, 256, (height, width, 1), np.uint8)], axis=-1)
    code = (
        f"import {{evalCrop}} from '{(demo.PAGE / 'preprocess.js').as_uri()}'; import fs from 'fs';"
        f"process.stdout.write(evalCrop(new Uint8Array(fs.readFileSync(0)), {width}, {height}, {size}, {fraction}));"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", code], input=rgba.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    shown = np.frombuffer(done.stdout, np.uint8).reshape(size, size, 3)
    np.testing.assert_array_equal(shown, preprocess.eval_crop(tf.constant(image), size, fraction))


def test_the_page_says_that_t_is_always_float32():
    if shutil.which("node") is None:
        pytest.skip("Node.js isn't installed")
    code = (
        f"import {{networks}} from '{(demo.PAGE / 'view.js').as_uri()}';"
        "console.log([networks('int8', true), networks('int8', false), networks('float32', true)].join(';'));"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert done.stdout == "E and S int8, T float32;int8;float32\n"


@pytest.fixture
def page() -> Iterator[browser.Browser]:
    if browser.find() is None:
        pytest.skip("Chromium isn't installed")
    if not (LITERT / "node_modules").is_dir():
        pytest.skip(f"LiteRT.js isn't in {LITERT}; THUMBNET_LITERT_DIR names another folder")
    with browser.Browser() as running:
        yield running


@pytest.mark.slow
def test_the_page_answers_as_python_does(exported, disc_files, tmp_path, page):
    turned = [tmp_path / f"turned.{kind}" for kind in ("png", "webp", "jpg")]
    for path in turned:
        Image.open(disc_files[0]).save(path, quality=95, exif=exif(6), lossless=True)
    options = demo.Options(export_dir=str(exported), port=0, litert_dir=str(LITERT))
    with demo_check.served(options) as url:
        demo_check.open_page(page, url)
        found = demo_check.compare(page, exported, "float32", [*disc_files, *map(str, turned)])
        result = demo_check.summary(found)
        assert result["images"] == result["same label"] == result["same label of T"] == 7
        assert result["largest score difference"] <= demo_check.SCORE_DIFF
        assert result["largest thumbnail difference"] == 0
        sizes = "[...document.querySelectorAll('#bytes td')].map((cell) => Number(cell.textContent.replace(',', '')))"
        photo, *others = page.evaluate(sizes)
        assert photo == turned[-1].stat().st_size and len(others) == 3 and min(others) > 100
        assert page.evaluate("self.crossOriginIsolated") is True

        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"no image")
        demo_check.show(page, str(bad))
        assert page.evaluate("document.body.dataset.state") == "error"
        text = page.evaluate("document.getElementById('error').textContent")
        assert text == "This browser can't read the file as an image. Received: bad.jpg."
        assert page.evaluate("document.getElementById('result').hidden") is True
        demo_check.show(page, disc_files[1])  # and it goes on
        assert page.evaluate("document.body.dataset.state") == "done"
        assert all(address.startswith(url) for address in page.requests()) and page.complaints() == []


def test_a_page_that_does_not_start_is_told_at_once():
    said = {"document.body.dataset.state": "error", "document.getElementById('error').textContent": "no such operator"}
    page = types.SimpleNamespace(call=lambda *_, **__: None, wait=lambda _: None, evaluate=said.get)
    with pytest.raises(UserError, match=r"expected to start. Received: http://a:1, and 'no such operator'"):
        demo_check.open_page(page, "http://a:1")


def test_headers_allow_the_inline_script_of_the_page_only():
    page = b'<script type="importmap">{}</script>'
    policy = demo_server._headers(Resource(page, ".html"))["Content-Security-Policy"]
    # SHA-256 of "{}" in base64
    assert "'sha256-RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o='" in policy and "unsafe-inline" not in policy


@pytest.mark.slow
def test_the_camera_takes_photos_and_is_let_go(exported, page):
    options = demo.Options(export_dir=str(exported), port=0, litert_dir=str(LITERT))
    with demo_check.served(options) as url:
        demo_check.open_page(page, url)
        page.evaluate("document.getElementById('camera').click()")
        page.wait("document.getElementById('video').videoWidth > 0 && !document.getElementById('shoot').hidden")
        page.evaluate("document.body.dataset.state = 'chosen'; document.getElementById('shoot').click()")
        page.wait("['done', 'error'].includes(document.body.dataset.state)")
        assert page.evaluate("document.body.dataset.state") == "done"
        assert sum(score for _, score in page.evaluate(demo_check.SCORES.format("student"))) == pytest.approx(
            1, abs=1e-3
        )
        page.evaluate("document.getElementById('camera').click()")
        assert page.evaluate("document.getElementById('video').srcObject === null")
        assert page.evaluate("document.getElementById('camera').getAttribute('aria-pressed')") == "false"
