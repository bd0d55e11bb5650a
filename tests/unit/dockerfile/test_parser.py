"""Parsing whole files: statements, places, heredocs, directives, errors."""

import pytest

from boxwright.dockerfile import syntax as ast
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.parser import parse_command, parse_dockerfile


def only(text, **kwargs):
    """Parse one instruction below a FROM."""
    data = text.encode() if isinstance(text, str) else text
    (stage,) = parse_dockerfile(b"FROM base\n" + data, **kwargs).stages
    (command,) = stage.commands
    return command


def fails(text):
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(data)
    return caught.value


def numbers(node):
    return [r.start.line for r in node.ranges]


def test_stages_and_arguments_before_them():
    parsed = parse_dockerfile(
        b"ARG V=1\nFROM --platform=$BUILDPLATFORM a:$V AS Build\nRUN x\nFROM build\n"
    )
    assert [arg.args for arg in parsed.meta_args] == [(ast.ArgDefinition("V", "1"),)]
    first, second = parsed.stages
    assert (first.name, first.base, first.platform) == ("build", "a:$V", "$BUILDPLATFORM")
    assert (second.name, second.base) == ("", "build")
    assert parsed.stage_index("BUILD") == 0
    assert parsed.stage_index("nope") is None


def test_continuations_comments_and_blank_lines_inside_an_instruction():
    command = only("  RUN a \\\n  # comment\n\n  && b \\  \n\tc\n")
    assert command.original == "RUN a   && b \tc"
    assert command.line.args == ("a   && b \tc",)
    assert numbers(command) == [2, 3, 4, 5, 6]


def test_an_escaped_escape_does_not_continue_a_line():
    parsed = parse_dockerfile(b"FROM a\nRUN x\\\\\nRUN y")
    assert [c.original for c in parsed.stages[0].commands] == ["RUN x\\\\", "RUN y"]


def test_a_file_may_end_in_a_continuation():
    assert only("RUN a \\").original == "RUN a"


def test_backtick_escape():
    parsed = parse_dockerfile(b"# escape=`\nFROM a\nRUN dir C:\\ `\n  /b\n")
    assert parsed.escape == "`"
    assert parsed.stages[0].commands[0].original == "RUN dir C:\\   /b"


def test_byte_order_mark_and_crlf():
    parsed = parse_dockerfile(
        b"\xef\xbb\xbf# syntax=x\r\nFROM a\r\nRUN b \\\r\n c\r\nCOPY <<E /\r\nt\r\nE\r\n"
    )
    run, copy = parsed.stages[0].commands
    assert run.original == "RUN b  c"
    assert copy.contents == (ast.SourceContent("E", "t\r\n"),)
    assert parsed.directives["syntax"].value == "x"


def test_original_joins_what_step_names_show():
    assert only("run --mount=type=ssh   x  y ").original == "run --mount=type=ssh   x  y"


def test_comments_above_are_kept_and_describe_stages_and_arguments():
    parsed = parse_dockerfile(
        b"# gone\n#\n# V the version\nARG V\n# build compiles\nFROM a AS build\n"
    )
    assert parsed.meta_args[0].args[0].doc_comment == "the version"
    assert parsed.meta_args[0].comments == ("V the version",)
    assert parsed.stages[0].doc_comment == "compiles"


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("COPY <<EOF /f\na $x\n\tb\nEOF\n", [("EOF", "a $x\n\tb\n", True)]),
        ("COPY <<'EOF' /f\na\nEOF\n", [("EOF", "a\n", False)]),
        ('COPY <<"E"F /f\na\nEF\n', [("EF", "a\n", False)]),
        ("COPY <<-EOF /f\n\ta\n\t\tb\n\tEOF\n", [("EOF", "a\nb\n", True)]),
        ("COPY <<A <<B /f/\n1\nA\n2\nB\n", [("A", "1\n", True), ("B", "2\n", True)]),
        ("ADD <<A /f\n# no comment\\\n\nA\n", [("A", "# no comment\\\n\n", True)]),
    ],
)
def test_heredocs_as_files(text, contents):
    command = only(text)
    assert [(c.path, c.data, c.expand) for c in command.contents] == contents
    assert numbers(command) == list(range(2, 2 + text.count("\n")))


