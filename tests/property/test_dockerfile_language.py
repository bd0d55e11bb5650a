"""Whatever the bytes: a tree or a located error, and invariants of both."""

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.dockerfile.directives import detect_syntax
from boxwright.dockerfile.dockerignore import parse_dockerignore
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import ExpansionError, expand
from boxwright.dockerfile.expand_pattern import Pattern, PatternError
from boxwright.dockerfile.heredoc import chomp
from boxwright.dockerfile.instructions import expand_command
from boxwright.dockerfile.lint import LintConfig, Linter
from boxwright.dockerfile.parser import parse_dockerfile
from boxwright.dockerfile.parser_line import INSTRUCTIONS
from boxwright.dockerfile.syntax import Copy

FRAGMENTS = [name + " " for name in INSTRUCTIONS] + (
    "--mount=type=cache, --from= --chown=a --link --interval=5s <<EOF <<-'E' \nEOF\n \nE\n"
    ' ${a:- ${a## } $ " \' \\ \\\n ` ["a", ] = # \n \r\n \t é AS scratch #\x20check=skip=all\n'
).split(" ")
SOURCES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(
        lambda parts: ("FROM a\n" + " ".join(parts)).encode()
    ),
)
NAMES = st.sampled_from(["a", "b", "PATH"])
WORDS = st.text(alphabet="ab$P{}:-+?#%/*\\\"' <é", max_size=30)


def check_error(error, last):
    """An error names lines of the file (none of an empty one) and can be printed."""
    assert all(1 <= r.start.line <= last for r in error.ranges)
    assert error.ranges or not error.source
    error.render_excerpt().encode()
    str(error).encode()


@given(SOURCES)
def test_any_bytes_give_a_tree_or_a_located_error(source):
    detect_syntax(source)
    linter = Linter(LintConfig(experimental_all=True))
    last = source.count(b"\n") + 1
    try:
        parsed = parse_dockerfile(source, linter=linter)
    except DockerfileError as error:
        check_error(error, last)
        return
    commands = [c for stage in parsed.stages for c in (stage.from_, *stage.commands)]
    lines = [r.start.line for c in [*parsed.meta_args, *commands] for r in c.ranges]
    assert lines == sorted(set(lines))
    for command in commands:
        assert command.original == command.original.strip()
        assert "\n" not in command.original
        command.original.encode()
        try:
            expand_command(command, lambda word: expand(word, {"a": "b"}).text)
        except DockerfileError:
            pass
    for warning in linter.warnings:
        warning.short().encode()


@given(WORDS, st.dictionaries(NAMES, st.text(alphabet="ab/.*\n ", max_size=12)))
def test_expansion_is_total_and_tells_what_it_used(word, env):
    try:
        expansion = expand(word, env)
    except ExpansionError:
        return
    assert set(expansion.matched) <= set(env)
    assert not set(expansion.unmatched) & set(env)
    if "$" not in word and not set("\\'\"<") & set(word):
        assert expansion.text == word
        assert expansion.words == tuple(word.split())


@given(st.text(alphabet="ab $'\"\\{}<", max_size=30))
def test_single_quotes_protect_everything(text):
    inner = text.replace("'", "")
    assert expand(f"'{inner}'", {"a": "x", "b": "y"}).text == inner


def slow_prefixes(items, value):
    """All ends of a match at the start of ``value``, the obvious way."""
    if not items:
        return {0}
    head, rest = items[0], items[1:]
    if head == "*":
        ends = set()
        for skip in range(len(value) + 1):
            if "\n" in value[:skip]:
                break
            ends |= {skip + end for end in slow_prefixes(rest, value[skip:])}
        return ends
    if value and (head == value[0] or (head == "?" and value[0] != "\n")):
        return {1 + end for end in slow_prefixes(rest, value[1:])}
    return set()


@given(st.text(alphabet="ab*?\n", max_size=6), st.text(alphabet="ab\n", max_size=10))
def test_patterns_match_what_the_obvious_matcher_matches(text, value):
    pattern = Pattern.parse(text)
    ends = slow_prefixes(list(text), value)
    assert pattern.prefix_end(value, longest=True) == max(ends, default=None)
    assert pattern.prefix_end(value, longest=False) == min(ends, default=None)
    starts = [i for i in range(len(value) + 1) if slow_prefixes(list(text), value[i:])]
    replaced = pattern.substitute(value, "X", every=False)
    if not starts:
        assert replaced == value
    else:
        end = starts[0] + max(slow_prefixes(list(text), value[starts[0] :]))
        assert replaced == value[: starts[0]] + "X" + value[end:]
    suffixes = [
        i for i in range(len(value) + 1) if len(value) - i in slow_prefixes(list(text), value[i:])
    ]
    assert pattern.suffix_start(value, longest=True) == min(suffixes, default=None)
    assert pattern.suffix_start(value, longest=False) == max(suffixes, default=None)


@given(st.text(alphabet="ab*?\\}/", max_size=10), st.text(max_size=20))
def test_escaped_patterns_never_crash(text, value):
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return
    pattern.substitute(value, "x", every=True)


@given(st.lists(st.text(alphabet="ab \t#<E$'\\", max_size=8), max_size=6))
@settings(max_examples=200)
def test_a_heredoc_body_comes_out_as_it_went_in(lines):
    lines = [line for line in lines if line.strip("\t") != "END"]
    body = "".join(f"{line}\n" for line in lines)
    source = f"FROM a\nCOPY <<'END' /x\n{body}END\nCOPY <<-'END' /y\n{body}\t\tEND\n"
    plain, chomped = parse_dockerfile(source.encode()).stages[0].commands
    assert isinstance(plain, Copy)
    assert isinstance(chomped, Copy)
    assert plain.contents[0].data == body
    assert chomped.contents[0].data == chomp(body)
    assert chomp(body) == "".join(line.lstrip("\t") + "\n" for line in lines)


@given(st.binary(max_size=100))
def test_dockerignore_patterns_are_relative(data):
    for pattern in parse_dockerignore(data):
        assert pattern
        assert "\n" not in pattern
        body = pattern.removeprefix("!")
        assert body in {"", "/"} or not body.startswith("/")
