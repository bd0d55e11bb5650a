import io
import json
import tarfile

import pytest

from boxwright.cli.errors import UsageError
from boxwright.cli.plan import BuildFlags, plan_build
from boxwright.errors import BoxwrightError


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "context"
    root.mkdir()
    (root / "Dockerfile").write_text("FROM scratch\n")
    return root


@pytest.fixture
def plan(context, tmp_path):
    def make(*, is_embedded=True, environ=None, stdin=b"", **flags):
        flags.setdefault("context", str(context))
        environ = {"HOME": str(tmp_path), **(environ or {})}
        return plan_build(BuildFlags(**flags), environ, io.BytesIO(stdin), is_embedded=is_embedded)

    return make


def test_flags_become_frontend_options(plan):
    made = plan(
        build_args=("A=1", "B"),
        labels=("l=v",),
        target="stage",
        platforms=("linux/amd64,linux/arm64",),
        pull=True,
        no_cache_filter=("x", "y"),
        add_hosts=("db:10.0.0.1", "v6=[::1]"),
        ulimits=("nofile=10:20",),
        shm_size="64m",
        cgroup_parent="/builds",
        network="host",
        provenance="max",
        sbom="true",
        environ={"B": "2", "SOURCE_DATE_EPOCH": "7"},
    )
    assert made.request.opts == {
        "build-arg:A": "1",
        "build-arg:B": "2",
        "build-arg:SOURCE_DATE_EPOCH": "7",
        "label:l": "v",
        "target": "stage",
        "platform": "linux/amd64,linux/arm64",
        "image-resolve-mode": "pull",
        "no-cache": "x,y",
        "add-hosts": "db=10.0.0.1,v6=::1",
        "ulimit": "nofile=10:20",
        "shm-size": str(64 << 20),
        "cgroup-parent": "/builds",
        "force-network-mode": "host",
        "attest:provenance": "mode=max",
        "attest:sbom": "",
    }
    assert made.request.entitlements == ("network.host",)


def test_no_cache_means_no_cache_at_all(plan):
    assert plan(no_cache=True).request.opts == {"no-cache": ""}


def test_embedded_builds_are_stored_under_their_tags(plan):
    made = plan(tags=("app", "app:2"))
    (export,) = made.request.exports
    assert (export.type, export.attrs) == ("image", {"name": "app,app:2"})
    assert made.stored_names == ("app", "app:2")
    assert made.pushed_names == ()


@pytest.mark.parametrize(
    "flags", [{"tags": ("App",)}, {"tags": ("a b",)}, {"outputs": ("type=image,name=App",)}]
)
def test_a_name_that_no_image_can_have(plan, flags):
    with pytest.raises(UsageError, match="invalid image name"):
        plan(**flags)


@pytest.mark.parametrize(
    ("output", "stored"),
    [
        ("type=image,name=*", ()),
        ('type=image,"name=*,app"', ("app",)),
        ("type=image,name=app,store=false", ()),
        ("type=image,name=app,store=", ("app",)),
        ("type=image,name=app,push=0", ("app",)),
    ],
)
def test_what_is_said_to_be_stored(plan, output, stored):
    """Names that the frontend gives (``*``) are not known yet."""
    assert plan(outputs=(output,)).stored_names == stored


def test_a_pushed_image_is_said_to_be_pushed(plan):
    for made in (plan(tags=("app",), push=True), plan(outputs=("type=image,name=app,push=1",))):
        assert (made.stored_names, made.pushed_names) == ((), ("app",))


def test_a_remote_build_without_output_is_warned_about(plan):
    made = plan(is_embedded=False)
    assert made.request.exports == ()
    assert "No output specified" in made.warnings[0]


def test_push_and_output_go_together(plan):
    made = plan(tags=("r/app",), outputs=("type=oci,dest=/nonexistent/a.tar",), push=True)
    assert [(e.type, e.attrs.get("push")) for e in made.request.exports] == [
        ("oci", None),
        ("image", "true"),
    ]


