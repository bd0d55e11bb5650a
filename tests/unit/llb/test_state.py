"""The LLB builder: graphs have the digests that upstream's Go builder gives the same graphs.

The digests in ``DIGESTS`` were printed by a Go program over ``client/llb``; they are of every
op in the definition's order, the terminal one last, for linux/amd64.
"""

from __future__ import annotations

import itertools

import pytest

from boxwright import llb
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps
from boxwright.wire.pb import ops_pb2 as pb

PINNED = "sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d"
AMD64 = Platform("linux", "amd64")


def ops_of(definition: pb.Definition) -> list[pb.Op]:
    return [pb.Op.FromString(data) for data in getattr(definition, "def")]


def digests_of(definition: pb.Definition) -> list[str]:
    return [str(Digest.of(data)) for data in getattr(definition, "def")]


def marshal(state: llb.State) -> pb.Definition:
    return state.marshal(AMD64, local_unique_id="uid")


def graphs() -> dict[str, llb.State]:
    alpine = llb.image("alpine")
    built = alpine.run(
        "make",
        cwd="/src",
        mounts=[
            llb.bind("/src", llb.local("context", session_id="s"), path="/a"),
            llb.Mount("/out"),
            llb.cache("/cache", "id", sharing="locked"),
        ],
    )
    actions = (
        llb.mkdir("./bar", 0o700, parents=True, owner="u:5", created_ns=1700000000000000005)
        .then(llb.mkfile("bar/f", b"data", owner=(1, 2)))
        .then(
            llb.copy(
                llb.mkfile("x", b"q", 0o600).on(llb.scratch().dir("/w")),
                "x",
                "y/",
                llb.CopyOptions(create_parents=True),
            )
        )
        .then(llb.rm("/gone", allow_not_found=True, wildcard=True))
        .then(llb.symlink("/a", "/b", owner="root"))
    )
    settings = (
        alpine.add_env("A", "1")
        .add_env("B", "2")
        .add_env("A", "3")
        .with_user("u")
        .with_hostname("h")
        .dir("rel")
        .with_network("host")
        .add_extra_host("x", "1.2.3.4")
        .add_ulimit("nofile", 1, 2)
        .with_cgroup_parent("cg")
    )
    return {
        "image": alpine,
        "image-opts": llb.image(
            f"busybox:1.36@{PINNED}",
            resolve_mode="pull",
            platform=Platform("linux", "arm64"),
            layer_limit=3,
            internal=True,
        ),
        "local": llb.local(
            "ctx",
            session_id="s",
            include=["a", "b<c>"],
            exclude=["*.o"],
            follow=["x"],
            shared_key="k",
            differ="none",
            differ_required=True,
            metadata_only=True,
            metadata_exceptions=["z"],
        ),
        "local-unique": llb.local("ctx"),
        "git": llb.git(
            "https://github.com/moby/buildkit.git",
            "main:sub/../dir",
            keep_git_dir=True,
            checksum="abc",
            skip_submodules=True,
            mtime="commit",
        ),
        "git-noscheme": llb.git("github.com/moby/buildkit"),
        "git-ssh": llb.git(
            "git@nohost.invalid:a/b.git", "v1", known_ssh_hosts="h k\n", ssh_id="id"
        ),
        "git-auth": llb.git("https://h/a.git", auth_token_secret="T"),
        "http": llb.http(
            "https://h/f",
            filename="f",
            checksum=Digest(PINNED),
            mode=0o755,
            uid=1,
            gid=2,
            headers={"Accept": "a", "User-Agent": "u"},
            auth_header_secret="H",
        ),
        "oci": llb.oci_layout(f"x@{PINNED}", session_id="s", store_id="st", layer_limit=2),
        "blob": llb.image_blob(f"busybox@{PINNED}", filename="f", mode=0o600, uid=1, gid=2),
        "oci-blob": llb.oci_layout_blob(f"a/b@{PINNED}", session_id="s", store_id="st"),
        "git-bundle": llb.git(
            "https://h/a.git",
            "main",
            checksum="abc",
            bundle=f"oci-layout+blob://a/b@{PINNED}",
            bundle_session_id="s",
            bundle_store_id="st",
            checkout_bundle=True,
        ),
        "http-signed": llb.http("https://h/f", signature="sig", public_keys="key"),
        "exec": built.root,
        "exec-out": built.mount("/out"),
        "exec-env": settings.run(
            ["a", "b"],
            mounts=[
                llb.secret("/s", id="i", uid=1, gid=2, optional=True),
                llb.secret(id="e", env="E"),
                llb.ssh("d"),
                llb.ssh(target="/t", optional=True),
                llb.tmpfs("/t2", 5),
                llb.Mount("/c", alpine, no_output=True, content_cache="off"),
            ],
            security="insecure",
            proxy=llb.ProxyEnv(http_proxy="p"),
            valid_exit_codes=[0, 3],
            devices=[llb.CdiDevice("v/d=x", optional=True)],
            name="n",
            ignore_cache=True,
            export_cache=False,
            filters=["f==x"],
            linux_resources=llb.LinuxResources(memory=5),
        ).root,
        "exec-ro": alpine.run(
            ["a"], readonly_root=True, mounts=[llb.bind("/o", alpine, readonly=False)]
        ).mount("/o"),
        "file": llb.scratch().dir("/ced").mkdir("foo").file(actions, name="files"),
        "merge": llb.merge(
            [
                alpine,
                llb.scratch(),
                llb.scratch().mkdir("/a"),
                llb.diff(alpine, alpine.run(["x"]).root),
            ]
        ),
        "diff-scratch": llb.diff(alpine, llb.scratch()),
        "requires": alpine.requires("id", built.root),
        "same-twice": llb.merge(
            [alpine.mkdir("/a", name="one"), alpine.mkdir("/a", description={"k": "v"})]
        ),
    }


