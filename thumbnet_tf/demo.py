"""Serves a page that runs an export's TFLite files in the browser: photo in, thumbnail, labels, time and bytes out.

  python -m thumbnet_tf.demo --export_dir=saved_models/thumbnet/1

The page and the models come from this machine, photos never leave the browser, and nothing is fetched from a network.
The runtime is LiteRT.js, which npm installs once; without it the command says how.
"""

import dataclasses
import json
import pathlib

from thumbnet_tf import flags, publish, variants
from thumbnet_tf.config import UserError, check_options, option
from thumbnet_tf.demo_server import Resource, Server

LITERT_VERSION = "2.5.3"  # of @litertjs/core; other versions may name their files otherwise
LITERT_DIR = "~/.cache/thumbnet_tf/litert"
PAGE = pathlib.Path(__file__).parent / "demo_page"

_PACKAGES = pathlib.Path("node_modules") / "@litertjs"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    export_dir: str = option("saved_models/thumbnet", "a version's folder of an export, or the one above: its latest")
    variant: str = option("float32", "which TFLite files of E and S run", choices=variants.VARIANTS)
    host: str = option("127.0.0.1", "address to listen at; a browser allows the camera at this one, or by HTTPS")
    port: int = option(8000, "port to listen at; 0 = any free one", minimum=0, maximum=65535)
    litert_dir: str = option(LITERT_DIR, f"folder where npm installed @litertjs/core {LITERT_VERSION}")

    def __post_init__(self) -> None:
        check_options(self)


def resources(options: Options) -> dict[str, Resource]:
    """Returns all that the page may ask for, by its address' path.

    Raises:
        UserError: when the export lacks a file, or LiteRT.js is not installed.
    """
    folder = publish.version_folder(pathlib.Path(options.export_dir))
    facts = publish.read_manifest(folder)
    found = {f"/{path.name}": Resource.file(path) for path in PAGE.iterdir() if path.is_file()}
    found["/"] = found.pop("/index.html")
    files = {
        name: folder / "tflite" / variants.file_name(name, options.variant) for name in ("downscaler", "classifier")
    }
    for name, path in files.items():
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in path.parent.glob("*.tflite"))) or "none"
            raise UserError(
                f"--export_dir must hold {path.name}; export it, or choose another --variant. Received: {there}"
            )
        found[f"/models/{name}.tflite"] = Resource.file(path)
    teacher = folder / "tflite" / variants.file_name(variants.TEACHER, "float32")
    if teacher.is_file():
        found[f"/models/{variants.TEACHER}.tflite"] = Resource.file(teacher)
    try:
        preprocessing = facts["preprocessing"]
        config = {
            "name": facts["name"],
            "version": facts["version"],
            "labels": facts["labels"],
            "image_size": preprocessing["image_size"],
            "thumbnail_size": preprocessing["thumbnail_size"],
            "crop_fraction": preprocessing["crop_fraction"],
            "variant": options.variant,
            "has_teacher": teacher.is_file(),
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"the export's manifest lacks {error}; export it again. Received: {folder}") from None
    found["/config.json"] = Resource(json.dumps(config).encode(), ".json")
    return found | _litert(pathlib.Path(options.litert_dir).expanduser())


def _litert(folder: pathlib.Path) -> dict[str, Resource]:
    """Returns LiteRT.js' own files.

    Raises:
        UserError: when they aren't there, or are of another version, with the command that installs them.
    """
    core, utils = folder / _PACKAGES / "core", folder / _PACKAGES / "wasm-utils"
    try:
        version = json.loads((core / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = "none"
    needed = [core / "dist" / "index.js", utils / "dist" / "index.js", core / "wasm" / "litert_wasm_internal.wasm"]
    if version != LITERT_VERSION or not all(path.is_file() for path in needed):
        raise UserError(
            f"--litert_dir must hold LiteRT.js {LITERT_VERSION}; install it by "
            f"`npm install --prefix {folder} @litertjs/core@{LITERT_VERSION}`. "
            f"Received: {folder}, which holds {version}"
        )
    found = {f"/litert/wasm/{path.name}": path for path in (core / "wasm").iterdir() if path.suffix in (".js", ".wasm")}
    found |= {"/litert/core.js": needed[0], "/litert/wasm-utils.js": needed[1]}
    return {address: Resource.file(path) for address, path in found.items()}


def main(options: Options) -> None:
    """Serves until it is interrupted."""
    with Server(options.host, options.port, resources(options)) as server:
        try:
            print(f"open {server.url} in a browser; Ctrl-C ends", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    flags.run(main, Options)