def test_copy_takes_a_blank_before_the_delimiter_for_two_words():
    command = only("COPY << EOF /f\na\nEOF\n")
    assert command.sources == ("<<", "EOF")
    assert numbers(command) == [2, 3, 4]


def test_heredoc_files_keep_bytes_that_are_no_text():
    command = only(b"COPY <<'E' /f\n\xff\xfe\nE\n")
    assert command.contents[0].data.encode("utf-8", "surrogateescape") == b"\xff\xfe\n"


def test_heredocs_of_run():
    command = only("RUN <<EOF cat 3<<-X\na\nEOF\n\tb\n\tX\n")
    assert command.line.args == ("<<EOF cat 3<<-X",)
    assert command.line.files == (
        ast.InlineFile("EOF", "a\n"),
        ast.InlineFile("X", "\tb\n", chomp=True),
    )


def test_no_heredoc_in_json_form_or_in_other_instructions():
    assert only('RUN ["cat", "<<EOF"]').line.files == ()
    assert only("CMD cat <<EOF").line.files == ()


def test_onbuild_carries_its_heredoc():
    command = only("ONBUILD  RUN <<E\nx\nE\n")
    assert command.expression == "RUN <<E\nx\nE"
    trigger = parse_command(command.expression, ranges=ast.line_ranges(7, 7))
    assert isinstance(trigger, ast.Run)
    assert trigger.line.files == (ast.InlineFile("E", "x\n"),)
    assert numbers(trigger) == [7]


def test_a_trigger_is_one_instruction():
    with pytest.raises(DockerfileError, match="single expression"):
        parse_command("RUN a\nRUN b")
    with pytest.raises(DockerfileError, match="FROM is not a command type"):
        parse_command("FROM a")


def test_invalid_utf8_outside_of_heredocs_is_replaced():
    assert only(b"LABEL a=\xff").pairs[0].value == "\ufffd"


def test_a_hundred_thousand_lines_parse():
    lines = 100_000
    parsed = parse_dockerfile(b"FROM a\n" + b"USER x\n" * lines)
    assert len(parsed.stages[0].commands) == lines
    command = only(b"RUN a" + b" \\\n b" * lines)
    assert len(command.ranges) == lines + 1
    heredoc = only(b"COPY <<E /f\n" + b"x\n" * lines + b"E\n")
    assert len(heredoc.contents[0].data) == 2 * lines