DIGESTS: dict[str, list[str]] = {
    "blob": [
        "sha256:6dce9baf5f257f302a636b40b33f7b6f67a73e3f8952b67fa5d58a536c62c0b2",
        "sha256:fdcac7857b13e4259bbdc03dfc7aec8cba80ce1ca0128605cb578c8550b58a2a",
    ],
    "oci-blob": [
        "sha256:9200f63f37d57ef588854d4c380428a23b89918498df400e65fbdb742711f864",
        "sha256:01bbc7ab52a8f45f38aa07dd8cf82b0007a4180dca20ec377f3d1f1480043e6c",
    ],
    "git-bundle": [
        "sha256:6439b4c5f1297266a542906d2c61b9622bb706e567bb1c50c98838ba4c29ae56",
        "sha256:780f70b67c222e2f9414c798716268cd2eb79b50c29a43d5a7401702afc53464",
    ],
    "http-signed": [
        "sha256:f538495051e89777bc0575e9145c70fba716751e33f97ef6d869d07cf2a4d292",
        "sha256:56a95693eebadbdf79bdb0fe6cd3191246c7480cc31882452f2f347a5bd2b27f",
    ],
    "diff-scratch": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:60264a9c6f9ec4afc0c3534b8f0e1eb65401af32f34cfb6d7653da540f4e50ab",
        "sha256:8577b715c8102506f0874be90862da5b28c0467402ed4f07c4ecb2afda1ab442",
    ],
    "exec": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:304d07816dbee01a2a6b9b7d1832fb822c188d7b1841423f93d603274048effe",
        "sha256:f424bf894aeedc07481419af15f946c8da3c7b1e5324e6975668909809afcec1",
        "sha256:a15416d163eae49e1967bf7c45d17f816ed1c180f6c18db2b00eadc2c2273509",
    ],
    "exec-env": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:6d66ab8482748de486a655f5dbb0232dadeb67b78479454a710fcc779659827e",
        "sha256:a584bdd212aab22d2e8a4a59307f6a3f993bb59321279f47b09a3264a7776ec4",
    ],
    "exec-out": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:304d07816dbee01a2a6b9b7d1832fb822c188d7b1841423f93d603274048effe",
        "sha256:f424bf894aeedc07481419af15f946c8da3c7b1e5324e6975668909809afcec1",
        "sha256:501154dbefa95e291a5eacaba6d8500fea92bd3f2ab597354e8e1d24b8153990",
    ],
    "exec-ro": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:87be37e67e7bcdfe11e65aa9b2f6d73678741832798e2a0b9ba1988e937d35d6",
        "sha256:68261c4018fb505847ac5a962ec59a9e935cf62c5164d2387b3aaeaaca6330db",
    ],
    "file": [
        "sha256:470af94e98435dbfaaa00aa0ec74dcbf9d0938d856ea6e52131f61663b1f7973",
        "sha256:645a267e7390e382e0a041f6da836d39c32d214d2bc394ab8d36aebd495e1dad",
        "sha256:e07261d489a5db6527fbfb7ae7e2036409eed80c7492693231ccccc9f0b129a8",
    ],
    "git": [
        "sha256:ecce27ac46206879046593de77e0299374614563e43436722d69946c9766fa8b",
        "sha256:ecad2ca3be6f432fea20bc6ae340ab9646d00e1920d6e9e999761544f07db833",
    ],
    "git-auth": [
        "sha256:a7735f375431095f8919a6d716c1f74fec4dfdd73a345b5f73f47641518fcfe2",
        "sha256:0a4d84f8bb58c5f855d9028d7027473f721396fa57dea254cf0d1e212b7b2ee3",
    ],
    "git-noscheme": [
        "sha256:5bf868774005bdfa144af84035863c81a9d6b9f3689cedcfc95d160e3aa8640d",
        "sha256:0ae0388227cd160525580f4ce6d827ef4153aa80fd069b2cd7bb121ff5b547eb",
    ],
    "git-ssh": [
        "sha256:b997b1c68f0cd51f1d8ba63cbcd5563438f7aac7e5b7e7e3cf4124bf92c9836a",
        "sha256:6e3e8e9fe006246a0041d12fde1fc7216d4518be3342f52085ca710e8531dd62",
    ],
    "http": [
        "sha256:9de63b07bba9209b5699791229c8896b1b13233fbc393ab8725bb2717c1577db",
        "sha256:884867d9a5a90be1aa06c2f12c19b447d0ce9972c30ad3e5dc24ef199fdc1454",
    ],
    "image": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:91d1ea452bdb17a7987049c214be5a0ebfc499b11003e057978043b827bee403",
    ],
    "image-opts": [
        "sha256:63908600c018771adf6aea73d2c1286d6c4c5f93e5c3fed651cbf5b416737411",
        "sha256:a909658989e537e6c9db1b53bff216cbaa80b1e2a79afbf7c2039c05ecc287ed",
    ],
    "local": [
        "sha256:adf6f7d7d0a342f62de005ae6bfe6475002cd4b99eaff97702cfb00cc3289d76",
        "sha256:1b9abef18a1cc3480c8ef8f2d6f1fcfd12fb0a4fb0528084b43f06eab8fade1f",
    ],
    "local-unique": [
        "sha256:d6beb463181aecac322846b3601c80dac47aad9acea4ff12a5d9e52f7b0a4c12",
        "sha256:b73197178e17aa411c1b95d35d61fddb7b50820354e9c2aea13109f28d2eaea3",
    ],
    "merge": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:d07b9d82d58151f754f6d5157266f76d2e98bd99f12d7519194d73be647f6356",
        "sha256:81b29e076f10620ea9afda9f5b56dfb559c6024e74ec6c888ee62c6f2a981b20",
        "sha256:18cb4c06835e021f3fdfa2de3d05661e0dc6321814e6627e5d7461ef4aa0bd71",
        "sha256:54cdb4f9bf8648e4f1fe5cee4579c4dd186d5d6c291649e8674538c5a7e635f0",
        "sha256:4adb6a2a21829db25d397b2900e5524caf1e87ac56272542b8b92399a0273d18",
    ],
    "oci": [
        "sha256:5ce64d829f400f796e6611ceb65215e879cf2332070cb2b72e846cf55a8d8d5a",
        "sha256:55a75d6524e98b97c17e1cd9a9d2a63c7a2f7e46904ce1216133694af6f21973",
    ],
    "requires": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:304d07816dbee01a2a6b9b7d1832fb822c188d7b1841423f93d603274048effe",
        "sha256:f424bf894aeedc07481419af15f946c8da3c7b1e5324e6975668909809afcec1",
        "sha256:fa27e126c1606766e4fb26610fbd930cd8e1d3afc0ebded714c9842667f38861",
        "sha256:528978b1902684a9d1078a80f8b58e139e45ca7a6e9e4c4458080f78b086373e",
    ],
    "same-twice": [
        "sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
        "sha256:19d4e28e85714f26a4f88338b698146ab1a4a9fab6f1bc2d2f0308b2bdd1661a",
        "sha256:704bda3da4a231c9a4aaed1ced361fae768450de25f5db0a6b6f5cd6bcf1f08d",
        "sha256:3bf88d98c241b3f21a7e787fe7b7d287f7c50c5fd86a197f3151c9bb8c28aef6",
    ],
}


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_ops_have_upstreams_digests(name: str) -> None:
    assert digests_of(marshal(graphs()[name])) == DIGESTS[name]


