"""Whatever the Dockerfile and the options, a build converts or fails as expected."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.core.digest import Digest
from boxwright.dockerfile import frontend
from boxwright.errors import BoxwrightError
from boxwright.llb import from_definition
from boxwright.testing.frontend import MemoryBridge

CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"OnBuild": ["RUN trigger", "COPY --from=s0 a b"], "WorkingDir": "/w"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
    }
).encode()

WORDS = st.sampled_from(
    'a b.txt / . ./x/ ../up $A ${A:-d} ${B:+x} ${C:?no} "q q" \'r\' \\ a=b é \udc80 ["a","b"] <<E'
    " --from=s0 --from=s1 --from=0 --from=9 --from=alpine --link --parents --chown=1:2 --chmod=755"
    " --chmod=u+x --exclude=* --mount=type=cache,target=/c --mount=from=s0,target=x"
    " --mount=type=secret,id=s,env=A --mount=type=tmpfs,target=/ --network=none --interval=1s"
    " https://h/x.tgz https://h/r.git#a:b git@h:r 80/tcp 1-3 70000 scratch alpine CMD NONE".split()
)
NAMES = st.sampled_from(
    "FROM RUN COPY ADD ENV ARG LABEL WORKDIR USER EXPOSE VOLUME CMD ENTRYPOINT SHELL HEALTHCHECK"
    " STOPSIGNAL ONBUILD MAINTAINER from Run E # \t".split(" ")
)
LINES = st.builds(lambda name, words: " ".join([name, *words]), NAMES, st.lists(WORDS, max_size=4))
STAGES = st.sampled_from(
    ["FROM alpine AS s0", "FROM scratch", "FROM s0 AS s1", "FROM --platform=$BUILDPLATFORM s1"]
)
FILES = st.lists(STAGES | LINES, max_size=12).map(lambda lines: "\n".join(["FROM alpine", *lines]))
OPTIONS = st.dictionaries(
    st.sampled_from(
        "target platform build-arg:A build-arg:SOURCE_DATE_EPOCH no-cache context:s0 context:alpine"
        " requestid add-hosts frontend.caps multi-platform label:x filename".split()
    ),
    st.sampled_from(
        "s0 s1 x 1 linux/arm64 linux/amd64,linux/arm/v7 local:d docker-image://alpine true"
        " frontend.lint frontend.outline frontend.targets Dockerfile".split()
    ),
    max_size=3,
)


def check(source: bytes, options: dict[str, str]) -> None:
    bridge = MemoryBridge(
        opts=options,
        sources={"local://dockerfile": {"Dockerfile": source}},
        images={"docker.io/library/alpine:latest": CONFIG},
    )
    try:
        asyncio.run(frontend.build(bridge))
    except BoxwrightError as error:
        str(error).encode()  # it can be sent
    for definition in bridge.definitions:
        listed = {str(Digest.of(data)) for data in getattr(definition, "def")}
        assert set(definition.metadata) == listed
        assert from_definition(definition).marshal() == definition


@settings(max_examples=150, deadline=None)
@given(FILES, OPTIONS)
def test_well_formed_lines(text: str, options: dict[str, str]) -> None:
    check(text.encode("utf-8", "surrogateescape"), options)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    check(b"FROM alpine\n" + data, {})
    check(data, {})
