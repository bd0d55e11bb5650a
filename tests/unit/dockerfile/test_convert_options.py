"""Frontend options: every key, and what is refused."""

from __future__ import annotations

import pytest

from boxwright.core.platform import Platform
from boxwright.dockerfile.bridge import CacheImport
from boxwright.dockerfile.options import BuildOptions, parse_options
from boxwright.errors import InvalidInputError
from boxwright.llb.marshal import LinuxResources

WORKER = Platform("linux", "amd64")


def parse(**opts: str) -> BuildOptions:
    return parse_options({key.replace("__", ":"): value for key, value in opts.items()}, WORKER)


def test_nothing_given() -> None:
    options = parse_options({}, WORKER)
    assert options == BuildOptions(build_platforms=(WORKER,))
    assert not options.ignores_cache("any")


def test_prefixed_options_are_maps() -> None:
    options = parse_options(
        {"build-arg:A": "1", "label:l": "2", "local-sessionid:ctx": "3", "other": "4"}, WORKER
    )
    assert options.build_args == {"A": "1"}
    assert options.labels == {"l": "2"}
    assert options.session_ids == {"ctx": "3"}


def test_platforms_are_normalised_and_several_make_a_multi_platform_result() -> None:
    options = parse(platform="linux/aarch64,linux/arm")
    assert options.target_platforms == (
        Platform("linux", "arm64"),
        Platform("linux", "arm", "v7"),
    )
    assert options.multi_platform
    assert not parse(platform="linux/amd64").multi_platform


@pytest.mark.parametrize("key", ["multi-platform", "build-arg:BUILDKIT_MULTI_PLATFORM"])
def test_a_single_platform_can_be_returned_as_several(key: str) -> None:
    assert parse_options({"platform": "linux/amd64", key: "true"}, WORKER).multi_platform


def test_build_args_override_options_of_the_same_meaning() -> None:
    options = parse_options({"hostname": "a", "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "b"}, WORKER)
    assert options.hostname == "b"


def test_hosts_are_lower_case_and_addresses_canonical() -> None:
    options = parse_options({"add-hosts": '"Foo=1.2.3.4",bar=0:0::1,v=::ffff:9.8.7.6'}, WORKER)
    assert options.extra_hosts == (("foo", "1.2.3.4"), ("bar", "::1"), ("v", "9.8.7.6"))


def test_a_soft_ulimit_alone_is_the_hard_one_too() -> None:
    options = parse(ulimit="nofile=10,nproc=5:7,core=-1")
    assert options.ulimits == (("nofile", 10, 10), ("nproc", 5, 7), ("core", -1, -1))


def test_resources() -> None:
    options = parse(
        memory="10", memswap="-1", cpushares="3", cpuperiod="4", cpuquota="5", cpusetcpus="0-2,4"
    )
    assert options.resources == LinuxResources(10, -1, 3, 4, 5, "0-2,4")
    assert parse(memory="").resources is None


@pytest.mark.parametrize(
    ("value", "stage", "ignored"),
    [("", "any", True), ("a,B", "b", True), ("a,b", "A", True), ("a,b", "c", False)],
)
def test_no_cache_for_all_or_for_some_stages(value: str, stage: str, ignored: bool) -> None:
    assert parse_options({"no-cache": value}, WORKER).ignores_cache(stage) is ignored


def test_cache_imports_in_both_forms() -> None:
    options = parse_options(
        {"cache-imports": '[{"Type":"s3","Attrs":{"a":"b"}}]', "cache-from": "x/y,z"}, WORKER
    )
    assert options.cache_imports == (
        CacheImport("s3", {"a": "b"}),
        CacheImport("registry", {"ref": "x/y"}),
        CacheImport("registry", {"ref": "z"}),
    )


def test_sbom_scanner_with_parameters() -> None:
    options = parse_options({"attest:sbom": "generator=scan/it,key=value"}, WORKER)
    assert options.sbom is not None
    assert options.sbom.generator == "docker.io/scan/it:latest"
    assert options.sbom.parameters == {"key": "value"}
    assert parse_options({"attest:provenance": "mode=max"}, WORKER).sbom is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("platform", "linux/a/b/c/d"),
        ("multi-platform", "maybe"),
        ("image-resolve-mode", "sometimes"),
        ("force-network-mode", "bridge"),
        ("add-hosts", "nohost"),
        ("add-hosts", "a=notanip"),
        ("add-hosts", "a=fe80::1%eth0"),
        ("ulimit", "nofile"),
        ("ulimit", "memory=1"),
        ("ulimit", "nofile=2:1"),
        ("ulimit", "nofile=-1:5"),
        ("ulimit", "nofile=1:2:3"),
        ("ulimit", "nofile=x"),
        ("ulimit", 'a"b'),
        ("shm-size", "64m"),
        ("memory", "0"),
        ("memory", "-1"),
        ("memswap", "-2"),
        ("cpushares", "x"),
        ("cpusetcpus", "3-1"),
        ("cpusetmems", "9000"),
        ("cache-imports", "{"),
        ("cache-imports", '["x"]'),
        ("attest:vex", "1"),
        ("attest:sbom", "generator=UPPER"),
        ("override-copy-image", "x"),
        ("build-arg:BUILDKIT_DISABLE_FILEOP", "1"),
        ("build-arg:BUILDKIT_DOCKERFILE_CHECK", "nonsense"),
    ],
)
def test_wrong_values_are_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_options({key: value}, WORKER)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "shm-size",
            "abc",
            'failed to parse shm size: strconv.ParseInt: parsing "abc": invalid syntax',
        ),
        (
            "platform",
            "foo/bar/baz/q",
            (
                'failed to parse target platform foo/bar/baz/q: "foo/bar/baz/q": '
                "cannot parse platform specifier: invalid argument"
            ),
        ),
    ],
)
def test_refusals_in_the_words_of_buildkit(key: str, value: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_options({key: value}, WORKER)
    assert str(caught.value) == said


def test_several_platforms_can_not_be_one_result() -> None:
    with pytest.raises(InvalidInputError, match="conflicting config"):
        parse_options({"platform": "linux/amd64,linux/arm64", "multi-platform": "0"}, WORKER)