def test_every_graph_has_recorded_digests() -> None:
    assert set(graphs()) == set(DIGESTS)


def test_marshalling_is_deterministic_and_leaves_states_unchanged() -> None:
    graph = graphs()["merge"]
    assert marshal(graph) == marshal(graph)


def test_inputs_come_before_their_users_and_the_terminal_op_last() -> None:
    definition = marshal(graphs()["file"])
    seen: set[str] = set()
    for digest, op in zip(digests_of(definition), ops_of(definition), strict=True):
        assert all(edge.digest in seen for edge in op.inputs)
        seen.add(digest)
    last = ops_of(definition)[-1]
    assert last.WhichOneof("op") is None
    assert len(last.inputs) == 1


def test_scratch_is_an_empty_definition() -> None:
    definition = marshal(llb.scratch())
    assert definition == pb.Definition()
    assert llb.scratch().is_scratch


def test_a_vertex_used_twice_is_listed_once_with_all_that_is_said_about_it() -> None:
    definition = marshal(graphs()["same-twice"])
    made = [op for op in ops_of(definition) if op.HasField("file")]
    assert len(made) == 1
    digest = next(
        digest
        for digest, op in zip(digests_of(definition), ops_of(definition), strict=True)
        if op.HasField("file")
    )
    assert dict(definition.metadata[digest].description) == {"llb.customname": "one", "k": "v"}


