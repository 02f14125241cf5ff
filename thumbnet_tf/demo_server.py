"""A server of a fixed list of files to a browser on this machine; whatever is not on the list doesn't exist to it."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import pathlib
import re
import socket
import urllib.parse
from collections.abc import Mapping

from thumbnet_tf.config import UserError

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
_BYTES = "application/octet-stream"


@dataclasses.dataclass(frozen=True)
class Resource:
    """What one address serves.

    Attributes:
        content: a file, read anew for each request, or bytes.
        suffix: tells the media type, such as `.js`.
    """

    content: pathlib.Path | bytes
    suffix: str

    @classmethod
    def file(cls, path: pathlib.Path) -> "Resource":
        """Returns the resource of a file."""
        return cls(path, path.suffix)


class Server(http.server.ThreadingHTTPServer):
    """Serves resources by their addresses' paths."""

    daemon_threads = True

    def __init__(self, host: str, port: int, resources: Mapping[str, Resource]) -> None:
        """Binds, and serves from `serve_forever` on.

        Args:
            host: address to listen at.
            port: port; 0 for any free one.
            resources: by path, such as `/app.js`; `/` must be HTML.

        Raises:
            UserError: when the address can't be had.
        """
        self.resources = dict(resources)
        self.headers = _headers(self.resources["/"])
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--host and --port must name a free address of this machine; choose another --port. "
                f"Received: {host}:{port} ({getattr(error, 'strerror', None) or error})"
            ) from None

    def server_bind(self) -> None:
        """Binds without asking the network for this machine's name, which may take long."""
        super(http.server.HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        """The page's address."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a browser that went away."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds; an idle connection is given up

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        resource = body = None
        with contextlib.suppress(ValueError):  # such as http://[
            resource = self.server.resources.get(urllib.parse.urlsplit(self.path).path)
        if resource is not None:
            with contextlib.suppress(OSError):  # deleted since the start
                body = resource.content if isinstance(resource.content, bytes) else resource.content.read_bytes()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "text/plain" if body is None else _TYPES.get(resource.suffix, _BYTES))
        body = b"not found\n" if body is None else body
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the terminal quiet."""


def _headers(page: Resource) -> dict[str, str]:
    """Returns every answer's headers: isolation, which WebAssembly's threads need, and no other origin at all."""
    text = page.content if isinstance(page.content, bytes) else page.content.read_bytes()
    inline = re.findall(rb"<script type=\"importmap\">(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in inline]
    scripts = " ".join(["'self'", "'wasm-unsafe-eval'", *(f"'sha256-{digest}'" for digest in hashes)])
    return {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": (
            f"default-src 'self'; script-src {scripts}; worker-src 'self' blob:; img-src 'self' blob:; "
            "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
