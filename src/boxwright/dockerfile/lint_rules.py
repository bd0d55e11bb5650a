"""The linter's rules: stable names, descriptions, links and message templates."""

from __future__ import annotations

import re

from boxwright.core.dataclass import dataclass
from boxwright.dockerfile.golang import quote

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class _Field(str):
    """A value in a template; ``{name:q}`` writes it in quotes."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return quote(self) if spec == "q" else str(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: What ``skip`` and ``experimental`` name it by.
        description: What it is for, in one sentence.
        template: The message; its fields are the keyword arguments of :meth:`message`.
        experimental: Off unless asked for.
        documented: Whether the reference documentation has a page about it.
    """

    name: str
    description: str
    template: str
    experimental: bool = False
    documented: bool = True

    @property
    def url(self) -> str:
        """The page about it, or ""."""
        slug = _CAPITAL.sub("-", self.name).lower()
        return f"https://docs.docker.com/go/dockerfile/rule/{slug}/" if self.documented else ""

    def message(self, **fields: str) -> str:
        """Fill in the template."""
        return self.template.format(**{name: _Field(value) for name, value in fields.items()})


STAGE_NAME_CASING = Rule(
    "StageNameCasing",
    "Stage names should be lowercase",
    "Stage name '{stage}' should be lowercase",
)
FROM_AS_CASING = Rule(
    "FromAsCasing",
    "The 'as' keyword should match the case of the 'from' keyword",
    "'{as_}' and '{from_}' keywords' casing do not match",
)
NO_EMPTY_CONTINUATION = Rule(
    "NoEmptyContinuation",
    "Empty continuation lines will become errors in a future release",
    "Empty continuation line",
)
CONSISTENT_INSTRUCTION_CASING = Rule(
    "ConsistentInstructionCasing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
    "Command '{command}' should match the case of the command majority ({casing})",
)
DUPLICATE_STAGE_NAME = Rule(
    "DuplicateStageName",
    "Stage names should be unique",
    "Duplicate stage name {stage:q}, stage names should be unique",
)
RESERVED_STAGE_NAME = Rule(
    "ReservedStageName",
    "Reserved words should not be used as stage names",
    "Stage name should not use the same name as reserved stage {stage:q}",
)
JSON_ARGS_RECOMMENDED = Rule(
    "JSONArgsRecommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to"
    " OS signals",
    "JSON arguments recommended for {command} to prevent unintended behavior related to OS"
    " signals",
)
MAINTAINER_DEPRECATED = Rule(
    "MaintainerDeprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    "Maintainer instruction is deprecated in favor of using label",
)
UNDEFINED_ARG_IN_FROM = Rule(
    "UndefinedArgInFrom",
    "FROM command must use declared ARGs",
    "FROM argument '{name}' is not declared{suggestion}",
)
WORKDIR_RELATIVE_PATH = Rule(
    "WorkdirRelativePath",
    "Relative workdir without an absolute workdir declared within the build can have"
    " unexpected results if the base image changes",
    "Relative workdir {path:q} can have unexpected results if the base image changes",
)
UNDEFINED_VAR = Rule(
    "UndefinedVar",
    "Variables should be defined before their use",
    "Usage of undefined variable '${name}'{suggestion}",
)
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    "MultipleInstructionsDisallowed",
    "Multiple instructions of the same type should not be used in the same stage",
    "Multiple {command} instructions should not be used in the same stage because only the"
    " last one will be used",
)
LEGACY_KEY_VALUE_FORMAT = Rule(
    "LegacyKeyValueFormat",
    "Legacy key/value format with whitespace separator should not be used",
    '"{command} key=value" should be used instead of legacy "{command} key value" format',
)
INVALID_BASE_IMAGE_PLATFORM = Rule(
    "InvalidBaseImagePlatform",
    "Base image platform does not match expected target platform",
    "Base image {image} was pulled with platform {actual:q}, expected {expected:q} for"
    " current build",
    documented=False,
)
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the"
    " default behavior",
    "Setting platform to predefined {platform} in FROM is redundant as this is the default"
    " behavior",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule(
    "SecretsUsedInArgOrEnv",
    "Sensitive data should not be used in the ARG or ENV commands",
    "Do not use ARG or ENV instructions for sensitive data ({command} {key:q})",
)
INVALID_DEFAULT_ARG_IN_FROM = Rule(
    "InvalidDefaultArgInFrom",
    "Default value for global ARG results in an empty or invalid base image name",
    "Default value for ARG {base} results in empty or invalid base image name",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule(
    "FromPlatformFlagConstDisallowed",
    "FROM --platform flag should not use a constant value",
    "FROM --platform flag should not use constant value {platform:q}",
)
COPY_IGNORED_FILE = Rule(
    "CopyIgnoredFile",
    "Attempting to Copy file that is excluded by .dockerignore",
    "Attempting to {command} file {path:q} that is excluded by .dockerignore",
)
INVALID_DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "Comment for build stage or argument should follow the format:"
    " `# <arg/stage name> <description>`. If this is not intended to be a description comment,"
    " add an empty line or comment between the instruction and the comment.",
    "Comment for {command} should follow the format: `# {name} <description>`",
    experimental=True,
)
EXPOSE_PROTO_CASING = Rule(
    "ExposeProtoCasing",
    "Protocol in EXPOSE instruction should be lowercase",
    "Defined protocol '{port}' in EXPOSE instruction should be lowercase",
)
EXPOSE_INVALID_FORMAT = Rule(
    "ExposeInvalidFormat",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will"
    " become an error in a future release",
    "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'",
)

RULES: dict[str, Rule] = {
    rule.name: rule for rule in list(globals().values()) if isinstance(rule, Rule)
}
