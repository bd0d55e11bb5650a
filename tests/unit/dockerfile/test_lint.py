"""The linter: rules that the syntax decides, configuration, and the converter's reports."""

import pytest

from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile.convert import lint_config
from boxwright.dockerfile.dockerignore import ignore_matcher
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import expand
from boxwright.dockerfile.lint import (
    LintConfig,
    Linter,
    looks_secret,
    report_ignored_source,
    report_redundant_platform,
    report_secret_key,
    report_undefined_from_args,
    report_undefined_variables,
)
from boxwright.dockerfile.parser import parse_dockerfile
from boxwright.dockerfile.syntax import line_ranges
from boxwright.errors import InvalidInputError

HERE = line_ranges(3, 3)
NAMES = (
    "ConsistentInstructionCasing CopyIgnoredFile DuplicateStageName ExposeInvalidFormat"
    " ExposeProtoCasing FromAsCasing FromPlatformFlagConstDisallowed InvalidDefaultArgInFrom"
    " InvalidDefinitionDescription JSONArgsRecommended LegacyKeyValueFormat"
    " MaintainerDeprecated MultipleInstructionsDisallowed NoEmptyContinuation"
    " RedundantTargetPlatform ReservedStageName SecretsUsedInArgOrEnv StageNameCasing"
    " UndefinedArgInFrom UndefinedVar WorkdirRelativePath"
).split()


def lint(text, **config):
    linter = Linter(LintConfig(**config))
    parse_dockerfile(text.encode(), linter=linter)
    return [warning.short() for warning in linter.warnings]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM a\nRUN b\n", []),
        (
            "FROM a AS Bc\n",
            ["StageNameCasing: Stage name 'Bc' should be lowercase (line 1)"],
        ),
        (
            "FROM a as b\n",
            ["FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"],
        ),
        ("from a as b\n", []),
        (
            "From a As b\nFROM c\n",
            [
                (
                    "ConsistentInstructionCasing: Command 'From' should match"
                    " the case of the command majority (uppercase) (line 1)"
                )
            ],
        ),
        (
            "FROM a\nRUN b \\\n\n  c\n",
            ["NoEmptyContinuation: Empty continuation line (line 4)"],
        ),
        (
            "FROM a AS b\nFROM c AS b\n",
            [
                (
                    'DuplicateStageName: Duplicate stage name "b", stage names should be unique'
                    " (line 2)"
                )
            ],
        ),
        (
            "FROM a AS scratch\n",
            [
                (
                    "ReservedStageName: Stage name should not use the same name as reserved stage"
                    ' "scratch" (line 1)'
                )
            ],
        ),
        (
            "FROM a\nMAINTAINER b\n",
            [
                (
                    "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using"
                    " label (line 2)"
                )
            ],
        ),
        (
            "FROM a\nRUN b\nrun c\n",
            [
                (
                    "ConsistentInstructionCasing: Command 'run' should match the case of the command"
                    " majority (uppercase) (line 3)"
                )
            ],
        ),
        (
            "from a\nrun b\nRUN c\n",
            [
                (
                    "ConsistentInstructionCasing: Command 'RUN' should match the case of the command"
                    " majority (lowercase) (line 3)"
                )
            ],
        ),
        ("# about it\nFROM a AS b\n", []),
        (
            "# check=skip=StageNameCasing\n# x\nFROM a AS Bc\n",
            ["StageNameCasing: Stage name 'Bc' should be lowercase (line 3)"],
        ),
        ("ARG X\n# check=skip=StageNameCasing\nFROM a AS Bc\n", []),
    ],
)
def test_what_the_syntax_decides(text, found):
    assert lint(text) == found


def test_descriptions_are_checked_when_asked_for():
    text = "# V ok\nARG V\n# bad\nARG W\n# bad\nARG X Y\n# bad\nFROM a AS b\n# any\nRUN c\n"
    form = "InvalidDefinitionDescription: Comment for {} should follow the format:"
    assert lint(text, experimental=frozenset({"InvalidDefinitionDescription"})) == [
        f"{form.format('ARG')} `# W <description>` (line 4)",
        f"{form.format('ARG')} `# <arg_key> <description>` (line 6)",
        f"{form.format('FROM')} `# b <description>` (line 8)",
    ]
    assert lint(text) == []


def test_findings_before_an_error_stay():
    linter = Linter()
    with pytest.raises(DockerfileError):
        parse_dockerfile(b"FROM a as b\nNOPE\n", linter=linter)
    assert [warning.rule for warning in linter.warnings] == ["FromAsCasing"]


