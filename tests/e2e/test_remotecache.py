"""Remote caches through real clients: our command line and stock buildx, a real registry."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from programs import Buildx, Cli, Context, Registry, Run, running_registry

pytestmark = [pytest.mark.root]

DOCKERFILE = """
FROM base AS tool
RUN dd if=/dev/urandom bs=32 count=1 | sha256sum > /tool
FROM base
COPY --from=tool /tool /tool
RUN dd if=/dev/urandom bs=32 count=1 | sha256sum > /random
COPY one.txt /
"""


@pytest.fixture
def project(context: Context) -> Context:
    """Steps whose results no second run would repeat."""
    context.write("one.txt", "one")
    context.dockerfile(DOCKERFILE)
    return context


@pytest.fixture
def other(tmp_path: Path, cli: Cli) -> Cli:
    """Our command line on another, empty state folder."""
    return Cli(tmp_path / "other", cli.env)


def tree(folder: Path) -> dict[str, str]:
    """Return what the random steps made."""
    return {name: (folder / name).read_text() for name in ("tool", "random")}


def ran(run: Run) -> int:
    """Return how many RUN steps ran."""
    steps = dict(re.findall(r"^#(\d+) (\[.*\] RUN .*)$", run.text, re.MULTILINE))
    cached = set(re.findall(r"^#(\d+) CACHED", run.text, re.MULTILINE))
    return len(set(steps) - cached)


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize("mode", ["min", "max"])
def test_registry_cache_between_two_folders(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path, mode: str
) -> None:
    ref = f"{registry.host}/team/cache:x"
    first = cli.build(
        "--cache-to", f"type=registry,ref={ref},mode={mode}", "-o", tmp_path / "1", project.path
    ).ok()
    assert "exporting cache to registry" in first.text
    second = other.build("--cache-from", ref, "-o", tmp_path / "2", project.path).ok()
    assert ran(second) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


@pytest.mark.peer("docker-registry")
def test_a_hit_pulls_no_layer(cli: Cli, other: Cli, project: Context, registry: Registry) -> None:
    ref = f"{registry.host}/cache:lazy"
    cli.build("--cache-to", f"type=registry,ref={ref},mode=max", project.path).ok()
    done = other.build("--cache-from", ref, "-o", "type=cacheonly", project.path).ok()
    assert ran(done) == 0
    layers = json.loads(_manifest(registry, "cache", "lazy"))["layers"]
    blobs = {p.name for p in (other.root / "blobs/sha256").iterdir()}
    assert layers
    assert not blobs & {layer["digest"].removeprefix("sha256:") for layer in layers}


def layers_here(cli: Cli, registry: Registry, repository: str, tag: str) -> tuple[int, int]:
    """Return how many layers of a manifest a state folder has, and how many there are."""
    layers = json.loads(_manifest(registry, repository, tag))["layers"]
    blobs = {f"sha256:{path.name}" for path in (cli.root / "blobs/sha256").iterdir()}
    return len(blobs & {layer["digest"] for layer in layers}), len(layers)


def pushed(host: str, **more: str) -> str:
    """Return the attributes of an output."""
    attributes = {"type": "image", "name": f"{host}/app:2", "push": "true", **more}
    return ",".join(f"{key}={value}" for key, value in attributes.items())


@pytest.mark.peer("docker-registry")
def test_a_push_of_imported_layers_pulls_none(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    """They are mounted from where they are: by a push, and by another cache's export."""
    cache, image = f"{registry.host}/cache", f"{registry.host}/app"
    to = f"type=registry,ref={cache}:lazy,mode=max"
    cli.build("--cache-to", to, "-o", f"type=image,name={image}:1,push=true", project.path).ok()
    to = f"type=registry,ref={registry.host}/next:x,mode=max"
    output = ("-o", pushed(registry.host))
    done = other.build(
        "--cache-from", f"{cache}:lazy", "--cache-to", to, *output, project.path
    ).ok()
    assert ran(done) == 0
    assert _manifest(registry, "app", "2") == _manifest(registry, "app", "1")
    for repository, tag in (("app", "2"), ("next", "x")):
        assert layers_here(other, registry, repository, tag)[0] == 0
    assert "not stored" in done.text
    assert f"{image}:2" not in other("image", "ls").ok().out
    third = Cli(tmp_path / "third", cli.env)
    imported = third.build(
        "--cache-from", f"{registry.host}/next:x", "-o", tmp_path / "tree", project.path
    ).ok()
    assert ran(imported) == 0


