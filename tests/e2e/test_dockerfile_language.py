"""The Dockerfile language: each rule of it, looked up in the image that a build made."""

from __future__ import annotations

from pathlib import Path

import pytest
from dockerfile_builds import Builder, build
from programs import Cli, Context, cli, context, state

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["build", "cli", "context", "state"]


def test_lines_comments_and_heredocs(build: Builder, context: Context) -> None:
    context.dockerfile(
        r"""
FROM base
RUN echo one \
  # a comment between

  && echo two \
    > /joined
run echo lower > /lower
RUN <<EOF
set -e
name=shell
echo "$name" > /heredoc
EOF
RUN <<-TABS cat > /tabs
	indented
	TABS
RUN cat <<one <<two > /both
1
one
2
two
RUN <<EOF
#!/bin/cat
an interpreter
EOF
ARG WHO=you
COPY <<plain <<"quoted" <<-'dashed' /h/
hello ${WHO} \$x
plain
hello ${WHO} \$x
quoted
		tabs go
	dashed
ADD <<EOF /added
by ADD
EOF
"""
    )
    image = build()
    assert image.text("joined") == "two\n"
    assert image.text("lower") == "lower\n"
    assert image.text("heredoc") == "shell\n"
    assert image.text("tabs") == "indented\n"
    assert image.text("both") in {"1\n2\n", "2\n"}
    assert "an interpreter" in image.run.err
    assert image.text("h/plain") == "hello you $x\n"
    assert image.text("h/quoted") == "hello ${WHO} \\$x\n"
    assert image.text("h/dashed") == "tabs go\n"
    assert image.text("added") == "by ADD\n"


