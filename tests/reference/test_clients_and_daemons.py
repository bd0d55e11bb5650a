"""Every client with every daemon: ours and upstream's, in all four pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import Client
from programs import Context, Layout

pytestmark = [pytest.mark.reference, pytest.mark.root]

EXAMPLE = """
FROM base AS one
ARG WORD=default
RUN echo "$WORD" > /word
FROM base AS two
RUN --mount=type=secret,id=key cat /run/secrets/key | sha256sum > /hash
FROM base
COPY --from=one /word /word
COPY --from=two /hash /hash
CMD ["cat", "/word"]
"""


def test_oci_archive(
    client: Client, daemon_address: str, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(EXAMPLE)
    secret = tmp_path / "key"
    secret.write_text("value")
    archive = tmp_path / "o.tar"
    client.build(
        daemon_address,
        context.path,
        "--opt",
        "build-arg:WORD=w",
        "--secret",
        f"id=key,src={secret}",
        "--output",
        f"type=oci,dest={archive}",
    ).ok()
    files = Layout.unpack(archive).files()
    assert files["word"].split()[2] == "2"
    assert "hash" in files


@pytest.mark.parametrize("kind", ["docker", "tar"])
def test_archives(
    client: Client, daemon_address: str, context: Context, tmp_path: Path, kind: str
) -> None:
    import tarfile

    context.dockerfile("FROM base\nRUN echo x > /x\n")
    archive = tmp_path / "o.tar"
    client.build(daemon_address, context.path, "--output", f"type={kind},dest={archive}").ok()
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert ("manifest.json" in names) if kind == "docker" else ("x" in names)


def test_local_output(
    client: Client, daemon_address: str, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nRUN mkdir -p /d/e && echo x > /d/e/f && ln -s f /d/e/l\n")
    client.build(daemon_address, context.path, "--output", f"type=local,dest={tmp_path}/out").ok()
    assert (tmp_path / "out/d/e/l").read_text() == "x\n"


def test_many_files(client: Client, daemon_address: str, context: Context, tmp_path: Path) -> None:
    for number in range(2000):
        context.write(f"data/{number % 13}/{number}", f"{number}\n" * (number % 50))
    context.write(".dockerignore", "data/3\n!data/3/16\n")
    context.dockerfile("FROM scratch\nCOPY data /data\n", base=False)
    client.build(daemon_address, context.path, "--output", f"type=local,dest={tmp_path}/out").ok()
    found = sorted(p.name for p in (tmp_path / "out/data").rglob("*") if p.is_file())
    wanted = sorted(str(n) for n in range(2000) if n % 13 != 3 or n == 16)
    assert found == wanted


def test_failing_step(client: Client, daemon_address: str, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo before && false\n")
    done = client.build(daemon_address, context.path)
    assert done.status != 0
    assert "exit code: 1" in done.text
    assert "RUN echo before && false" in done.text


def test_queries(client: Client, daemon_address: str) -> None:
    assert "linux/amd64" in client(daemon_address, "debug", "workers").ok().out
    assert client(daemon_address, "debug", "info").ok().out
    client(daemon_address, "du").ok()