@pytest.mark.parametrize(
    ("text", "message", "lines"),
    [
        ("", "the Dockerfile cannot be empty", []),
        ("\n\n# only\n", "file with no instructions", [3]),
        (
            "FROM a\nRUNN x",
            "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)",
            [2],
        ),
        ("FROM a\nxyzzy", "dockerfile parse error on line 2: unknown instruction: xyzzy", [2]),
        ("RUN a", "no build stage in current context", [1]),
        ("FROM a b", "FROM requires either one or three arguments", [1]),
        ("FROM a AS 1b", 'invalid name for build stage: "1b"', [1]),
        ("FROM a\nRUN <<E\nx", "unterminated heredoc", [2, 3]),
        ("FROM a\nENV a=b c", 'can\'t find = in "c"', [2]),
        ("FROM a\nENV a", "ENV must have two arguments", [2]),
        ("FROM a\nENV \\\n =b", "ENV names can not be blank", [2, 3]),
        ("FROM a\nARG =b", "ARG names can not be blank", [2]),
        ("FROM a\nCOPY b", "COPY requires at least two arguments", [2]),
        ("FROM a\nCOPY b <<E\nE", "COPY cannot accept a heredoc as a destination", [2, 3]),
        ("FROM a\nUSER", "USER requires exactly one argument", [2]),
        ("FROM a\nEXPOSE", "EXPOSE requires at least one argument", [2]),
        ("FROM a\nSHELL sh -c", "SHELL requires the arguments to be in JSON form", [2]),
        ("FROM a\nCMD [1]", "arrays must be comprised of strings only", [2]),
        ('FROM a\nVOLUME [""]', "VOLUME specified can not be an empty string", [2]),
        ("FROM a\nONBUILD ONBUILD RUN x", "Chaining ONBUILD", [2]),
        ("FROM a\nONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger", [2]),
        ("FROM a\nHEALTHCHECK X", 'Unknown type "X" in HEALTHCHECK (try CMD)', [2]),
        ("FROM a\nHEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD", [2]),
        ("FROM a\nHEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments", [2]),
        ("FROM a\nHEALTHCHECK --interval=1ns CMD x", "cannot be less than 1ms", [2]),
        ("FROM a\nHEALTHCHECK --interval=5 CMD x", "missing unit in duration", [2]),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)", [2]),
        ("FROM a\nRUN --nope x", "unknown flag: --nope", [2]),
        ("FROM a\nCOPY --form=x a b", "unknown flag: --form (did you mean from?)", [2]),
        ("FROM a\nCOPY --chown a b c", "missing a value on flag: --chown", [2]),
        ("FROM a\nCOPY --link= a b", "missing a value on flag: --link", [2]),
        ("FROM a\nCOPY --link=x a b", "expecting boolean value for flag --link, not: x", [2]),
        ("FROM a\nCOPY --link --link a b", "duplicate flag specified: --link", [2]),
        ("FROM a\nRUN --network=x y", 'invalid network mode "x"', [2]),
        ("FROM a\nRUN --security=x y", 'security "x" is not valid', [2]),
        ("FROM a\nRUN --mount=a'\"'b y", "failed to parse csv mounts: parse error", [2]),
        ("# escape=x\nFROM a", "invalid escape token 'x'", [1]),
        ("# escape=`\n# escape=`\nFROM a", "only one escape parser directive", [2]),
        ("FROM a\nRUN " + "x" * 70_000, "max allowed size of 65535", [2]),
    ],
)
def test_errors(text, message, lines):
    error = fails(text)
    assert message in str(error)
    assert [r.start.line for r in error.ranges] == lines
    assert error.filename == "Dockerfile"
    assert error.exit_code == 4


def test_errors_point_at_the_words():
    error = fails("FROM a\nRUN echo \\\n  hi\nCOPY \\\n  --form=x a /b\n")
    assert error.place == "Dockerfile:5:3"
    assert error.hint == "write --from"
    assert error.render_excerpt() == (
        "Dockerfile:5:3\n"
        "--------------------\n"
        "   3 |       hi\n"
        "   4 | >>> COPY \\\n"
        "   5 | >>>   --form=x a /b\n"
        "     |       ^^^^^^\n"
        "   6 |     \n"
        "--------------------\n"
    )


def test_errors_made_later_find_their_words_as_well():
    source = b"FROM a\nENV x=1\nRUN y\n  COPY $x ${x\n"
    error = DockerfileError("bad", token="${x").located(ast.line_ranges(3, 4))
    assert error.place == "Dockerfile:3:1"
    assert error.located(filename="D", source=source).place == "D:4:11"
    assert "     |               ^^^\n" in error.render_excerpt()


def test_messages_have_a_limit():
    error = fails(b"FROM a\nENV a=b " + b"c" * 60_000)
    assert len(str(error)) < 5_000


def test_the_line_limit_is_in_bytes():
    fits = b"RUN " + "é".encode() * 32_765
    assert len(fits) == 65_534
    assert only(fits + b"x\n").original.endswith("x")
    assert "max allowed size" in str(fails(b"FROM a\n" + fits + b"xx\n"))


def test_the_file_limit():
    assert "dockerfile greater than" in str(fails(b"FROM a\n" * 3_000_000))