def test_escape_directive_bom_and_crlf(build: Builder, context: Context) -> None:
    context.dockerfile("")
    head = (context.path / "Dockerfile").read_text()
    text = f"# escape=`\n{head}FROM base`\n  AS last\nENV A=c:\\dir B=`$A\nRUN echo a`\n b > /ab\n"
    context.write("Dockerfile", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    image = build()
    assert image.env["A"] == "c:\\dir"
    assert image.env["B"] == "$A"
    assert image.text("ab").split() in (["ab"], ["a", "b"])


def test_expansion(build: Builder, context: Context) -> None:
    context.write("given.txt", "g")
    context.dockerfile(
        r"""
FROM base
ARG SET=value
ARG EMPTY=
ARG PATHLIKE=/a/b/c.tar.gz
ENV E1=${SET:-d} E2=${EMPTY:-d} E3=${EMPTY-d} E4=${NONE-d} E5=${SET:+alt} E6=${NONE:+alt} \
  E7=${EMPTY+alt} E8=${SET:?must} E9="$SET-${SET}" E10='$SET' E11=\$SET E12="a b" E13=a\ b
ENV P1=${PATHLIKE#*/} P2=${PATHLIKE##*/} P3=${PATHLIKE%.*} P4=${PATHLIKE%%.*} \
  P5=${PATHLIKE/b/X} P6=${PATHLIKE//[^z]/-} P7=${PATHLIKE//a/-} N=${NONE:-${SET}/in}
ENV ONE=1 TWO=$ONE
ENV ONE=2 THREE=$ONE
ENV THREE2=$ONE legacy=x
ENV OLD form of $SET
LABEL l=$SET "quoted key"="$SET"
WORKDIR /$SET
USER ${NONE:-7}
EXPOSE ${PORT:-81}
VOLUME /vol-$SET
STOPSIGNAL ${SIG:-SIGINT}
COPY ${FILE:-given}.txt ./$SET.txt
CMD echo $SET
"""
    )
    image = build()
    env = image.env
    got = [env[f"E{n}"] for n in range(1, 14)]
    wanted = ["value", "d", "", "d", "alt", "", "alt", "value", "value-value", "$SET", "$SET"]
    assert got == [*wanted, "a b", "a b"]
    assert [env[f"P{n}"] for n in (1, 2, 3, 4, 5, 7)] == [
        "a/b/c.tar.gz",
        "c.tar.gz",
        "/a/b/c.tar",
        "/a/b/c",
        "/a/X/c.tar.gz",
        "/-/b/c.t-r.gz",
    ]
    assert (env["N"], env["TWO"], env["THREE"], env["THREE2"]) == ("value/in", "", "1", "2")
    assert env["OLD"] == "form of value"
    settings = image.settings
    assert settings["Labels"] == {"l": "value", "quoted key": "value"}
    assert (settings["WorkingDir"], settings["User"]) == ("/value", "7")
    assert settings["ExposedPorts"] == {"81/tcp": {}}
    assert settings["Volumes"] == {"/vol-value": {}}
    assert settings["StopSignal"] == "SIGINT"
    assert settings["Cmd"] == ["/bin/sh", "-c", "echo $SET"]
    assert image.text("value/value.txt") == "g"


def test_scopes_of_arguments(build: Builder, context: Context) -> None:
    context.dockerfile("")
    head = (context.path / "Dockerfile").read_text()
    context.write(
        "Dockerfile",
        "ARG GLOBAL=g\nARG STAGE=base\nARG DERIVED=${GLOBAL}-d\n"
        + head
        + r"""
FROM ${STAGE} AS parent
ARG GLOBAL
ARG OWN=own
ARG GIVEN=default
RUN echo "$GLOBAL,$OWN,$GIVEN,$DERIVED" > /parent
ENV WINS=env
ARG WINS=arg
FROM parent AS child
ARG DERIVED
RUN echo "$GLOBAL,$OWN,$GIVEN,$DERIVED,$WINS" > /child
RUN echo "$http_proxy" > /proxy
FROM base AS other
RUN echo "[$GLOBAL$OWN]" > /other
ARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDOS BUILDARCH TARGETSTAGE
RUN echo "$TARGETPLATFORM $TARGETOS $TARGETARCH $TARGETVARIANT" > /target
RUN echo "$BUILDPLATFORM $BUILDOS $BUILDARCH $TARGETSTAGE" > /build
FROM child
COPY --from=other /other /target /build /
""",
    )
    image = build("--build-arg", "GIVEN=given", "--build-arg", "http_proxy=http://p:1")
    assert image.text("parent") == "g,own,given,\n"
    assert image.text("child") == "g,own,given,g-d,env\n"
    assert image.text("proxy") == "http://p:1\n"
    assert image.text("other") == "[]\n"
    assert image.text("target") == "linux/amd64 linux amd64 \n"
    assert image.text("build") == "linux/amd64 linux amd64 default\n"
    assert "http://p:1" not in str(image.layout.config)
    assert "UndefinedVar" not in image.run.err


def test_configuration(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base AS first
MAINTAINER Someone <s@example.com>
CMD ["forgotten"]
FROM first
ENV A=1
LABEL one=1 two="2 2"
EXPOSE 80 53/udp 8000-8002
VOLUME ["/v1", "/v 2"]
VOLUME /v3 /v4
WORKDIR /w
WORKDIR rel
WORKDIR /abs
USER 10:20
STOPSIGNAL 9
SHELL ["/bin/sh", "-ec"]
ENTRYPOINT exec sh
CMD ["a", "b c"]
HEALTHCHECK --interval=5s --timeout=1m --start-period=2s --start-interval=500ms --retries=4 CMD true
ONBUILD RUN echo later
ONBUILD COPY --from=first /x /x
"""
    )
    image = build()
    assert image.settings == {
        "Env": ["PATH=/bin", "A=1"],
        "Labels": {"one": "1", "two": "2 2"},
        "ExposedPorts": {
            "53/udp": {},
            "80/tcp": {},
            "8000/tcp": {},
            "8001/tcp": {},
            "8002/tcp": {},
        },
        "Volumes": {"/v1": {}, "/v 2": {}, "/v3": {}, "/v4": {}},
        "WorkingDir": "/abs",
        "User": "10:20",
        "StopSignal": "9",
        "Shell": ["/bin/sh", "-ec"],
        "Entrypoint": ["/bin/sh", "-ec", "exec sh"],
        "Cmd": ["a", "b c"],
        "Healthcheck": {
            "Test": ["CMD-SHELL", "true"],
            "Interval": 5_000_000_000,
            "Timeout": 60_000_000_000,
            "StartPeriod": 2_000_000_000,
            "StartInterval": 500_000_000,
            "Retries": 4,
        },
        "OnBuild": ["RUN echo later", "COPY --from=first /x /x"],
        "ArgsEscaped": True,
    }
    assert image.layout.config["author"] == "Someone <s@example.com>"
    assert "HEALTHCHECK" in " ".join(image.history)


def test_forms_of_commands(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base AS a
ENTRYPOINT ["entry"]
CMD ["default"]
FROM a AS b
ENTRYPOINT ["other"]
FROM base
RUN ["/bin/sh", "-c", "echo exec-form > /exec"]
SHELL ["/bin/sh", "-x", "-c"]
RUN echo shell > /shell
RUN ["not json
HEALTHCHECK NONE
"""
    )
    done = build.fails()
    assert '["not json' in done.err
    assert "+ echo shell" in done.err
    text = (context.path / "Dockerfile").read_text()
    context.write("Dockerfile", text.replace('RUN ["not json\n', ""))
    image = build()
    assert image.text("exec") == "exec-form\n"
    assert image.text("shell") == "shell\n"
    assert image.settings["Healthcheck"] == {"Test": ["NONE"]}
    derived = build("--target", "b")
    assert derived.settings["Entrypoint"] == ["other"]
    assert "Cmd" not in derived.settings


def test_users_and_folders(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base
COPY <<EOF /etc/passwd
app:x:41:42::/home/app:/bin/sh
EOF
COPY <<EOF /etc/group
app:x:42:
extra:x:43:
EOF
WORKDIR /made/by/workdir
RUN chmod 777 /made/by/workdir
USER app
RUN id -u > u; id -g > g; echo $HOME > home
USER app:extra
RUN id -g > extra
USER 1234
RUN id -u > number
"""
    )
    image = build()
    read = {name: image.text(f"made/by/workdir/{name}").strip() for name in "u g home".split()}
    assert read == {"u": "41", "g": "42", "home": "/home/app"}
    assert image.text("made/by/workdir/extra").strip() == "43"
    assert image.text("made/by/workdir/number").strip() == "1234"


def test_onbuild_runs_in_the_next_build(
    cli: Cli, build: Builder, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(
        """
FROM base
ONBUILD ARG WORD=trigger
ONBUILD RUN echo $WORD > /triggered
ONBUILD COPY --from=tools /tool /tool
ONBUILD ENV FROM_TRIGGER=yes
"""
    )
    cli.build("-o", f"type=oci,tar=false,dest={tmp_path}/parent", context.path).ok()
    context.dockerfile(
        "FROM base AS tools\nRUN echo t > /tool\nFROM parent\nRUN cat /triggered > /seen\n"
    )
    image = build(
        "--build-context", f"parent=oci-layout://{tmp_path}/parent", "--build-arg", "WORD=w"
    )
    assert (image.text("seen"), image.text("tool")) == ("w\n", "t\n")
    assert image.env["FROM_TRIGGER"] == "yes"
    assert "OnBuild" not in image.settings
    context.dockerfile("FROM base\nONBUILD FROM x\n")
    assert "FROM isn't allowed as an ONBUILD trigger" in build.fails().err
    context.dockerfile("FROM base\nONBUILD ONBUILD RUN true\n")
    assert "ONBUILD" in build.fails().err


def test_stages(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base AS unneeded
RUN false
FROM scratch AS nothing
FROM base AS one
RUN echo 1 > /1
FROM one AS two
RUN echo 2 > /2
FROM nothing
COPY --from=3 /1 /by-number
COPY --from=two /2 /by-name
COPY --from=ONE /1 /any-case
"""
    )
    image = build()
    assert image.names(".") == ["any-case", "by-name", "by-number"]
    assert "unneeded" not in image.run.err
    assert "[one 1/1] RUN echo 1" in image.run.err
    assert build("--target", "two").text("2") == "2\n"
    assert build.fails("--target", "unneeded").status != 0


def test_very_long_files(build: Builder, context: Context) -> None:
    words = " ".join(f"word{n}" for n in range(6000))
    steps = "".join(f"ENV V{n}={n}\n" for n in range(3000))
    context.dockerfile(f"FROM base\nENV WORDS='{words}'\n{steps}RUN echo $V2999 > /last\n")
    image = build()
    assert image.env["WORDS"] == words
    assert image.text("last") == "2999\n"
    assert len(image.history) > 3000


def test_unknown_devices_are_refused_if_required(build: Builder, context: Context) -> None:
    context.dockerfile("FROM base\nRUN --device=vendor.example/none=all,required true\n")
    assert 'required device "vendor.example/none=all" is not registered' in build.fails().err
    context.dockerfile("FROM base\nRUN --device=vendor.example/none=all true\n")
    build()


def test_files_are_what_the_layers_hold(build: Builder, context: Context) -> None:
    """What a later step deletes or replaces is gone from the image."""
    context.dockerfile(
        "FROM base\nRUN mkdir /d && echo 1 > /d/1 && echo 2 > /d/2\n"
        "RUN rm /d/1 && echo new > /d/2\nRUN rm -r /d && mkdir /d && echo 3 > /d/3\n"
    )
    image = build()
    assert image.names("d") == ["3"]
