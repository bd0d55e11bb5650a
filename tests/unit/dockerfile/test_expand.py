"""Word expansion: what the reference documents, and the corners that images depend on."""

import pytest

from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import ExpansionError, expand

ENV = {"v": "value", "empty": "", "path": "/usr/local/bin", "file": "foo.tar.gz", "sp": "a  b"}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain", "plain"),
        ("$v-${v}", "value-value"),
        ("$unset.", "."),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("'$v'", "$v"),
        ('"$v"', "value"),
        (r"\$v", "$v"),
        (r'"\$v \n \" \\"', r"$v \n " + '" \\'),
        (r"a\b\\", "ab\\"),
        ("a\\", "a"),
        ("${unset:-word}", "word"),
        ("${empty:-word}", "word"),
        ("${empty-word}", ""),
        ("${unset-word}", "word"),
        ("${v:+word}", "word"),
        ("${empty:+word}", ""),
        ("${empty+word}", "word"),
        ("${unset+word}", ""),
        ("${v?no}", "value"),
        ("${empty?no}", ""),
        ("${unset:-${v}/${other:-x}}", "value/x"),
        ("${unset:-'a b'}", "a b"),
        ("${file%.*}", "foo.tar"),
        ("${file%%.*}", "foo"),
        ("${file#*.}", "tar.gz"),
        ("${file##*.}", "gz"),
        ("${path/l/L}", "/usr/Local/bin"),
        ("${path//l/L}", "/usr/LocaL/bin"),
        (r"${path//\//_}", "_usr_local_bin"),
        ("${path/*/x}", "x"),
        ("${file//?/x}", "xxxxxxxxxx"),
        ("${file#zip}", "foo.tar.gz"),
        (r"${file%\.gz}", None),
        ("$1", ""),
        ("$12a", "a"),
        ("é$v", "évalue"),
        ("<<EOF", "<<EOF"),
    ],
)
def test_text(word, text):
    if text is None:
        with pytest.raises(ExpansionError, match="invalid escape"):
            expand(word, ENV)
    else:
        assert expand(word, ENV).text == text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${unset:?set it}", "unset: set it"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${v", "missing '}'"),
        ("${", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${v:#x}", "unsupported modifier (:#)"),
        ("${v^}", "unsupported modifier (^)"),
        ("${v:-", "missing '}'"),
        ("${v/a}", "missing '/'"),
        ("'open", "matching single-quote"),
        ('"open', "matching double-quote"),
    ],
)
def test_errors_name_the_word(word, message):
    with pytest.raises(ExpansionError) as caught:
        expand(word, ENV)
    assert message in str(caught.value)
    assert str(caught.value).startswith("failed to process ")
    assert isinstance(caught.value, DockerfileError)


def test_words_are_split_after_replacement_but_not_inside_quotes():
    assert expand('$sp "c  d" e', ENV).words == ("a", "b", "c  d", "e")
    assert expand('"$sp"', ENV).words == ("a  b",)
    assert expand(r"a\ b c", ENV).words == ("a b", "c")


def test_words_lose_what_stands_before_a_nested_word_as_upstream_does():
    assert expand("8${unset:-080}", ENV).text == "8080"
    assert expand("8${unset:-080}", ENV).words == ("080",)


def test_used_variables_are_told_in_order():
    expansion = expand("$z $v ${a:-$path} $z", ENV)
    assert expansion.matched == ("v", "path")
    assert expansion.unmatched == ("z", "a")


def test_backtick_escape():
    assert expand(r"C:\dir`$v", ENV, escape="`").text == r"C:\dir$v"


def test_heredoc_bodies_ignore_quotes_but_not_escapes():
    assert expand('it\'s "$v" \\$v', ENV, skip_quotes=True).text == 'it\'s "value" $v'


def test_raw_modes_keep_what_they_say():
    assert expand("'a' \"$v\"", ENV, raw_quotes=True).text == "'a' \"value\""
    assert expand(r"a\ b", ENV, raw_escapes=True).text == r"a\ b"
    assert expand("$no ${no} ${no:-x} ${no/a/b}", ENV, skip_unset=True).text == (
        "$no ${no} ${no:-x} ${no/a/b}"
    )


def test_bytes_that_are_not_text_become_replacement_characters():
    assert expand("a\udcff", ENV).text == "a\ufffd"


def test_nesting_ends_in_an_error_and_not_in_the_stack():
    word = "${a:-" * 5000 + "}" * 5000
    with pytest.raises(ExpansionError, match="nested more than"):
        expand(word, {})


@pytest.mark.parametrize("pattern", ["a*" * 40 + "b", "*a" * 40 + "b", "?*" * 40])
def test_patterns_do_not_backtrack(pattern):
    value = "a" * 20_000
    kept = expand(f"${{x//{pattern}/y}}", {"x": value}).text
    assert kept == (value if pattern.endswith("b") else "y")


def test_many_matches_of_a_star():
    value = "ab\n" * 3_000
    assert expand("${x//a*b/c}", {"x": value}).text == "c\n" * 3_000