def test_terminal_caps_name_what_the_metadata_uses() -> None:
    state = llb.image("alpine").mkdir("/a", name="x", ignore_cache=True, export_cache=True)
    definition = marshal(state)
    caps = definition.metadata[digests_of(definition)[-1]].caps
    assert set(caps) == {
        build_caps.CONSTRAINTS,
        build_caps.PLATFORM,
        build_caps.META_DESCRIPTION,
        build_caps.META_IGNORE_CACHE,
        build_caps.META_EXPORT_CACHE,
    }


@pytest.mark.parametrize("ref", ["busybox", "busybox:1", f"busybox:1@{PINNED}"])
def test_blobs_are_named_by_digest_alone(ref: str) -> None:
    with pytest.raises(InvalidInputError, match="NAME@DIGEST"):
        llb.image_blob(ref)


def test_who_has_to_have_signed() -> None:
    signed = llb.GitSignature("key", reject_expired=True, require_tag=True)
    definition = marshal(llb.git("https://h/a.git", "v1", signed=signed))
    (op,) = [op for op in ops_of(definition) if op.HasField("source")]
    named = {key: value for key, value in op.source.attrs.items() if key.startswith("git.sig.")}
    assert named == {
        "git.sig.pubkey": "key",
        "git.sig.rejectexpired": "true",
        "git.sig.requiresignedtag": "true",
    }
    caps = definition.metadata[digests_of(definition)[0]].caps
    assert build_caps.SOURCE_GIT_SIGNATURE_VERIFY in caps


def test_states_are_values() -> None:
    base = llb.image("alpine").add_env("A", "1").dir("/a")
    changed = base.add_env("A", "2").dir("b").with_user("u")
    assert (base.env["A"], base.cwd, base.user) == ("1", "/a", "")
    assert (changed.env["A"], changed.cwd, changed.user) == ("2", "/a/b", "u")


def test_setting_a_variable_again_moves_it_to_the_end() -> None:
    env = llb.EnvList().set("A", "1").set("B", "2").set("A", "3")
    assert env.to_list() == ["B=2", "A=3"]
    assert env.set_default("B", "9").to_list() == ["B=2", "A=3"]
    assert env.delete("B").set_default("B", "9").to_list() == ["A=3", "B=9"]


def test_env_lists_share_what_they_have_in_common() -> None:
    first = llb.EnvList([("A", "1")])
    children = [first.set("B", str(number)) for number in range(3)]
    assert [child["B"] for child in children] == ["0", "1", "2"]
    assert "B" not in first


def test_run_settings_hold_for_one_command_only() -> None:
    base = llb.image("alpine")
    after = base.run("x", env={"A": "1"}, cwd="/w", user="u", network="none").root
    assert (dict(after.env), after.cwd, after.user, after.network) == ({}, "/", "", "sandbox")
    (op,) = [op for op in ops_of(marshal(after)) if op.HasField("exec")]
    assert op.exec.meta.env == ["A=1"]
    assert (op.exec.meta.cwd, op.exec.meta.user, op.exec.network) == ("/w", "u", pb.NONE)
    assert op.exec.meta.args == ["/bin/sh", "-c", "x"]


@pytest.mark.parametrize(("served", "path_in_env"), [(True, False), (False, True)])
def test_path_is_written_for_daemons_that_do_not_set_it(served: bool, path_in_env: bool) -> None:
    caps = build_caps.ALL if served else build_caps.ALL - {build_caps.EXEC_META_SETS_DEFAULT_PATH}
    definition = llb.image("alpine").run(["x"]).root.marshal(AMD64, caps)
    (op,) = [op for op in ops_of(definition) if op.HasField("exec")]
    assert any(item.startswith("PATH=") for item in op.exec.meta.env) is path_in_env


