"""Whatever a YAML file holds, the answer is its values or one sentence."""

from __future__ import annotations

import json
import os

import pytest

from pl_prefopt.errors import ConfigError
from pl_prefopt.yaml_files import MOST_LEVELS, MOST_VALUES, read_yaml

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "Latin-1": (
        "a: 1\nname: café\n".encode("latin-1"),
        ", line 2: the byte 0xe9 is not UTF-8: save the file as UTF-8.",
    ),
    "UTF-16": ("a: 1\n".encode("utf-16"), " is UTF-16: save it as UTF-8."),
    "a NUL": (b"a: 1\nb: \x00\n", ", line 2: the character 0x00 is not valid in YAML: remove it."),
    "a tab": (b"a:\n\tb: 1\n", ", line 2: the line starts with a tab: YAML requires spaces for indentation."),
    "an alias to itself": (b"a: 1\nb: &b [1, *b]\n", ", line 2: the alias *b contains itself."),
    "an alias to its mapping": (b"a: &a\n  b:\n    <<: *a\n", ", line 3: the alias *a contains itself."),
    "an unknown alias": (b"a: *nowhere\n", ", line 1: found undefined alias: this is not valid YAML."),
    "a billion laughs": (LAUGHS.encode(), ", line 5: more than 20,000 values, with aliases expanded."),
    "many levels": (
        b"a: " + b"[" * 40 + b"]" * 40,
        ", line 1: lists and mappings are nested more than 30 levels deep.",
    ),
    "many mappings": (
        b"{a: " * 40,
        ", line 1: lists and mappings are nested more than 30 levels deep.",
    ),
    "a key twice": (
        b"a: 1\nb:\n  c: 1\n  c: 2\n",
        ", line 4: 'c' occurs twice, also in line 3: remove one.",
    ),
    "a list as a key": (
        b"[a, b]: 1\n",
        ", line 1: a list or mapping can't be a key: quote text in braces.",
    ),
    "a template": (
        b"a: {{ x }}\n",
        ", line 1: a list or mapping can't be a key: quote text in braces.",
    ),
    "an object": (
        b"a: 1\nb: !!python/object/apply:os.mkdir [harm]\n",
        ", line 2: the tag !!python/object/apply:os.mkdir is not allowed: values are text, numbers, lists "
        "and mappings.",
    ),
    "a date": (
        b"a: !!timestamp 2026-01-01\n",
        ", line 1: the tag !!timestamp is not allowed: values are text, numbers, lists and mappings.",
    ),
    "two documents": (
        b"a: 1\n---\nb: 2\n",
        ", line 2: a second document starts here: expected one per file.",
    ),
    "no YAML": (b"a: [1\nb: 2\n", ", line 2: did not find expected ',' or ']': this is not valid YAML."),
    "a huge number": (b"a: " + b"9" * 5000, ": Exceeds the limit"),
    "rows": (b"a" * ((1 << 20) + 1), " is larger than 1 MiB: expected a YAML file with settings."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, sentence = REFUSED[kind]
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_yaml(tmp_path / "x.yaml")
    said = str(refused.value)
    assert said == f"{tmp_path / 'x.yaml'}{sentence}" or (kind == "a huge number" and sentence in said)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("opening", [b"[", b"{a: ", b"- "])
def test_nesting_beyond_any_stack_is_refused(tmp_path, opening):
    (tmp_path / "x.yaml").write_bytes(opening * 100_000)
    with pytest.raises(ConfigError, match=r"levels|nesting"):
        read_yaml(tmp_path / "x.yaml")


def test_what_is_no_file_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "demo.yaml").touch()
    for name, sentence in (
        ("folder", "folder is a folder: expected a YAML file."),
        ("pipe", "pipe is not a regular file: expected a YAML file."),
        ("dmeo.yaml", "there is no file {}; did you mean '{}'?"),
        ("nowhere/demo.yaml", "there is no file {}: the folder {} doesn't exist."),
        ("demo.yaml/x", "x can't be read: Not a directory."),
    ):
        with pytest.raises(ConfigError) as refused:
            read_yaml(tmp_path / name)
        expected = sentence.replace("{}", str(tmp_path / name), 1)
        expected = expected.replace("{}", str(tmp_path / ("demo.yaml" if "mean" in sentence else "nowhere")))
        assert str(refused.value).endswith(expected)


def test_what_is_allowed_is_read(tmp_path):
    values = {f"key {number}": list(range(20)) for number in range(500)}
    deep: object = 1
    for _ in range(MOST_LEVELS - 1):
        deep = [deep]
    assert sum(map(len, values.values())) < MOST_VALUES
    for wanted in (values, {"deep": deep}, None, {"a": "été", "b": [1, 2.5, True, None]}):
        (tmp_path / "good.yaml").write_text(json.dumps(wanted, ensure_ascii=False), encoding="utf-8")
        assert read_yaml(tmp_path / "good.yaml") == wanted
    (tmp_path / "bom.yaml").write_bytes(
        b"\xef\xbb\xbfbase: &base {a: 1}\r\nb: {<<: *base, a: 2}\r\nc: *base\r\n"
    )
    assert read_yaml(tmp_path / "bom.yaml") == {"base": {"a": 1}, "b": {"a": 2}, "c": {"a": 1}}
