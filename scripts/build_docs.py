"""Builds the documentation as a site that works offline: python -m scripts.build_docs [--folder build/docs]

docs/ is copied, the reference is written beside it from the code, and Zensical makes pages of both; a link or
an anchor that leads nowhere fails the build. Links to files outside docs/ become plain text there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ALSO = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
SECTIONS = (
    ("How to", "how-to"),
    ("Guides", "guides"),
    ("Reference", "reference"),
    ("Decisions", "decisions"),
)
EXPLANATION = (
    "method.md",
    "no-forgetting.md",
    "architecture.md",
    "performance.md",
    "results.md",
    "results-colour.md",
)
LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
NOT_PAGES = frozenset(("template.md",))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "docs")
    folder = parser.parse_args().folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    stage(folder / "pages")
    (folder / "zensical.toml").write_text(configuration(folder / "pages"), encoding="utf-8")
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [str(program), "build", "--strict", "--clean", "--config-file", str(folder / "zensical.toml")],
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    print(folder / "site" / "index.html")


def stage(pages: Path) -> None:
    """docs/ with the reference, as the generator takes them."""
    shutil.copytree(DOCS, pages)
    for source, target in ALSO.items():
        shutil.copy(ROOT / source, pages / target)
    for name, text in reference.pages().items():
        (pages / "reference").mkdir(exist_ok=True)
        (pages / "reference" / name).write_text(text, encoding="utf-8")
    for name in NOT_PAGES:
        (pages / "decisions" / name).unlink()
    (pages / "decisions" / "index.md").write_text(decisions(pages / "decisions"), encoding="utf-8")
    for page in sorted(pages.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        came_from = _source(page.relative_to(pages))
        page.write_text(_unlinked(text, came_from, page, pages), encoding="utf-8")


def _source(page: Path) -> Path:
    """Where a page stands in the repository, from which its links are meant."""
    outside = {target: source for source, target in ALSO.items()}
    return ROOT / outside[page.name] if page.name in outside else DOCS / page


def _unlinked(text: str, came_from: Path, page: Path, pages: Path) -> str:
    """The text with links that hold inside the site. What is in a code block is none."""

    def mended(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        if not target or "://" in target:
            return found[0]
        meant = (came_from.parent / target).resolve()
        if meant.is_relative_to(DOCS):
            inside = pages / meant.relative_to(DOCS)
        elif meant.is_relative_to(ROOT) and str(meant.relative_to(ROOT)) in ALSO:
            inside = pages / ALSO[str(meant.relative_to(ROOT))]
        elif meant == ROOT / "README.md":
            inside = pages / "index.md"
        else:
            if not meant.exists():
                sys.exit(f"{came_from}: there is no {target}")
            return words
        if inside.is_dir():
            inside /= "index.md"
        if not inside.exists():
            sys.exit(f"{came_from}: there is no {target}")
        up = "../" * (len(page.relative_to(pages).parts) - 1)
        return f"{picture}[{words}]({up}{inside.relative_to(pages)}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(mended, part) for part in parts)


def decisions(folder: Path) -> str:
    """The list of decisions."""
    listed = [f"- [{title(page)}]({page.name})" for page in sorted(folder.glob("0*.md"))]
    return (
        "# Decisions\n\nWhat more than one piece of work relies on, and why.\n\n" + "\n".join(listed) + "\n"
    )


def title(page: Path) -> str:
    """A page's first heading."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{page} has no heading")
    return found[1].replace("`", "")


def configuration(pages: Path) -> str:
    """The generator's, with every page in its place."""

    def entries(names: list[Path]) -> str:
        told = (
            f"{{{json.dumps(title(each))} = {json.dumps(str(each.relative_to(pages)))}}}" for each in names
        )
        return ", ".join(told)

    sections = [
        f"{{{json.dumps(name)} = [{entries(_ordered(pages / folder))}]}}" for name, folder in SECTIONS
    ]
    explained = entries([pages / name for name in EXPLANATION if (pages / name).exists()])
    sections.insert(2, f'{{"Explanation" = [{explained}]}}')
    first = ['{"Home" = "index.md"}', '{"Tutorial" = "tutorial.md"}']
    last = [entries([pages / name for name in ALSO.values()])]
    nav = ",\n  ".join([*first, *sections, *last])
    return f"""[project]
site_name = "Affinery"
site_description = "One frozen diffusion backbone that keeps learning"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
nav = [
  {nav},
]

[project.theme]
font = false
features = ["navigation.indexes", "navigation.top", "search.highlight"]

[project.plugins.offline]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Switch to dark"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Switch to light"
"""


def _ordered(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.md"), key=lambda page: (page.name != "index.md", page.name))


if __name__ == "__main__":
    main()
