"""The corpus: Dockerfiles of public projects, fetched by the developer, never committed.

``corpus.json`` lists repository, path, commit and what each exercises. BOXWRIGHT_CORPUS names a
folder with the texts, as ``<owner>/<name>/<commit>/<path>``.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_DIGEST = re.compile(rb"@sha256:[0-9a-f]{64}")
_SYNTAX = re.compile(rb"(?im)\A((?:#.*\n)*)#\s*syntax\s*=.*$")
PLATFORMS = [
    ("amd64", ""),
    ("arm64", "v8"),
    ("arm", "v7"),
    ("386", ""),
    ("ppc64le", ""),
    ("s390x", ""),
]


@dataclass(frozen=True)
class Entry:
    """One Dockerfile of the corpus."""

    repository: str
    path: str
    commit: str
    exercises: str

    def text(self, folder: Path) -> bytes | None:
        """Return the text as it is compared, or None if it was not fetched.

        Digests of base images are left out, since no registry here can answer for them, and so
        is the syntax directive, which stock daemons would pull.
        """
        place = folder / self.repository / self.commit / self.path
        if not place.exists():
            return None
        return _SYNTAX.sub(rb"\1# syntax left out", _DIGEST.sub(b"", place.read_bytes()))


def entries() -> list[Entry]:
    """Return the list."""
    return [
        Entry(**item) for item in json.loads(Path(__file__).with_name("corpus.json").read_text())
    ]


def hosts(texts: list[bytes]) -> set[str]:
    """Return everything in the texts that could be the host of a registry."""
    found = set(re.findall(rb"[a-z0-9][a-z0-9.-]*\.[a-z]{2,}", b"\n".join(texts)))
    return {"docker.io", *(host.decode() for host in found)}


def _blob(value: object) -> tuple[str, bytes]:
    data = json.dumps(value).encode()
    return f"sha256:{sha256(data).hexdigest()}", data


def _every_image() -> tuple[bytes, dict[str, tuple[str, bytes]]]:
    blobs: dict[str, tuple[str, bytes]] = {}
    manifests = []
    for arch, variant in PLATFORMS:
        config_digest, config = _blob(
            {
                "architecture": arch,
                "os": "linux",
                **({"variant": variant} if variant else {}),
                "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": []},
            }
        )
        kind = "application/vnd.oci.image.manifest.v1+json"
        digest, data = _blob(
            {
                "schemaVersion": 2,
                "mediaType": kind,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": config_digest,
                    "size": len(config),
                },
                "layers": [],
            }
        )
        blobs[config_digest] = ("application/octet-stream", config)
        blobs[digest] = (kind, data)
        platform = {
            "os": "linux",
            "architecture": arch,
            **({"variant": variant} if variant else {}),
        }
        manifests.append(
            {"mediaType": kind, "digest": digest, "size": len(data), "platform": platform}
        )
    kind = "application/vnd.oci.image.index.v1+json"
    digest, index = _blob({"schemaVersion": 2, "mediaType": kind, "manifests": manifests})
    blobs[digest] = (kind, index)
    return digest.encode(), blobs


@contextmanager
def registry_of_everything() -> Iterator[str]:
    """Serve a registry that has every name and tag: always the same small image."""
    latest, blobs = _every_image()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            last = path.rpartition("/")[2]
            digest = last if last.startswith("sha256:") else latest.decode()
            kind, data = blobs.get(digest, ("", b""))
            if path in {"/v2/", "/v2"}:
                kind, data, digest = "application/json", b"{}", ""
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(data)))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815 - the base class's names

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def corpus_folder() -> Path | None:
    """Return the folder of the texts, if there is one."""
    named = os.environ.get("BOXWRIGHT_CORPUS")
    return Path(named) if named else None
