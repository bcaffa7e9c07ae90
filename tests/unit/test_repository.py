"""What holds for the whole repository: what it promises is there, and nothing of one machine is in it."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from affinery import __version__

ROOT = Path(__file__).resolve().parents[2]

PROMISED = [
    ".ci/run",
    ".env.example",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "affinery/adapters",
    "affinery/backbones",
    "affinery/diffusion",
    "affinery/errors.py",
    "affinery_app/cli",
    "docker-compose.yml",
    "docs/architecture.md",
    "docs/decisions",
    "migrations/versions",
    "orchestration",
    "pyproject.toml",
    "registry",
    "requirements.lock",
    "trainers",
]

WRITTEN = ("reference/", "../reference/")

# Spelt in pieces, so that this file does not hold what it forbids.
PACKAGE_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "deb." + "debian.org",
    "find" + "-links",
]
MACHINE_PATHS = [
    "/" + "work/",
    "/tmp/" + "brief",
    "/" + "root/",
    "/" + "home/",
    "/opt/" + "wheels",
    "/opt/" + "pypi",
]


@cache
def text_files() -> dict[str, str]:
    """Every file that is, or is about to be, under version control and is text: path → content."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data[:8192]:
                found[name] = data.decode("utf-8", errors="replace")
    return found


def where(pattern: str) -> list[str]:
    """file:line of everything the pattern matches."""
    compiled = re.compile(pattern)
    return [
        f"{name}:{number}"
        for name, text in text_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if compiled.search(line)
    ]


@pytest.mark.parametrize("path", PROMISED)
def test_what_the_readme_and_the_architecture_promise_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("host", PACKAGE_HOSTS)
def test_no_file_names_a_package_host(host: str) -> None:
    assert where(re.escape(host)) == []


@pytest.mark.parametrize("path", MACHINE_PATHS)
def test_no_file_names_a_path_of_somebodys_machine(path: str) -> None:
    assert where(rf"(?<![\w.-]){re.escape(path)}") == []


def test_the_lock_names_packages_and_versions_only() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.+!]+( ; .+)?", line), line
        assert "://" not in line


def test_every_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {
        line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    }
    asked = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    for requirement in asked:
        name = re.split(r"[\[>=<~! ]", requirement)[0].lower().replace("_", "-")
        assert name in locked, f"{name} is not locked: run make lock"


def test_there_is_one_lock_only() -> None:
    assert not [
        name for name in text_files() if Path(name).name in {"uv.lock", "poetry.lock", "Pipfile.lock"}
    ]


def test_no_secret_file_and_no_workspace_is_under_version_control() -> None:
    assert not [
        name for name in text_files() if Path(name).name == ".env" or "affinery-workspace" in Path(name).parts
    ]


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == "Unreleased"


def test_the_licence_is_the_one_that_the_package_states() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    licence = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_program_and_the_package_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert __version__ == project["version"]


def readme_commands() -> list[str]:
    """Every `affinery …` line in the consoles of the README and the guides."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        block
        for document in documents
        for block in re.findall(
            r"^```(?:console|sh|bash)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE
        )
    ]
    lines = [
        line.removeprefix("$ ").removeprefix(".venv/bin/") for block in blocks for line in block.splitlines()
    ]
    return sorted({line for line in lines if line.startswith("affinery ")})


def test_the_readme_shows_commands_at_all() -> None:
    assert len(readme_commands()) >= 10


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_that_is_documented_exists_with_its_options(line: str) -> None:
    from tests.command_line import assert_command_exists

    assert_command_exists(shlex.split(line, comments=True)[1:])


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check", "lock", "clean", "fmt", "help"} <= targets
    for name in ("README.md", "CONTRIBUTING.md"):
        documented = set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert documented <= targets, f"{name} names {sorted(documented - targets)}"


def test_links_in_the_documentation_lead_somewhere() -> None:
    for name, text in text_files().items():
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
                if target.startswith(WRITTEN):  # from the code; the build of the pages follows such links
                    continue
                assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    assert "make test" in script.read_text()