def test_push_needs_a_tag(plan):
    with pytest.raises(UsageError):
        plan(push=True)


def test_annotations_go_to_image_outputs(plan):
    made = plan(tags=("a",), annotations=("k=v", "index,manifest:x.y=z", "a:b=c"))
    assert made.request.exports[0].attrs == {
        "name": "a",
        "annotation.k": "v",
        "annotation-index.x.y": "z",
        "annotation-manifest.x.y": "z",
        "annotation.a:b": "c",
    }


def test_another_dockerfile(plan, context):
    (context / "docker").mkdir()
    (context / "docker/App").write_text("FROM scratch\n")
    made = plan(file=str(context / "docker/App"))
    assert made.request.opts == {"filename": "App"}
    assert made.request.locals == {"context": context, "dockerfile": context / "docker"}


def test_a_dockerfile_on_standard_input(plan, context):
    made = plan(file="-", stdin=b"FROM scratch\n")
    folder = made.request.locals["dockerfile"]
    assert (folder / "Dockerfile").read_bytes() == b"FROM scratch\n"
    made.close()
    assert not folder.exists()


def test_an_archive_on_standard_input_is_the_context(plan):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("Dockerfile"))
    made = plan(context="-", stdin=raw.getvalue())
    assert made.request.opts["context"].startswith("http://buildkit-session/")
    assert made.request.locals == {}


def test_a_dockerfile_alone_on_standard_input_has_an_empty_context(plan):
    made = plan(context="-", stdin=b"FROM scratch\n")
    assert list(made.request.locals["context"].iterdir()) == []
    made.close()


def test_a_git_context_is_left_to_the_engine(plan):
    made = plan(context="https://example.com/app.git#main", file="sub/Dockerfile")
    assert made.request.opts == {
        "context": "https://example.com/app.git#main",
        "filename": "sub/Dockerfile",
    }


def test_named_contexts(plan, tmp_path):
    made = plan(build_contexts=(f"src={tmp_path}", "base=docker-image://debian:12"))
    assert made.request.opts == {
        "context:src": "local:src",
        "context:base": "docker-image://debian:12",
    }
    assert made.request.locals["src"] == tmp_path


def test_a_context_from_an_oci_layout(plan, tmp_path):
    digests = ["sha256:" + letter * 64 for letter in "ab"]
    name = "org.opencontainers.image.ref.name"
    manifests = [
        {"digest": digests[0], "size": 2, "mediaType": "m", "annotations": {name: "one"}},
        {"digest": digests[1], "size": 2, "mediaType": "m", "annotations": {name: "latest"}},
    ]
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text(json.dumps({"manifests": manifests}))
    for suffix, digest in (("", digests[1]), (":one", digests[0]), (f"@{digests[0]}", digests[0])):
        made = plan(build_contexts=(f"base=oci-layout://{tmp_path}{suffix}",))
        wanted = made.request.opts["context:base"]
        assert wanted.startswith("oci-layout://")
        assert wanted.endswith(f"@{digest}")
    with pytest.raises(BoxwrightError):
        plan(build_contexts=(f"base=oci-layout://{tmp_path}:absent",))


def test_calls_go_through_the_gateway(plan):
    made = plan(call="check")
    assert made.request.via_gateway
    assert made.request.opts["requestid"] == "frontend.lint"
    assert made.request.exports == ()


@pytest.mark.parametrize(
    "flags",
    [
        {"context": "/nonexistent"},
        {"network": "bridge"},
        {"add_hosts": ("db",)},
        {"context": "-", "file": "-"},
        {"attests": ("mode=max",)},
        {"build_contexts": ("x",)},
        {"outputs": ("type=local",)},
        {"annotations": ("k",)},
        {"shm_size": "big"},
    ],
)
def test_flags_that_make_no_sense(plan, flags):
    with pytest.raises(UsageError):
        plan(**flags)