@pytest.mark.peer("docker-registry")
def test_a_pushed_image_is_stored_where_that_is_wanted(
    cli: Cli, other: Cli, project: Context, registry: Registry
) -> None:
    """Or where its name is stored already and would mean something old."""
    ref = f"{registry.host}/cache:lazy"
    cli.build("--cache-to", f"type=registry,ref={ref},mode=max", project.path).ok()
    image = f"{registry.host}/app:2"
    for attributes in ({"store": "true"}, {}):
        other.build(
            "--cache-from", ref, "-o", pushed(registry.host, **attributes), project.path
        ).ok()
        here, layers = layers_here(other, registry, "app", "2")
        assert here == layers > 1
        assert image in other("image", "ls").ok().out
        other("prune", "--all").ok()
    gone = {"store": "false"}
    other.build("--cache-from", ref, "-o", pushed(registry.host, **gone), project.path).ok()
    assert image in other("image", "ls").ok().out  # an output that stores nothing removes nothing


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize("damage", ["", "damaged"])
def test_a_push_elsewhere_fetches_imported_layers(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path, damage: str
) -> None:
    """And begins again where they turn out not to be what their digests say."""
    ref = f"{registry.host}/cache:lazy"
    cli.build(
        "--cache-to", f"type=registry,ref={ref},mode=max", "-o", tmp_path / "1", project.path
    ).ok()
    for layer in json.loads(_manifest(registry, "cache", "lazy"))["layers"] if damage else ():
        name = layer["digest"].removeprefix("sha256:")
        blob = registry.data / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"
        blob.write_bytes(bytes(blob.stat().st_size))
    (tmp_path / "b").mkdir()
    with running_registry(tmp_path / "b") as second:
        done = other.build("--cache-from", ref, "-o", pushed(second.host), project.path).ok()
        assert f"pushed {second.host}/app:2 (sha256:" in done.text
        assert json.loads(_manifest(second, "app", "2"))["layers"]
        third = Cli(tmp_path / "third", cli.env)
        use = tmp_path / "use"
        use.mkdir()
        (use / "Dockerfile").write_text(f"FROM {second.host}/app:2\n")
        third.build("-o", tmp_path / "2", use).ok()
        assert (tree(tmp_path / "1") == tree(tmp_path / "2")) is not bool(damage)


def _manifest(registry: Registry, repository: str, tag: str) -> bytes:
    base = registry.data / "docker/registry/v2"
    link = base / f"repositories/{repository}/_manifests/tags/{tag}/current/link"
    digest = link.read_text().removeprefix("sha256:")
    return (base / f"blobs/sha256/{digest[:2]}/{digest}/data").read_bytes()


