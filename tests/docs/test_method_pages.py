"""The configurations that the methods' pages show are those of configs/methods."""

from __future__ import annotations

import pytest
import yaml

from scripts.site import catalogue
from tests.docs.pages import ROOT, blocks, name_of

CONFIGS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs/methods").glob("*.yaml"))]
SHOWN = [
    (page, yaml.safe_load(block.text))
    for page in sorted((ROOT / "docs/methods").glob("*.md"))
    if page.stem != "compose"  # whose objectives are put together from parts
    for block in blocks(page)
    if block.language == "yaml" and {"model", "references"} <= set(yaml.safe_load(block.text))
]


def classes(value: object) -> list[str]:
    """Every class in a configuration, in its order."""
    if isinstance(value, dict):
        named = [value["class_path"]] if "class_path" in value else []
        return named + [
            path for key, part in sorted(value.items()) if key != "class_path" for path in classes(part)
        ]
    return [path for part in value for path in classes(part)] if isinstance(value, list) else []


@pytest.mark.parametrize(("page", "shown"), SHOWN, ids=[name_of(page) for page, _ in SHOWN])
def test_a_page_shows_a_file_of_configs_methods(page, shown):
    same = [config for config in CONFIGS if classes(config) == classes(shown)]
    assert same, f"{name_of(page)} shows classes that no file of configs/methods has together"
    objective = shown["model"]["init_args"]["objective"]["init_args"]
    assert any(
        objective.keys() == config["model"]["init_args"]["objective"]["init_args"].keys() for config in same
    )


def test_every_page_shows_one():
    pages = {path.stem for path in (ROOT / "docs/methods").glob("*.md")}
    assert {page.stem for page, _ in SHOWN} == pages - {"index", "compose", "catalogue"}


def test_the_catalogue_is_that_of_the_classes():
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), (
        "run `python -m scripts.site.catalogue`"
    )
    shown = {file.name for files in catalogue.methods().values() for file in files}
    assert shown == {path.stem for path in (ROOT / "configs/methods").glob("*.yaml")}
