"""What an administrator has provenance say of the builder."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.config.load import ConfigError
from boxwright.engine.builderfacts import builder_facts


def test_files_add_up_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"site": "b", "only": [1]}')
    (tmp_path / "a.json").write_text('{"site": "a", "first": true}')
    (tmp_path / "notes.txt").write_text("not JSON")
    (tmp_path / "folder.json").mkdir()
    assert builder_facts(tmp_path) == {"site": "b", "first": True, "only": [1]}


def test_no_folder_says_nothing(tmp_path: Path) -> None:
    assert builder_facts(tmp_path / "none") == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 9000, "x" * (2 << 20)],
    ids=["empty", "list", "cut", "deep", "long"],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        builder_facts(tmp_path)
    assert str(tmp_path / "a.json") in caught.value.brief


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't read"):
        builder_facts(tmp_path / "file")
