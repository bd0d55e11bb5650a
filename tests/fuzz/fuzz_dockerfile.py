"""Coverage-guided fuzzing of the Dockerfile parser and of word expansion.

Run ``python tests/fuzz/fuzz_dockerfile.py [corpus folder] [-runs=N]``. With Atheris
installed it is guided by coverage; without, random bytes are thrown for ten seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running


def check(data: bytes) -> None:
    """Parse and expand ``data``; only located errors may come out."""
    from boxwright.dockerfile.directives import detect_syntax
    from boxwright.dockerfile.errors import DockerfileError
    from boxwright.dockerfile.expand import ExpansionError, expand
    from boxwright.dockerfile.instructions import expand_command
    from boxwright.dockerfile.lint import LintConfig, Linter
    from boxwright.dockerfile.parser import parse_dockerfile

    def expander(word: str) -> str:
        return expand(word, {"a": "b/c", "PATH": "/bin:/usr/bin"}).text

    detect_syntax(data)
    try:
        expander(data.decode("utf-8", "surrogateescape"))
    except ExpansionError:
        pass
    try:
        parsed = parse_dockerfile(data, linter=Linter(LintConfig(experimental_all=True)))
        for stage in parsed.stages:
            for command in stage.commands:
                expand_command(command, expander)
    except DockerfileError as error:
        if error.source and not error.render_excerpt():
            raise AssertionError("an error without a place") from error


WORDS = [b"FROM a\n", b"RUN ", b"COPY ", b"<<E", b"\nE\n", b"\\\n", b"--mount=", b"${a", b"}"]
WORDS += [b"'", b'"', b"#", b"\n", b" ", b"=", b"[", b"]", b"\xff", b"ENV ", b"ONBUILD "]


if __name__ == "__main__":
    running.main(check, lambda chooser: running.joined(WORDS, chooser))
