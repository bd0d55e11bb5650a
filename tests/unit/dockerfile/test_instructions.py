"""Every instruction with every flag, typed and expanded."""

import pytest

from boxwright.dockerfile import syntax as ast
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import expand
from boxwright.dockerfile.instructions import expand_command, expand_contents
from boxwright.dockerfile.instructions_run import parse_device, parse_mount, split_fields
from boxwright.dockerfile.parser import parse_command

ENV = {"V": "value", "T": "cache", "D": "/dst"}


def expander(word):
    return expand(word, ENV).text


def same(word):
    return word


def test_run_forms():
    assert parse_command("RUN a  b").line == ast.CommandLine(("a  b",))
    assert parse_command('RUN ["a", "b"]').line == ast.CommandLine(("a", "b"), shell_form=False)
    assert parse_command("RUN [a]").line == ast.CommandLine(("[a]",))
    assert parse_command('RUN [ "a" ] && x').line == ast.CommandLine(('[ "a" ] && x',))
    assert parse_command("RUN").line == ast.CommandLine(())
    assert parse_command('RUN ["\\u00e9\\ud800"]').line.args == ("é\ufffd",)


def test_run_flags():
    run = parse_command(
        "RUN --mount=type=cache,target=/c --mount=from=x,target=/y --network=none"
        " --security=insecure --device=vendor.com/d=x,required -- --not a flag"
    )
    assert run.line.args == ("--not a flag",)
    assert run.mount_flags == ("type=cache,target=/c", "from=x,target=/y")
    assert [mount.from_ for mount in run.mounts] == ["", "x"]
    assert (run.network, run.security) == ("none", "insecure")
    assert run.devices == (ast.Device("vendor.com/d=x", required=True),)
    assert run.flags_used == {"mount", "network", "security", "device"}


def test_flags_lose_their_quotes():
    run = parse_command("""RUN --mount='type=secret,"id=a b"',env=X y""")
    assert run.flags == ('--mount=type=secret,"id=a b",env=X',)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/x", ast.Mount(target="/x", read_only=True)),
        ("type=bind,dst=/x,rw,src=/s", ast.Mount(target="/x", source="/s")),
        ("destination=/x,readonly=false", ast.Mount(target="/x")),
        (
            "type=cache,id=i,target=/c,sharing=locked,mode=0755,uid=1,gid=2,ro",
            ast.Mount(
                type="cache",
                id="i",
                target="/c",
                sharing="locked",
                mode=0o755,
                uid=1,
                gid=2,
                read_only=True,
            ),
        ),
        ("type=tmpfs,target=/t,size=64m", ast.Mount(type="tmpfs", target="/t", size=64 << 20)),
        (
            "type=secret,id=s,env=TOKEN,required",
            ast.Mount(type="secret", id="s", env="TOKEN", required=True, read_only=True),
        ),
        ("type=secret,id=s,env=", ast.Mount(type="secret", id="s", env="", read_only=True)),
        ("type=ssh,required=true", ast.Mount(type="ssh", required=True, read_only=True)),
        ("type=$T,target=$D", ast.Mount(type="cache", target="/dst")),
        ("TYPE=Cache,target=/c", ast.Mount(type="cache", target="/c")),
    ],
)
def test_mounts(text, mount):
    assert parse_mount(text, expander) == mount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=nfs", 'unsupported mount type "nfs"'),
        ("type=cach,target=/x", "(did you mean cache?)"),
        ("targt=/x", "unexpected key 'targt' in 'targt=/x' (did you mean target?)"),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("readonly=maybe", "invalid value for readonly: maybe"),
        ("required", "unexpected key 'required' for mount type 'bind'"),
        ("size=1", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("type=cache,sharing=lock", 'unsupported sharing value "lock"'),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=-1", "invalid value -1 for uid"),
        ("mode=0755", 'mode not allowed for "bind" type mounts'),
        ("type=secret", "one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=ssh,sharing=shared", "invalid cache sharing set for ssh mount"),
        ('a"b', "failed to parse csv mounts"),
        ("", "failed to parse csv mounts: EOF"),
    ],
)
def test_bad_mounts(text, message):
    with pytest.raises(DockerfileError) as caught:
        parse_mount(text, same)
    assert message in str(caught.value)


def test_a_mount_before_variables_are_known_is_only_asked_where_it_is_from():
    assert parse_mount("type=$X,from=stage,foo") == ast.Mount(from_="stage", read_only=True)
    with pytest.raises(DockerfileError, match="doesn't support variable expansion"):
        parse_mount("from=$X/y")


def test_fields():
    assert split_fields('a,"b,""c""",,d') == ["a", 'b,"c"', "", "d"]
    for text in ('"a', '"a"b', 'a"'):
        with pytest.raises(DockerfileError, match="parse error on line 1, column"):
            split_fields(text)