def test_mounts_are_sorted_and_share_inputs() -> None:
    alpine = llb.image("alpine")
    state = alpine.run(
        ["x"], mounts=[llb.bind("/z", alpine), llb.bind("/b", llb.local("c", session_id="s"))]
    ).root
    (op,) = [op for op in ops_of(marshal(state)) if op.HasField("exec")]
    assert [mount.dest for mount in op.exec.mounts] == ["/", "/b", "/z"]
    assert [mount.input for mount in op.exec.mounts] == [0, 1, 0]


def test_outputs_are_numbered_by_mount_order() -> None:
    run = llb.image("alpine").run(["x"], mounts=[llb.Mount("/z"), llb.Mount("/b")])
    index = {
        target: ops_of(marshal(run.mount(target)))[-1].inputs[0].index for target in ("/b", "/z")
    }
    assert index == {"/b": 1, "/z": 2}


@pytest.mark.parametrize(
    "make",
    [
        lambda: llb.image("UPPER"),
        lambda: llb.image("alpine").run([]),
        lambda: llb.image("alpine").run(["x"], mounts=[llb.tmpfs("/t")]).mount("/t"),
        lambda: llb.image("alpine").run(["x"], mounts=[llb.cache("/t", "i")]).mount("/t"),
        lambda: llb.image("alpine").run(["x"]).mount("/none"),
        lambda: llb.secret(),
        lambda: llb.git("ftp://host/x.git"),
        lambda: llb.copy(llb.mkdir("/a"), "a", "b"),
        lambda: llb.passthrough("", [llb.image("alpine")]),
        lambda: llb.scratch().requires("id", llb.image("alpine")),
    ],
)
def test_mistakes_are_refused_when_made(make: object) -> None:
    with pytest.raises(InvalidInputError):
        make()  # type: ignore[operator]


def test_a_definition_taken_in_keeps_its_bytes() -> None:
    inner = marshal(graphs()["exec"])
    again = llb.from_definition(inner)
    assert marshal(again) == inner
    outer = marshal(again.mkdir("/x"))
    assert set(digests_of(inner)[:-1]) < set(digests_of(outer))


def test_a_definition_with_a_missing_input_is_refused() -> None:
    inner = marshal(graphs()["exec"])
    ops = getattr(inner, "def")
    del ops[0]
    with pytest.raises(InvalidInputError):
        marshal(llb.from_definition(inner))


def test_an_empty_definition_is_scratch() -> None:
    assert llb.from_definition(pb.Definition()).is_scratch


def test_long_chains_need_no_recursion() -> None:
    state = llb.scratch()
    for number in range(3000):
        state = state.mkdir(f"/{number}")
    assert len(getattr(marshal(state), "def")) == 3001


def test_deferred_outputs_are_filled_in_before_marshalling() -> None:
    later = llb.DeferredOutput()
    state = llb.scratch().copy(llb.State.new(later), "/a", "/b")
    later.set(llb.image("alpine").output)
    sources = [op.source.identifier for op in ops_of(marshal(state)) if op.HasField("source")]
    assert sources == ["docker-image://docker.io/library/alpine:latest"]


def test_source_locations_of_equal_files_are_merged() -> None:
    maps = [llb.SourceMap("Dockerfile", "Dockerfile", b"FROM x") for _ in range(2)]
    spans = [llb.SourceRange(line, 0, line, 0) for line in (1, 2)]
    state = llb.image("alpine")
    for source_map, span in zip(maps, spans, strict=True):
        location = llb.SourceLocation(source_map, (span,))
        state = state.mkdir(f"/{span.start_line}", locations=[location])
    source = marshal(state).Source
    assert len(source.infos) == 1
    lines = sorted(
        item.ranges[0].start.line
        for entry in source.locations.values()
        for item in entry.locations
    )
    assert lines == [1, 2]


def test_attribute_names_are_sorted_even_when_one_begins_another() -> None:
    attrs = {"ab": "1", "a": "2", "abc": "3", "b": "4"}
    for order in itertools.permutations(attrs):
        state = llb.source("x://y", {key: attrs[key] for key in order})
        data = getattr(marshal(state), "def")[0]
        positions = [data.index(b"\n%c%s\x12" % (len(key), key.encode())) for key in sorted(attrs)]
        assert positions == sorted(positions)
