"""Pushes that go wrong, by the real program to a registry that misbehaves: red, and told why."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path

import pytest
from fakeregistry import ServedRegistry
from programs import Buildx, Cli, Context, Daemon, Registry, Run, find_peer, run

from boxwright.errors import EXIT_CODES, Code
from boxwright.testing.certificates import CertificateAuthority
from boxwright.testing.registry import Failure, Faults

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = "FROM scratch\nCOPY data /data\nCOPY Dockerfile /other\n"
CONTENT = b"".join(number.to_bytes(8, "big") for number in range(60_000))


@pytest.fixture
def project(context: Context) -> Context:
    """An image of two layers, one of them of 480 kB."""
    context.write("data", CONTENT)
    context.dockerfile(DOCKERFILE, base=False)
    return context


def said(done: Run) -> str:
    """What a failed build tells its user: from the error line on."""
    assert "Traceback" not in done.text
    return done.err[done.err.index("error: ") :]


def push(cli: Cli, project: Context, name: str, *argv: str | Path) -> Run:
    return cli.build("-t", name, "--push", *argv, project.path)


def layers(cli: Cli, project: Context) -> list[str]:
    """The digests of the image's blobs, and last the one of its manifest."""
    cli.build("-t", "local:1", project.path).ok()
    shown = cli("image", "inspect", "--raw", "store:local:1").ok().out
    manifest = json.loads(shown)
    found = [layer["digest"] for layer in manifest["layers"]]
    listed = json.loads(cli("image", "inspect", "--json", "store:local:1").ok().out)
    return [*found, listed["digest"]]


# --- transfers that stop moving ------------------------------------------------------------------


@pytest.fixture
def impatient(tmp_path: Path) -> tuple[str, Path]:
    """A configuration that waits a second where the default waits a minute."""
    config = tmp_path / "impatient.toml"
    config.write_text('[boxwright]\nstallTimeout = "1s"\n')
    return "--config", config


def test_an_upload_that_stalls_is_given_up(
    cli: Cli, context: Context, impatient: tuple[str, Path]
) -> None:
    context.write("data", os.urandom(24 << 20))  # more than the sockets hold
    context.dockerfile("FROM scratch\nCOPY data /data\n", base=False)
    with ServedRegistry(faults=Faults(stall_uploads=99, break_after=1)) as registry:
        name = f"{registry.host}/team/app:1"
        done = cli(*impatient, "build", "--progress", "plain", "-t", name, "--push", context.path)
        assert registry.fake.tags == {}
        host = registry.host
    assert done.status == EXIT_CODES[Code.REGISTRY_UNREACHABLE], done.text
    text = said(done)
    assert f"upload to registry {host} stalled" in text
    assert re.search(
        r"blob sha256:[0-9a-f]{64} at byte [1-9]\d* of \d+, nothing moved for 1 s", text
    )
    assert re.search(r"last answer: [A-Z]+ 20\d", text)
    assert "run it again" in text


def test_an_upload_that_stalls_once_goes_on(
    cli: Cli, context: Context, impatient: tuple[str, Path]
) -> None:
    context.write("data", os.urandom(24 << 20))
    context.dockerfile("FROM scratch\nCOPY data /data\n", base=False)
    with ServedRegistry(faults=Faults(stall_uploads=1, break_after=1)) as registry:
        name = f"{registry.host}/team/app:1"
        cli(*impatient, "build", "-t", name, "--push", context.path).ok()
        assert ("team/app", "1") in registry.fake.tags
        cli("image", "verify", name).ok()


