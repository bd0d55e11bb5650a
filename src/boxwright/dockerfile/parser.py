"""A Dockerfile's text to its syntax tree."""

from __future__ import annotations

from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.instructions import build_command
from boxwright.dockerfile.lint import (
    Linter,
    lint_continuations,
    lint_description,
    lint_stages,
    lint_statement,
)
from boxwright.dockerfile.parser_line import Statement
from boxwright.dockerfile.scanner import scan
from boxwright.dockerfile.syntax import Arg, Command, Dockerfile, From, Range, Stage


def parse_dockerfile(
    source: bytes, *, filename: str = "Dockerfile", linter: Linter | None = None
) -> Dockerfile:
    """Parse a whole file.

    Args:
        source: Its bytes.
        filename: For messages.
        linter: Gets the findings that need no build state; those made before an error
            stay in it.

    Raises:
        DockerfileError: with file name, lines and source.
    """
    try:
        return _parse(source, filename, linter or Linter())
    except DockerfileError as error:
        raise error.located(filename=filename, source=source) from None


def parse_command(text: str, *, ranges: tuple[Range, ...] = ()) -> Command:
    """Parse one instruction that stands alone: the trigger of a base image's ONBUILD.

    The default escape applies, whatever the escape of the file that has the trigger.

    Args:
        text: The instruction, with the bodies of its heredocs.
        ranges: The lines that the command and its errors are to be located at, the FROM's.

    Raises:
        DockerfileError: malformed, or not exactly one instruction.
    """
    try:
        statements = scan(text.encode("utf-8", "surrogateescape")).statements
        if len(statements) != 1:
            raise DockerfileError("onbuild trigger should be a single expression")
        statement = statements[0]
        if ranges:
            statement.start = ranges[0].start.line
            statement.end = max(statement.start, ranges[-1].end.line)
            statement.origins = []
        command = build_command(statement)
    except DockerfileError as error:
        if ranges:
            error.ranges, error.focus = ranges, None
        raise
    if isinstance(command, From):
        raise DockerfileError("FROM is not a command type", ranges=command.ranges)
    return command


def _parse(source: bytes, filename: str, linter: Linter) -> Dockerfile:
    if not source:
        raise DockerfileError("the Dockerfile cannot be empty")
    script = scan(source)
    lint_continuations(linter, script.empty_continuations)
    meta_args: list[Arg] = []
    stages: list[tuple[From, list[Command]]] = []
    for statement in script.statements:
        command = _build(statement, linter.for_comments(statement.comments))
        if isinstance(command, From):
            stages.append((command, []))
        elif stages:
            stages[-1][1].append(command)
        elif isinstance(command, Arg):
            meta_args.append(command)
        else:
            raise DockerfileError(
                "no build stage in current context",
                ranges=command.ranges,
                focus=statement.locate(statement.keyword),
                hint="begin the build with FROM <image>",
            )
    built = tuple(Stage(from_, tuple(commands)) for from_, commands in stages)
    lint_stages(linter, built)
    return Dockerfile(
        stages=built,
        meta_args=tuple(meta_args),
        escape=script.escape,
        directives=script.directives,
        source=source,
        filename=filename,
    )


def _build(statement: Statement, linter: Linter) -> Command:
    lint_statement(linter, statement)
    try:
        command = build_command(statement)
    except DockerfileError as error:
        error.brief = f"dockerfile parse error on line {statement.start}: {error.brief}"
        raise
    lint_description(linter, command)
    return command