def test_devices():
    assert parse_device("name=a.b/c") == ast.Device("a.b/c")
    assert parse_device("a.b/c=d,required=false") == ast.Device("a.b/c=d")
    for text, message in (
        ("a,name=b", "device name already set to a"),
        ("a,b", "invalid field 'b'"),
        ("a,requird=1", "did you mean required"),
        ("a,required=x", "invalid value for required"),
    ):
        with pytest.raises(DockerfileError, match=message):
            parse_device(text)


def test_copy():
    copy = parse_command(
        "COPY --from=s --chown=1:2 --chmod=u=rwX,go= --link --parents --exclude=*.o"
        " --exclude=*.a a b /d/"
    )
    assert (copy.sources, copy.destination) == (("a", "b"), "/d/")
    assert (copy.from_, copy.chown, copy.chmod) == ("s", "1:2", "u=rwX,go=")
    assert (copy.link, copy.parents, copy.exclude) == (True, True, ("*.o", "*.a"))
    assert parse_command('COPY ["a b", "/c d"]').sources == ("a b",)
    assert parse_command("COPY --link=false a b").link is False


def test_add():
    add = parse_command("ADD --checksum=sha256:1 --unpack=false --keep-git-dir https://x/y.git /d")
    assert (add.checksum, add.unpack, add.keep_git_dir) == ("sha256:1", False, True)
    plain = parse_command("ADD a b")
    assert (plain.unpack, plain.keep_git_dir) == (None, None)


def test_pairs():
    assert parse_command("ENV a b  c").pairs == (ast.KeyValue("a", "b  c", legacy=True),)
    assert parse_command("""ENV a="b c" d=e\\ f g='h'""").pairs == (
        ast.KeyValue("a", '"b c"'),
        ast.KeyValue("d", "e\\ f"),
        ast.KeyValue("g", "'h'"),
    )
    assert parse_command("LABEL a=b=c").pairs == (ast.KeyValue("a", "b=c"),)
    assert parse_command("ARG a b= c=d").args == (
        ast.ArgDefinition("a"),
        ast.ArgDefinition("b", ""),
        ast.ArgDefinition("c", "d"),
    )


def test_healthcheck():
    check = parse_command(
        "HEALTHCHECK --interval=1m --timeout=3s --start-period=5s --start-interval=500ms"
        ' --retries=3 CMD ["a", "b"]'
    )
    assert check.test == ("CMD", "a", "b")
    assert (check.interval, check.timeout, check.retries) == (60 * 10**9, 3 * 10**9, 3)
    assert (check.start_period, check.start_interval) == (5 * 10**9, 5 * 10**8)
    assert parse_command("healthcheck cmd a b").test == ("CMD-SHELL", "a b")
    assert parse_command("HEALTHCHECK none").test == ("NONE",)


def test_the_rest():
    assert parse_command("EXPOSE 80 8080/udp 443").ports == ("443", "80", "8080/udp")
    assert parse_command("VOLUME /a /b").volumes == ("/a", "/b")
    assert parse_command('VOLUME ["/a b"]').volumes == ("/a b",)
    assert parse_command("WORKDIR /a b").path == "/a b"
    assert parse_command("USER a:b").user == "a:b"
    assert parse_command("STOPSIGNAL SIGINT").signal == "SIGINT"
    assert parse_command('SHELL ["a", "b"]').shell == ("a", "b")
    assert parse_command("MAINTAINER a <b@c>").maintainer == "a <b@c>"
    assert parse_command("CMD []").line == ast.CommandLine((), shell_form=False)
    assert parse_command("ENTRYPOINT x").line == ast.CommandLine(("x",))
    assert parse_command("ONBUILD ADD . /app").expression == "ADD . /app"


def test_expansion_touches_what_the_reference_lists():
    copy = expand_command(
        parse_command("COPY --from=$V --chown=$V --chmod=$V --exclude=$V $V $D"), expander
    )
    assert (copy.from_, copy.exclude) == ("$V", ("$V",))
    assert (copy.chown, copy.chmod, copy.sources) == ("value", "value", ("value",))
    assert copy.destination == "/dst"
    assert expand_command(parse_command("ADD --checksum=$V a b"), expander).checksum == "value"
    assert expand_command(parse_command('ENV $V="$V"'), expander).pairs == (
        ast.KeyValue("value", "value"),
    )
    assert expand_command(parse_command("USER $V"), expander).user == "value"
    assert expand_command(parse_command("WORKDIR $D"), expander).path == "/dst"
    assert expand_command(parse_command("VOLUME $D"), expander).volumes == ("/dst",)
    assert expand_command(parse_command("STOPSIGNAL $V"), expander).signal == "value"
    run = expand_command(parse_command("RUN --mount=type=$T,target=$D echo $V"), expander)
    assert run.mounts == (ast.Mount(type="cache", target="/dst"),)
    assert run.line.args == ("echo $V",)
    cmd = parse_command("CMD echo $V")
    assert expand_command(cmd, expander) is cmd


def test_heredoc_files_expand_unless_quoted():
    copy = parse_command("COPY <<A <<'B' /d/\n$V\nA\n$V\nB\n")
    expanded = expand_contents(copy, expander)
    assert [content.data for content in expanded.contents] == ["value\n", "$V\n"]