def test_a_download_that_stalls_is_given_up(
    cli: Cli, project: Context, impatient: tuple[str, Path], tmp_path: Path
) -> None:
    with ServedRegistry() as registry:
        name = f"{registry.host}/team/app:1"
        push(cli, project, name).ok()
        registry.fake.faults.stall_downloads, registry.fake.faults.break_after = 99, 1
        project.dockerfile(f"FROM {name}\nCOPY Dockerfile /third\n", base=False)
        other = ("--root", tmp_path / "other", *impatient)  # which has none of the layers
        done = cli(*other, "build", "--progress", "plain", project.path)
        host = registry.host
    assert done.status == EXIT_CODES[Code.REGISTRY_UNREACHABLE], done.text
    text = said(done)
    assert f"download from registry {host} broke off" in text
    assert re.search(r"blob sha256:[0-9a-f]{64} at byte \d+ of \d+: no byte for 1 s", text)


@pytest.mark.peer("docker-buildx")
def test_a_pull_that_fails_is_an_error_of_its_step(
    cli: Cli, project: Context, buildx: Buildx, tmp_path: Path
) -> None:
    with ServedRegistry() as registry:
        name = f"{registry.host}/team/app:1"
        other = ("--root", tmp_path / "other")  # the daemon has none of the layers
        cli(*other, "build", "-t", name, "--push", project.path).ok()
        registry.fake.faults.end_early, registry.fake.faults.break_after = 99, 5000
        project.dockerfile(f"FROM {name}\nCOPY Dockerfile /third\n", base=False)
        done = buildx.build("-o", f"type=tar,dest={tmp_path}/out.tar", project.path)
        host = registry.host
    assert done.status == 1, done.text
    source = re.search(rf"^(#\d+) .* FROM {host}/team/app", done.err, re.MULTILINE)
    assert source is not None, done.err
    layer = rf"{source[1]} (sha256:[0-9a-f]{{64}}) [0-9.]+k?B / 143.* done"
    lost = re.search(rf"^{layer}$", done.err, re.MULTILINE)
    assert lost is not None, done.err
    assert re.search(rf"^#\d+ ERROR: .*{lost[1]}", done.err, re.MULTILINE), done.err
    assert re.search(rf"^{source[1]} DONE", done.err, re.MULTILINE), done.err


# --- the six faults ------------------------------------------------------------------------------


def test_1_killed_at_half(cli: Cli, project: Context) -> None:
    # Compressed, the layer is small: it is the connection that breaks, again and again.
    faults = Faults(break_uploads=999, break_after=1)
    with ServedRegistry(faults=faults) as registry:
        done = push(cli, project, f"{registry.host}/team/app:1")
        assert registry.fake.tags == {}
    assert done.status == EXIT_CODES[Code.REGISTRY_UNREACHABLE], done.text
    text = said(done)
    assert f"upload to registry {registry.host} broke off" in text
    assert re.search(r"blob sha256:[0-9a-f]{64} at byte \d+ of \d+: ", text)
    assert "last answer: POST 202" in text


def test_2_the_registry_loses_a_blob(cli: Cli, project: Context) -> None:
    lost = layers(cli, project)[0]
    with ServedRegistry(faults=Faults(lose_blobs={lost})) as registry:
        done = push(cli, project, f"{registry.host}/team/app:1")
    assert done.status == EXIT_CODES[Code.REGISTRY_FAILED], done.text
    assert f"registry {registry.host} lost a blob that was pushed" in said(done)
    assert lost in said(done)


def test_3_the_tag_is_moved(cli: Cli, project: Context) -> None:
    wanted = layers(cli, project)[-1]
    with ServedRegistry() as registry:
        other, _ = registry.fake.put_manifest("team/app", "", {"schemaVersion": 2})
        registry.fake.faults.move_tags["1"] = other
        done = push(cli, project, f"{registry.host}/team/app:1")
    assert done.status == EXIT_CODES[Code.REGISTRY_FAILED], done.text
    assert f"{registry.host}/team/app:1 no longer points at what was pushed" in said(done)
    assert f"pushed {wanted}, the registry has {other}" in said(done)


