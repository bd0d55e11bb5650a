"""Coverage-guided fuzzing of the Dockerfile parser and of word expansion.

Run ``python tests/fuzz/fuzz_dockerfile.py [corpus folder] [-runs=N]``. With Atheris
installed it is guided by coverage; without, random bytes are thrown for ten seconds.
"""

from __future__ import annotations

import importlib
import random
import sys
import time


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


def throw_random_bytes(seconds: float) -> int:
    """Check random inputs for a while; return how many."""
    words = [b"FROM a\n", b"RUN ", b"COPY ", b"<<E", b"\nE\n", b"\\\n", b"--mount=", b"${a", b"}"]
    words += [b"'", b'"', b"#", b"\n", b" ", b"=", b"[", b"]", b"\xff", b"ENV ", b"ONBUILD "]
    chooser = random.Random(0)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        check(b"".join(chooser.choices(words, k=chooser.randrange(1, 30))))
        count += 1
    return count


def main() -> None:
    """Fuzz with Atheris, or without."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print(f"no atheris: {throw_random_bytes(10.0)} random inputs checked")
        return
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
