"""The linter: what is allowed but likely a mistake.

Rules that the syntax tree alone decides are checked here while parsing; the converter calls
the rest, at the moment it knows the values (``report_…`` and :meth:`Linter.emit`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile.directives import DirectiveReader
from boxwright.dockerfile.expand import Expansion
from boxwright.dockerfile.golang import SPACE, parse_bool, quote
from boxwright.dockerfile.lint_rules import Rule
from boxwright.dockerfile.parser_line import Statement
from boxwright.dockerfile.suggest import nearest
from boxwright.dockerfile.syntax import Arg, Command, From, Range, Stage, line_ranges
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.fsutil.patterns import PatternMatcher, clean

RESERVED_STAGES = frozenset({"context", "scratch"})
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)"
    r"(?:_|\Z)",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"(?:_|^)(?:public|file|version)(?:_|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LintWarning:
    """One finding."""

    rule: str
    description: str
    url: str
    message: str
    ranges: tuple[Range, ...]

    def short(self) -> str:
        """``Rule: message (line 3)``, as stock clients show it."""
        where = f" (line {self.ranges[0].start.line})" if self.ranges else ""
        return f"{self.rule}: {self.message}{where}"


class LintError(BoxwrightError):
    """Findings, where ``error=true`` makes them fatal."""

    code = Code.DOCKERFILE_SYNTAX


@dataclass(frozen=True, slots=True)
class LintConfig:
    """Which rules count; from ``# check=…`` or the build option of the same format."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    error: bool = False

    @classmethod
    def parse(cls, text: str) -> LintConfig:
        """Read ``skip=Rule,Rule;experimental=all;error=true``.

        Raises:
            InvalidInputError: another option, or a value that is no boolean.
        """
        text = text.strip(SPACE)
        options: dict[str, str] = {}
        for part in text.split(";", 2) if text else ():
            key, equals, value = part.partition("=")
            key = key.strip(SPACE)
            if not equals or key not in {"skip", "experimental", "error"}:
                raise InvalidInputError(
                    f"invalid check option {quote(key if equals else part)}",
                    hint="use skip=, experimental= and error=, separated by semicolons",
                )
            options[key] = value.strip(SPACE)
        try:
            error = parse_bool(options.get("error", "false"))
        except ValueError as exc:
            part = f"error={options['error']}"
            raise InvalidInputError(f"failed to parse check option {quote(part)}: {exc}") from None
        skip, skip_all = _rule_set(options.get("skip"))
        experimental, experimental_all = _rule_set(options.get("experimental"))
        return cls(skip, skip_all, experimental, experimental_all, error)

    def merged(self, other: LintConfig) -> LintConfig:
        """Add what ``other`` skips and enables; ``error`` stays."""
        return replace(
            self,
            skip=self.skip | other.skip,
            skip_all=self.skip_all or other.skip_all,
            experimental=self.experimental | other.experimental,
            experimental_all=self.experimental_all or other.experimental_all,
        )

    def enables(self, rule: Rule) -> bool:
        """Whether findings of ``rule`` are to be reported."""
        if rule.experimental:
            return self.experimental_all or rule.name in self.experimental
        return not (self.skip_all or rule.name in self.skip)


def _rule_set(value: str | None) -> tuple[frozenset[str], bool]:
    if value is None or value == "all":
        return frozenset(), value == "all"
    return frozenset(name.strip(SPACE) for name in value.split(",")), False


@dataclass(slots=True)
class Linter:
    """Collects findings.

    Attributes:
        config: What to report.
        warnings: Everything reported so far, shared with the linters that
            :meth:`for_comments` returns.
        sink: Called with each finding as it comes.
    """

    config: LintConfig = field(default_factory=LintConfig)
    sink: Callable[[LintWarning], None] | None = None
    warnings: list[LintWarning] = field(default_factory=list)

    def emit(self, rule: Rule, ranges: tuple[Range, ...], **fields: str) -> None:
        """Report a finding unless its rule is off; ``fields`` fill the rule's template."""
        if not self.config.enables(rule):
            return
        message = rule.message(**fields)
        warning = LintWarning(rule.name, rule.description, rule.url, message, ranges)
        self.warnings.append(warning)
        if self.sink is not None:
            self.sink(warning)

    def for_comments(self, comments: Sequence[str]) -> Linter:
        """Return a linter that obeys a ``# check=…`` comment above one instruction."""
        for comment in comments:
            directive = DirectiveReader(comment="").read(comment)
            if directive is None or directive.name != "check":
                continue
            try:
                extra = LintConfig.parse(directive.value.partition(" ")[0])
            except InvalidInputError:
                return self
            return Linter(self.config.merged(extra), self.sink, self.warnings)
        return self

    def error(self) -> LintError | None:
        """Return the error to end the build with, if findings are to be fatal."""
        if not (self.config.error and self.warnings):
            return None
        names = ", ".join(dict.fromkeys(warning.rule for warning in self.warnings))
        return LintError(
            f"lint violation found for rules: {names}",
            hint="mend them, or add # check=skip=<rule> at the top of the Dockerfile",
        )