@pytest.mark.peer("docker-registry")
def test_only_the_changed_step_runs(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    ref = f"{registry.host}/cache:x"
    cli.build(
        "--cache-to", f"type=registry,ref={ref},mode=max", "-o", tmp_path / "1", project.path
    ).ok()
    project.write("one.txt", "two")
    second = other.build("--cache-from", ref, "-o", tmp_path / "2", project.path).ok()
    assert ran(second) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    assert (tmp_path / "2/one.txt").read_text() == "two"


def test_local_cache(cli: Cli, other: Cli, project: Context, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for tag in ("latest", "nightly"):
        cli.build(
            "--cache-to",
            f"type=local,dest={folder},mode=max,tag={tag}",
            "-o",
            tmp_path / "1",
            project.path,
        ).ok()
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    names = {e["annotations"]["org.opencontainers.image.ref.name"] for e in entries}
    assert names == {"latest", "nightly"}
    second = other.build(
        "--cache-from", f"type=local,src={folder},tag=nightly", "-o", tmp_path / "2", project.path
    ).ok()
    assert ran(second) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def blobs_of(folder: Path) -> set[str]:
    """Return the blobs of a layout."""
    return {path.name for path in (folder / "blobs/sha256").iterdir()}


def test_reset_removes_what_no_tag_needs(cli: Cli, project: Context, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    target = f"type=local,dest={folder},mode=max"
    cli.build("--cache-to", f"{target},tag=old", project.path).ok()
    old = blobs_of(folder)
    for _ in range(2):  # the random steps make other layers each time
        cli.build("--no-cache", "--cache-to", target, project.path).ok()
    grown = blobs_of(folder)
    cli.build("--cache-to", f"{target},reset=true", project.path).ok()
    left = blobs_of(folder)
    assert old < left  # another tag needs them
    assert left < grown
    (folder / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [_entry(folder, "latest")]})
    )
    cli.build("--cache-to", f"{target},reset=1", project.path).ok()
    assert not old <= blobs_of(folder)
    refused = cli.build("--cache-to", f"{target},reset=maybe", project.path)
    assert "failed to parse reset" in refused.text
    assert "RUN" not in refused.text


def _entry(folder: Path, tag: str) -> dict[str, object]:
    name = "org.opencontainers.image.ref.name"
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    (found,) = [each for each in entries if each["annotations"][name] == tag]
    return dict(found)


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize(
    ("attributes", "root", "layer"),
    [
        pytest.param("", "oci.image.manifest.v1", "tar+gzip", id="default"),
        pytest.param("image-manifest=false", "oci.image.index.v1", "tar+gzip", id="index"),
        pytest.param(
            "oci-mediatypes=false", "docker.distribution.manifest.list.v2", "tar.gzip", id="docker"
        ),
        pytest.param("compression=zstd", "oci.image.manifest.v1", "tar+zstd", id="zstd"),
        pytest.param(
            "compression=zstd,compression-level=1,force-compression=true",
            "oci.image.manifest.v1",
            "tar+zstd",
            id="forced",
        ),
        pytest.param("compression=uncompressed", "oci.image.manifest.v1", "v1.tar", id="plain"),
        pytest.param("registry.insecure=true", "oci.image.manifest.v1", "tar+gzip", id="insecure"),
    ],
)
def test_attributes_of_registry_exports(
    cli: Cli,
    other: Cli,
    project: Context,
    registry: Registry,
    tmp_path: Path,
    attributes: str,
    root: str,
    layer: str,
) -> None:
    ref = f"{registry.host}/cache:a"
    target = f"type=registry,ref={ref},mode=max" + (f",{attributes}" if attributes else "")
    cli.build("--cache-to", target, "-o", tmp_path / "1", project.path).ok()
    manifest = json.loads(_manifest(registry, "cache", "a"))
    assert manifest["mediaType"].endswith(f"{root}+json")
    layers = [each["mediaType"] for each in manifest.get("layers") or manifest["manifests"]]
    assert all(each.endswith(layer) for each in layers if "cacheconfig" not in each), layers
    source = f"type=registry,ref={ref}"
    if "insecure" in attributes:
        source += ",registry.insecure=true"
    second = other.build("--cache-from", source, "-o", tmp_path / "2", project.path).ok()
    assert ran(second) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


@pytest.mark.peer("docker-registry")
def test_only_new_layers_are_sent_and_the_cost_is_told(
    cli: Cli, project: Context, registry: Registry
) -> None:
    target = f"type=registry,ref={registry.host}/cache:x,mode=max"
    first = cli.build("--cache-to", target, project.path).ok()
    (said,) = set(re.findall(r"(\d+) of (\d+) layers were new", first.text))
    assert said[0] == said[1] != "0"
    again = cli.build("--cache-to", target, project.path).ok()
    assert f"0 of {said[1]} layers were new, 0 bytes sent" in again.text
    project.write("one.txt", "two")
    changed = cli.build("--cache-to", target, project.path).ok()
    assert re.search(r"\b1 of \d+ layers were new", changed.text)
    answer = json.loads(cli("why", "--json").ok().out)
    (export,) = answer["cacheExports"]
    assert (export["name"], export["sent_layers"]) == ("exporting cache to registry", 1)
    assert export["took_ns"] > 0
    assert answer["savedNs"] > 0
    told = cli("why").ok().out
    assert "the cache saved about" in told
    assert "exporting cache to registry: " in told


@pytest.mark.peer("docker-registry")
def test_the_image_is_exported_before_its_cache(
    cli: Cli, project: Context, registry: Registry
) -> None:
    image = f"{registry.host}/app:1"
    done = cli.build(
        "--cache-to",
        f"type=registry,ref={registry.host}/cache:x,mode=max",
        "-o",
        f"type=image,name={image},push=true",
        project.path,
    ).ok()
    assert done.text.index("pushing manifest") < done.text.index("exporting cache to registry")
    failed = cli.build(
        "--cache-to",
        "type=registry,ref=127.0.0.1:1/cache:x",
        "-o",
        f"type=image,name={registry.host}/app:2,push=true",
        project.path,
    )
    assert failed.status != 0
    assert _manifest(registry, "app", "2")  # it was there before the cache was tried


@pytest.mark.peer("docker-registry")
def test_inline_cache(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    ref = f"{registry.host}/app:1"
    cli.build(
        "--cache-to", "type=inline", "-o", f"type=image,name={ref},push=true", project.path
    ).ok()
    second = other.build("--cache-from", ref, "-o", tmp_path / "2", project.path).ok()
    # The stage that is only copied from has no layers in the image; nobody needs it either.
    assert ran(second) == 0


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize("kind", ["inline", "registry", "local"])
def test_an_image_made_of_a_cache_is_the_image_that_the_cache_was_made_of(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path, kind: str
) -> None:
    places = {
        "inline": ("type=inline", f"type=registry,ref={registry.host}/app:1"),
        "registry": (
            f"type=registry,ref={registry.host}/cache:x,mode=max",
            f"type=registry,ref={registry.host}/cache:x",
        ),
        "local": (f"type=local,dest={tmp_path}/c,mode=max", f"type=local,src={tmp_path}/c"),
    }
    to, source = places[kind]
    made = []
    for builder, tag, more in ((cli, "1", ()), (other, "2", ("--cache-from", source))):
        image = f"type=image,name={registry.host}/app:{tag},push=true"
        # the cache is part of the image where it is inline: it is exported both times
        builder.build("--cache-to", to, *more, "-o", image, project.path).ok()
        made.append(_manifest(registry, "app", tag))
    assert made[0] == made[1]


@pytest.mark.peer("docker-registry")
def test_a_layer_that_an_import_lost_is_left_out_of_an_export(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    project.dockerfile(DOCKERFILE + "FROM scratch\nCOPY --from=1 /tool /\n")
    first = tmp_path / "first"
    cli.build("--cache-to", f"type=local,dest={first},mode=max", project.path).ok()
    manifest = json.loads((first / "index.json").read_text())["manifests"][0]
    document = json.loads(_blob(first, manifest["digest"]))
    layers = [layer["digest"] for layer in document["layers"]]
    again = tmp_path / "again"
    for lost in layers[:-1]:
        (first / "blobs" / lost.replace(":", "/")).unlink()
    done = other.build(
        "--cache-from",
        f"type=local,src={first}",
        "--cache-to",
        f"type=local,dest={again},mode=max",
        project.path,
    ).ok()
    assert "exporting cache" in done.text
    assert json.loads((again / "index.json").read_text())["manifests"]


def _blob(folder: Path, digest: str) -> bytes:
    return (folder / "blobs" / digest.replace(":", "/")).read_bytes()


@pytest.mark.peer("docker-registry")
def test_imports_fall_back(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    ref = f"{registry.host}/cache:good"
    cli.build("--cache-to", f"type=registry,ref={ref},mode=max", project.path).ok()
    done = other.build(
        "--cache-from",
        f"{registry.host}/cache:none",
        "--cache-from",
        f"type=local,src={tmp_path}/nowhere",
        "--cache-from",
        "127.0.0.1:1/unreachable:x",
        "--cache-from",
        ref,
        project.path,
    ).ok()
    assert ran(done) == 0
    assert re.search(r"#\d+ ERROR: .*not found", done.text)


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize(
    "damage", ["layer-gone", "layer-damaged", "config-damaged", "config-gone"]
)
def test_a_damaged_cache_is_a_miss(
    cli: Cli, other: Cli, project: Context, registry: Registry, tmp_path: Path, damage: str
) -> None:
    ref = f"{registry.host}/cache:x"
    target = f"type=registry,ref={ref},mode=max"
    cli.build("--cache-to", target, "-o", tmp_path / "1", project.path).ok()
    manifest = json.loads(_manifest(registry, "cache", "x"))
    what, how = damage.split("-")
    damaged = [manifest["config"]] if what == "config" else manifest["layers"]
    for blob in damaged:
        name = blob["digest"].removeprefix("sha256:")
        folder = registry.data / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}"
        if how == "gone":
            shutil.rmtree(folder)
        else:
            (folder / "data").write_bytes(b"\0" * blob["size"])
    done = other.build("--cache-from", ref, "-o", tmp_path / "2", project.path).ok()
    made, again = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert all(made[name] != again[name] for name in made), done.text


def test_an_export_that_fails(cli: Cli, project: Context) -> None:
    target = "type=registry,ref=127.0.0.1:1/cache:x"
    failed = cli.build("--cache-to", target, project.path)
    assert failed.status != 0
    assert "127.0.0.1:1" in failed.err
    assert "Traceback" not in failed.err
    cli.build("--cache-to", target + ",ignore-error=true", project.path).ok()


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (["type=registry,ref=a.test/b", "type=registry,ref=a.test/b"], "duplicate cache exports"),
        (["type=local"], "needs dest"),
        (["type=registry"], "needs ref"),
        (["type=nowhere,x=y"], 'unknown cache exporter: "nowhere"'),
        (["type=s3,bucket=x"], "not supported yet"),
        (["type=registry,ref=a.test/b,oci-mediatypes=maybe"], "oci-mediatypes"),
        (["type=registry,ref=a.test/b,oci-mediatypes=0,image-manifest=1"], "OCI media types"),
        (["type=registry,ref=a.test/b,compression=rar"], "rar"),
    ],
)
def test_bad_exports_are_refused_before_anything_runs(
    cli: Cli, project: Context, specs: list[str], told: str
) -> None:
    argv = [part for spec in specs for part in ("--cache-to", spec)]
    failed = cli.build(*argv, project.path)
    assert failed.status != 0
    assert told in failed.text
    assert "RUN" not in failed.text


@pytest.mark.peer("docker-registry")
@pytest.mark.peer("docker-buildx")
def test_stock_buildx(
    buildx: Buildx, project: Context, registry: Registry, tmp_path: Path
) -> None:
    ref = f"{registry.host}/cache:bx"
    buildx.build(
        "--cache-to",
        f"type=registry,ref={ref},mode=max",
        "--cache-to",
        f"type=local,dest={tmp_path}/cache,mode=max",
        "-o",
        tmp_path / "1",
        project.path,
    ).ok()
    made = tree(tmp_path / "1")
    for number, source in enumerate(
        (f"type=registry,ref={ref}", f"type=local,src={tmp_path}/cache")
    ):
        buildx("prune", "--all", "--force").ok()
        out = tmp_path / f"again{number}"
        done = buildx.build("--cache-from", source, "-o", out, project.path).ok()
        assert ran(done) == 0, done.text
        assert tree(out) == made
