"""Every command, option, setting, route and table is documented."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from affinery_app.settings import ENVIRONMENT, SETTINGS
from registry.models import Base
from scripts import build_docs, reference

ROOT = Path(__file__).resolve().parents[2]
OURS_ALONE = {"AFFINERY_COMPLETE", "AFFINERY_FAILPOINT", "AFFINERY_RAY_FOLDER", "AFFINERY_TRAINS"}
"""Which one process of Affinery's sets for another, or a shell after TAB, and nobody else."""


@cache
def written() -> dict[str, str]:
    return reference.pages()


@cache
def by_hand() -> str:
    """All that people wrote: the README and the pages of docs/, without decisions."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(page.read_text() for page in pages if page.parent.name != "decisions")


def test_every_command_is_in_the_reference_with_what_it_does() -> None:
    for path, command in reference.commands():
        assert f"### {path}\n" in written()["cli.md"]
        assert command.help, f"{path} does not say what it does"


def test_every_argument_and_option_says_what_it_is() -> None:
    silent = [
        f"{path} {parameter.opts[0]}"
        for path, command in reference.commands()
        for parameter in command.params
        if not getattr(parameter, "help", None) and parameter.name != "help"
    ]
    assert silent == []


def test_every_command_prints_json_when_it_is_asked() -> None:
    lacking = [
        path
        for path, command in reference.commands()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert lacking == []


def test_every_command_is_shown_in_a_guide() -> None:
    shown = by_hand()
    lacking = [path for path, _ in reference.commands() if not re.search(rf"{path}(?![\w-])", shown)]
    assert lacking == []


def test_every_setting_and_every_variable_that_is_read_is_documented() -> None:
    page = written()["settings.md"]
    for setting in SETTINGS:
        assert f"`{setting.name}`" in page
        assert f"`{setting.variable}`" in page
    code = [
        path.read_text()
        for folder in ("affinery", "affinery_app", "orchestration", "registry", "trainers")
        for path in (ROOT / folder).rglob("*.py")
    ]
    read = {name for text in code for name in re.findall(r"(?<!_)AFFINERY_[A-Z_]+[A-Z]", text)}
    known = {setting.variable for setting in SETTINGS} | ENVIRONMENT.keys() | OURS_ALONE
    assert read <= known, read - known


def test_every_route_is_in_the_reference_with_what_it_does() -> None:
    described = reference.description()
    assert len(described["paths"]) > 20
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"### {method.upper()} {path}\n" in written()["http-api.md"]
            assert operation.get("description"), f"{method} {path} does not say what it does"


def test_every_table_is_in_the_reference_with_what_it_holds() -> None:
    for name in Base.metadata.tables:
        assert f"## {name}\n" in written()["schema.md"]
    assert [each.__name__ for each in Base.__subclasses__() if not each.__doc__] == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    build_docs.stage(folder)
    return folder


def test_links_out_of_the_documentation_are_text_on_the_site(pages: Path) -> None:
    kinds = (pages / "guides" / "adapter-kinds.md").read_text()
    assert "../../affinery/adapters" not in kinds
    assert "| `lora` |" in kinds
    assert "](../changelog.md)" in (pages / "guides" / "add-an-adapter-kind.md").read_text()


def test_every_page_has_its_place_in_the_navigation(pages: Path) -> None:
    configuration = build_docs.configuration(pages)
    for page in pages.rglob("*.md"):
        assert f'"{page.relative_to(pages)}"' in configuration, f"{page} is in no section"


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "decisions").mkdir(parents=True)
    (tmp_path / "docs" / "decisions" / "template.md").write_text("# Template\n")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[nowhere](../affinery/no_such_file.py)\n")
    monkeypatch.setattr(build_docs, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    monkeypatch.setattr(build_docs, "ALSO", {})
    with pytest.raises(SystemExit, match="no_such_file"):
        build_docs.stage(tmp_path / "pages")


def test_what_stands_in_a_code_block_is_no_link(tmp_path: Path) -> None:
    text = "```python\nx = table[key](../nothing.md)\n```\n"
    assert build_docs._unlinked(text, ROOT / "docs" / "index.md", tmp_path / "index.md", tmp_path) == text