def test_4_pullers_ask_another_host(cli: Cli, project: Context, tmp_path: Path) -> None:
    config = tmp_path / "buildkitd.toml"
    with ServedRegistry() as registry, ServedRegistry() as other:
        config.write_text(f'[boxwright.pullHosts]\n"{registry.host}" = "{other.host}"\n')
        name = f"{registry.host}/team/app:1"
        done = cli("--config", config, "build", "-t", name, "--push", project.path)
    assert done.status == EXIT_CODES[Code.REGISTRY_FAILED], done.text
    assert f"{other.host} does not have a" in said(done)
    assert f"that was pushed to {registry.host}" in said(done)


def test_5_only_the_digest_is_there(cli: Cli, project: Context) -> None:
    wanted = layers(cli, project)[-1]
    with ServedRegistry(faults=Faults(ignore_tags=True)) as registry:
        done = push(cli, project, f"{registry.host}/team/app:1")
        assert ("team/app", wanted) in registry.fake.manifests
    assert done.status == EXIT_CODES[Code.REGISTRY_FAILED], done.text
    assert f"{registry.host}/team/app:1 does not exist after its push" in said(done)
    assert f"@{wanted}" in said(done)


def test_6_a_name_with_an_underscore(cli: Cli, project: Context) -> None:
    body = b'{"errors":[{"code":"NAME_INVALID","message":"invalid repository name"}]}'
    faults = Faults(failures=[Failure("POST", "/uploads/", 400, 99, body=body)])
    with ServedRegistry(faults=faults) as registry:
        done = push(cli, project, f"{registry.host}/team/my_app:1")
    assert done.status == EXIT_CODES[Code.REGISTRY_FAILED], done.text
    assert f"registry {registry.host} does not take this image name" in said(done)
    assert "use '-'" in said(done)


@pytest.mark.peer("buildctl")
def test_a_stock_client_is_told_too(daemon: Daemon, project: Context) -> None:
    with ServedRegistry(faults=Faults(ignore_tags=True)) as registry:
        folder = f"context={project.path}", f"dockerfile={project.path}"
        argv = [find_peer("buildctl"), "--addr", daemon.address, "build"]
        argv += ["--frontend", "dockerfile.v0", "--local", folder[0], "--local", folder[1]]
        output = f"type=image,name={registry.host}/team/app:1,push=true"
        done = run([*argv, "--output", output])
    assert done.status != 0
    assert f"{registry.host}/team/app:1 does not exist after its push" in done.err


# --- registries that say no ----------------------------------------------------------------------