def lint_statement(linter: Linter, statement: Statement) -> None:
    """Check an instruction's own wording, before it is typed."""
    args = statement.args
    if statement.name == "MAINTAINER":
        linter.emit(rules.MAINTAINER_DEPRECATED, statement.ranges)
    if statement.name != "FROM" or len(args) < 3:
        return
    if len(args) == 3 and args[2] != args[2].lower():
        linter.emit(rules.STAGE_NAME_CASING, statement.ranges, stage=args[2])
    keyword, as_ = statement.keyword, args[1]
    consistent = {keyword.lower(): as_.lower(), keyword.upper(): as_.upper()}
    if as_ != consistent.get(keyword, as_):
        linter.emit(rules.FROM_AS_CASING, statement.ranges, from_=keyword, as_=as_)


def lint_description(linter: Linter, command: Command) -> None:
    """Check that the comment above FROM or ARG begins with the name it describes."""
    if isinstance(command, From):
        names = [command.stage_name] if command.stage_name else []
    elif isinstance(command, Arg):
        names = [arg.key for arg in command.args]
    else:
        return
    if not names or not command.comments:
        return
    if command.comments[-1].split(" ")[0] in names:
        return
    linter.emit(
        rules.INVALID_DEFINITION_DESCRIPTION,
        command.ranges,
        command=command.name,
        name="<arg_key>" if len(names) > 1 else names[0],
    )


def lint_stages(linter: Linter, stages: Sequence[Stage]) -> None:
    """Check stage names, then the casing of all instructions against the majority's."""
    seen: set[str] = set()
    for stage in stages:
        if stage.name in RESERVED_STAGES:
            linter.emit(rules.RESERVED_STAGE_NAME, stage.ranges, stage=stage.name)
        if stage.name in seen:
            linter.emit(rules.DUPLICATE_STAGE_NAME, stage.ranges, stage=stage.name)
        if stage.name:
            seen.add(stage.name)
    commands = [command for stage in stages for command in (stage.from_, *stage.commands)]
    lower = sum(command.keyword == command.keyword.lower() for command in commands)
    upper = sum(command.keyword == command.keyword.upper() for command in commands)
    for command in commands:
        wanted = command.keyword.lower() if lower > upper else command.keyword.upper()
        if command.keyword != wanted:
            linter.emit(
                rules.CONSISTENT_INSTRUCTION_CASING,
                command.ranges,
                command=command.keyword,
                casing="lowercase" if lower > upper else "uppercase",
            )


def lint_continuations(linter: Linter, lines: Iterable[int]) -> None:
    """Report instructions with blank lines among their continuations."""
    for line in lines:
        linter.emit(rules.NO_EMPTY_CONTINUATION, line_ranges(line, line))


def report_undefined_variables(
    linter: Linter,
    unmatched: Iterable[str],
    *,
    declared: Collection[str],
    environment: Collection[str],
    ranges: tuple[Range, ...],
) -> None:
    """Report variables that an instruction uses and nothing defines.

    Args:
        linter: Where to.
        unmatched: From :class:`Expansion`.
        declared: Names of the stage's ARGs and others that may lack a value.
        environment: Names to suggest from.
        ranges: The instruction's lines.
    """
    for name in unmatched:
        if name in declared:
            continue
        suggestion = nearest(name, environment)
        linter.emit(
            rules.UNDEFINED_VAR,
            ranges,
            name=name,
            suggestion=f" (did you mean ${suggestion}?)" if suggestion else "",
        )


def report_undefined_from_args(
    linter: Linter,
    unmatched: Iterable[str],
    *,
    declared: Collection[str],
    ranges: tuple[Range, ...],
) -> None:
    """Report variables of a FROM that no ARG above the first FROM declares."""
    for name in unmatched:
        if name in declared:
            continue
        suggestion = nearest(name, declared)
        linter.emit(
            rules.UNDEFINED_ARG_IN_FROM,
            ranges,
            name=name,
            suggestion=f" (did you mean {suggestion}?)" if suggestion else "",
        )


def report_redundant_platform(
    linter: Linter,
    written: str,
    expansion: Expansion,
    environment: Mapping[str, str],
    ranges: tuple[Range, ...],
) -> None:
    """Report ``FROM --platform=$TARGETPLATFORM``, which is the default."""
    if expansion.matched != ("TARGETPLATFORM",) or expansion.unmatched:
        return
    if expansion.text == environment.get("TARGETPLATFORM"):
        linter.emit(rules.REDUNDANT_TARGET_PLATFORM, ranges, platform=written)


def report_secret_key(linter: Linter, command: str, key: str, ranges: tuple[Range, ...]) -> None:
    """Report an ARG or ENV whose name says that it holds a secret."""
    if looks_secret(key):
        linter.emit(rules.SECRETS_USED_IN_ARG_OR_ENV, ranges, command=command, key=key)


def looks_secret(key: str) -> bool:
    """Whether a variable's name says that it holds a secret."""
    return bool(_SECRET.search(key)) and not _NO_SECRET.search(key)


def report_ignored_source(
    linter: Linter,
    command: str,
    source: str,
    ignored: PatternMatcher,
    ranges: tuple[Range, ...],
) -> None:
    """Report a source of COPY or ADD that ``.dockerignore`` keeps out of the context.

    With ``!`` patterns nothing is reported: parts of an ignored folder may be back in.
    """
    if ignored.has_exclusions:
        return
    path = clean(source)
    whole = {"*", "**", "**/*"}
    if path in {".", "/"} and not any(p.text in whole for p in ignored.patterns):
        return
    if ignored.matches(path):
        linter.emit(rules.COPY_IGNORED_FILE, ranges, command=command.capitalize(), path=path)
