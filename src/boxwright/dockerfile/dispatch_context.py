"""What all instructions of a conversion share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from boxwright.core.dataclass import dataclass
from boxwright.core.platform import Platform
from boxwright.dockerfile.convert_stage import Stages, StageState
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import Expansion, ExpansionError, expand
from boxwright.dockerfile.lint import Linter, report_undefined_variables
from boxwright.dockerfile.options import BuildOptions
from boxwright.dockerfile.syntax import Command, Range
from boxwright.errors import InvalidInputError
from boxwright.fsutil.patterns import PatternMatcher
from boxwright.llb.build_env import EnvList
from boxwright.llb.exec_op import ProxyEnv
from boxwright.llb.marshal import SourceLocation, SourceMap, SourceRange
from boxwright.llb.state import State

SBOM_SCAN_CONTEXT = "BUILDKIT_SBOM_SCAN_CONTEXT"
SBOM_SCAN_STAGE = "BUILDKIT_SBOM_SCAN_STAGE"
NON_ENV_ARGS = frozenset({SBOM_SCAN_CONTEXT, SBOM_SCAN_STAGE})
"""Arguments that steer the build and never enter a step's environment."""


@dataclass(frozen=True, slots=True)
class DispatchContext:
    """The surroundings of one instruction; ``linter`` obeys the comments above it."""

    stages: Stages
    options: BuildOptions
    global_args: EnvList
    escape: str
    build_context: State
    proxy: ProxyEnv | None
    target_platform: Platform
    caps: frozenset[str]
    source_map: SourceMap | None
    linter: Linter
    ignored: PatternMatcher | None

    def location(self, ranges: tuple[Range, ...]) -> tuple[SourceLocation, ...]:
        """Return where a vertex comes from; nothing without a source map."""
        return locations(self.source_map, ranges)

    def expand(self, stage: StageState, command: Command, word: str) -> str:
        """Expand a word in the stage's environment and report what is undefined.

        Raises:
            ExpansionError: the word is malformed.
        """
        return self._reported(stage, command, partial(expand, word, escape=self.escape))

    def expand_raw(self, stage: StageState, command: Command, word: str) -> str:
        """Expand a heredoc's body, in which quotes mean nothing.

        Raises:
            ExpansionError: the body has a malformed substitution.
        """
        return self._reported(stage, command, partial(expand, word, skip_quotes=True))

    def _reported(
        self, stage: StageState, command: Command, expanded: Callable[..., Expansion]
    ) -> str:
        try:
            result = expanded(env=stage.state.env)
        except ExpansionError as error:
            self.report_undefined(stage, command, error.unmatched)
            raise
        self.report_undefined(stage, command, result.unmatched)
        return result.text

    def report_undefined(
        self, stage: StageState, command: Command, unmatched: tuple[str, ...]
    ) -> None:
        """Report variables without a definition."""
        if unmatched:
            report_undefined_variables(
                self.linter,
                unmatched,
                declared={arg.key for arg in stage.build_args} | NON_ENV_ARGS,
                environment=tuple(stage.state.env),
                ranges=command.ranges,
            )


def locations(
    source_map: SourceMap | None, ranges: tuple[Range, ...]
) -> tuple[SourceLocation, ...]:
    """Return one location for ``ranges``, or none without a source map."""
    if source_map is None:
        return ()
    converted = tuple(
        SourceRange(item.start.line, item.start.column, item.end.line, item.end.column)
        for item in ranges
    )
    return (SourceLocation(source_map, converted),)


@contextmanager
def located(ranges: tuple[Range, ...]) -> Iterator[None]:
    """Give errors of the enclosed code these lines, unless they have their own."""
    try:
        yield
    except DockerfileError as error:
        raise error.located(ranges) from error.__cause__
    except InvalidInputError as error:
        raise DockerfileError(
            error.brief, detail=error.detail, hint=error.hint, ranges=ranges
        ) from error


def description(command: str) -> Mapping[str, str]:
    """Return the metadata by which tools find a vertex's instruction."""
    return {"com.docker.dockerfile.v1.command": command}