REFUSALS = {
    "unknown-repository": (
        Failure("POST", "/uploads/", 404, 99, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}'),
        "has no such repository",
        "create it there first",
    ),
    "read-only": (
        Failure("POST", "/uploads/", 405, 99, body=b'{"errors":[{"code":"UNSUPPORTED"}]}'),
        "takes no pushes",
        "read-only or a mirror",
    ),
    "denied": (
        Failure("POST", "/uploads/", 403, 99, body=b'{"errors":[{"code":"DENIED"}]}'),
        "denies access",
        "docker login",
    ),
    "full": (
        Failure("PUT", "/uploads/", 500, 99, body=b"no space left on device"),
        "failed",
        "that is its own failure",
    ),
    "proxy-limit": (
        Failure("PUT", "/manifests/", 413, 99, body=b"<html>Too Large</html>"),
        "does not take requests of this size",
        "client_max_body_size",
    ),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_refusals_say_what_to_do(cli: Cli, project: Context, name: str) -> None:
    failure, brief, hint = REFUSALS[name]
    with ServedRegistry(faults=Faults(failures=[failure])) as registry:
        done = push(cli, project, f"{registry.host}/team/app:1")
    assert done.status in {EXIT_CODES[Code.REGISTRY_FAILED], EXIT_CODES[Code.REGISTRY_AUTH]}
    assert f"registry {registry.host}" in said(done)
    assert brief in said(done)
    assert hint in said(done)


def test_asked_too_often_it_waits_as_long_as_it_is_told(cli: Cli, project: Context) -> None:
    slow_down = Failure("POST", "/uploads/", 429, 2, headers={"Retry-After": "0"})
    with ServedRegistry(faults=Faults(failures=[slow_down])) as registry:
        push(cli, project, f"{registry.host}/team/app:1").ok()
        assert registry.fake.tags


def test_a_broken_connection_costs_no_push(cli: Cli, project: Context) -> None:
    faults = Faults(break_uploads=1, break_after=1)
    with ServedRegistry(faults=faults) as registry:
        push(cli, project, f"{registry.host}/team/app:1").ok()
        assert registry.fake.tags
        assert faults.break_uploads == 0


# --- the wrong protocol --------------------------------------------------------------------------


def pull(cli: Cli, context: Context, config: Path, base: str) -> Run:
    context.dockerfile(f"FROM {base}\n", base=False)
    return cli("--config", config, "build", "--progress", "plain", context.path)


def test_http_where_https_was_expected(cli: Cli, context: Context, tmp_path: Path) -> None:
    config = tmp_path / "buildkitd.toml"
    with ServedRegistry() as registry:
        # The key that has no effect is the one of the man who wrote it for his namespace.
        config.write_text(
            f'[registry."{registry.host}"]\nhttp = false\n'
            f'[registry."{registry.host}/team"]\nhttp = true\n'
        )
        done = pull(cli, context, config, f"{registry.host}/team/app:1")
    assert done.status == EXIT_CODES[Code.REGISTRY_PROTOCOL], done.text
    text = said(done)
    assert f"registry {registry.host} speaks plain HTTP, not HTTPS" in text
    assert f'set http = true under [registry."{registry.host}"] in {config}' in text
    assert f'[registry."{registry.host}/team"] there has no effect' in text


def test_https_where_http_was_expected(cli: Cli, context: Context, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    config = tmp_path / "buildkitd.toml"
    with ServedRegistry(tls=tls) as registry:
        config.write_text(f'[registry."{registry.host}"]\nhttp = true\n')
        done = pull(cli, context, config, f"{registry.host}/team/app:1")
    assert done.status == EXIT_CODES[Code.REGISTRY_PROTOCOL], done.text
    assert f"registry {registry.host} speaks HTTPS, and was asked in plain HTTP" in said(done)
    assert f'remove http = true under [registry."{registry.host}"] in {config}' in said(done)


def test_a_mirror_that_is_down_costs_no_build(cli: Cli, context: Context, tmp_path: Path) -> None:
    config = tmp_path / "buildkitd.toml"
    with ServedRegistry() as mirror, ServedRegistry() as registry:
        image = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        setting = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}'
        digest = registry.fake.put_blob("team/app", setting)
        media_type = "application/vnd.oci.image.config.v1+json"
        image |= {
            "config": {"mediaType": media_type, "digest": digest, "size": len(setting)},
            "layers": [],
        }
        registry.fake.put_manifest("team/app", "1", image)
        mirror.fake.faults.failures.append(Failure("GET", "/v2/", 503, 99))
        config.write_text(
            f'[registry."{registry.host}"]\nmirrors = ["127.0.0.1:1", "{mirror.host}"]\n'
        )
        pull(cli, context, config, f"{registry.host}/team/app:1").ok()
        assert mirror.fake.count("GET", "/manifests/")


# --- what it costs -------------------------------------------------------------------------------


@pytest.mark.peer("docker-registry")
def test_confirming_a_push_is_part_of_its_progress(
    cli: Cli, project: Context, registry: Registry
) -> None:
    argv = ("-t", f"{registry.host}/team/app:1", "--push", "--progress", "rawjson")
    done = cli("build", *argv, project.path).ok()
    found = [
        status
        for line in done.err.splitlines()
        if line.startswith("{")
        for status in json.loads(line).get("statuses", ())
        if status["id"] == "verifying that it can be pulled"
    ]
    began, ended = (
        datetime.fromisoformat(found[-1][key][:26]) for key in ("started", "completed")
    )
    assert ended >= began