def test_configuration():
    config = LintConfig.parse(" skip = A , B ; error = true ;experimental=all")
    assert config.skip == {"A", "B"}
    assert config.error
    assert config.experimental_all
    assert not config.skip_all
    assert LintConfig.parse("skip=all").skip_all
    assert LintConfig.parse("") == LintConfig()
    for text, message in (
        ("skip", 'invalid check option "skip"'),
        ("nope=1", 'invalid check option "nope"'),
        ("error=maybe", 'failed to parse check option "error=maybe"'),
    ):
        with pytest.raises(InvalidInputError) as caught:
            LintConfig.parse(text)
        assert str(caught.value).startswith(message)


def test_skipping_and_failing():
    linter = Linter(LintConfig(skip=frozenset({"StageNameCasing"}), error=True))
    linter.emit(rules.STAGE_NAME_CASING, HERE, stage="A")
    assert linter.error() is None
    linter.emit(rules.MAINTAINER_DEPRECATED, HERE)
    error = linter.error()
    assert error is not None
    assert str(error) == "lint violation found for rules: MaintainerDeprecated"
    assert lint("FROM a as B\n", skip_all=True) == []


def test_one_instruction_may_skip_rules():
    linter = Linter()
    quiet = linter.for_comments(("check=skip=StageNameCasing because",))
    quiet.emit(rules.STAGE_NAME_CASING, HERE, stage="A")
    quiet.emit(rules.MAINTAINER_DEPRECATED, HERE)
    assert [warning.rule for warning in linter.warnings] == ["MaintainerDeprecated"]
    assert linter.for_comments(("nothing", "check=nope")) is linter


def test_findings_are_told_at_once():
    heard = []
    linter = Linter(sink=heard.append)
    linter.emit(rules.WORKDIR_RELATIVE_PATH, HERE, path='a"b')
    assert heard == linter.warnings
    assert heard[0].message == (
        'Relative workdir "a\\"b" can have unexpected results if the base image changes'
    )
    assert heard[0].url.endswith("/rule/workdir-relative-path/")


def test_rules_are_all_there():
    documented = {name for name, rule in rules.RULES.items() if rule.documented}
    assert documented == set(NAMES)
    assert rules.JSON_ARGS_RECOMMENDED.url == (
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    )
    assert rules.INVALID_BASE_IMAGE_PLATFORM.url == ""


def test_undefined_variables():
    linter = Linter()
    unmatched = expand("$PAHT $ARGUMENT $nothing", {}).unmatched
    report_undefined_variables(
        linter, unmatched, declared={"ARGUMENT"}, environment=["PATH"], ranges=HERE
    )
    report_undefined_from_args(linter, ["VERSON", "OK"], declared={"VERSION", "OK"}, ranges=HERE)
    assert [warning.message for warning in linter.warnings] == [
        "Usage of undefined variable '$PAHT' (did you mean $PATH?)",
        "Usage of undefined variable '$nothing'",
        "FROM argument 'VERSON' is not declared (did you mean VERSION?)",
    ]


def test_redundant_platform():
    env = {"TARGETPLATFORM": "linux/amd64", "X": ""}
    linter = Linter()
    for word in ("$TARGETPLATFORM", "$TARGETPLATFORM$X", "linux/$TARGETPLATFORM", "x"):
        report_redundant_platform(linter, word, expand(word, env), env, HERE)
    assert [warning.message for warning in linter.warnings] == [
        (
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the"
            " default behavior"
        )
    ]


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("GITHUB_TOKEN", True),
        ("token", True),
        ("Api_Key", True),
        ("MY_SECRET_X", True),
        ("KEYBOARD", False),
        ("TOKEN_FILE", False),
        ("PUBLIC_KEY", False),
        ("AUTHOR", False),
    ],
)
def test_secret_names(key, secret):
    assert looks_secret(key) is secret


def test_secret_report():
    linter = Linter()
    report_secret_key(linter, "ENV", "A_KEY", HERE)
    assert linter.warnings[0].message == (
        'Do not use ARG or ENV instructions for sensitive data (ENV "A_KEY")'
    )


@pytest.mark.parametrize(
    ("ignore", "source", "reported"),
    [
        (b"node_modules\n*.log\n", "./node_modules/x", True),
        (b"*.log\n", "a.log", True),
        (b"*.log\n", "a.txt", False),
        (b"*.log\n!a.log\n", "b.log", False),
        (b"*.log\n", ".", False),
        (b"*\n", ".", True),
    ],
)
def test_ignored_sources(ignore, source, reported):
    linter = Linter()
    report_ignored_source(linter, "COPY", source, ignore_matcher(ignore), HERE)
    assert [warning.rule for warning in linter.warnings] == ["CopyIgnoredFile"] * reported


def test_the_value_of_a_check_directive_ends_at_a_space():
    found = lint_config(
        b"# check=skip=UndefinedVar, StageNameCasing\nFROM a\n", "Dockerfile", None
    )
    assert found.skip >= {"UndefinedVar"}
    assert "StageNameCasing" not in found.skip
    with pytest.raises(DockerfileError, match='invalid check option "skip"'):
        lint_config(b"# check=skip = all\nFROM a\n", "Dockerfile", None)
