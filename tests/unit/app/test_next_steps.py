"""What people are told to type next, anywhere in the program: it is a command, with what it takes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import NotMeasured, TaskExists, WebhookExists
from tests.command_line import assert_command_exists

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("affinery", "registry", "orchestration", "trainers", "affinery_app")
TOLD = re.compile(r"(?:: |\(|<pre>|<code>)affinery ([a-z][^.,;:)<\n]*)")
NAME = 'my cat\'s "best"; rm -rf $HOME'
TELLING = ("following", "Step", "tell_added")  # what takes a command as its argument

BEGUN = re.compile(r"(?:^|[ (])affinery (?:[a-z][^.,;:)<\n]*)?$")
PLAIN = (
    *("number", "job.number", "record.number", "found.job.number", "jobs[-1].number", "found[-1].id"),
    *("job[:8]", "size_bytes", "uuid.uuid4()", "arch", "kind"),
    *("limit.scope", "chosen.name", "chosen.example"),
    *("__version__", "own", "_version('affinery')"),
    *("which", "sheet", "option", "rebase_it", "' --cache' if cache else ''"),
)
"""What a shell reads as it stands: numbers, words of Affinery's own, and what was quoted before."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text but documentation; what is filled in is a word."""
    pieces = {id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values}
    about = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) not in pieces | about and (text := filled(node)) is not None:
            yield text
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TELLING:
            yield from (f": {text}" for each in node.args if (text := filled(each)) is not None)


def filled(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "1" for each in node.values)
    return None


def unquoted(tree: ast.AST) -> Iterator[str]:
    """What stands in a command as it is, though it may hold what a shell reads otherwise."""
    for node in ast.walk(tree):
        before = ""
        for each in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(each, ast.FormattedValue):
                value = ast.unparse(each.value)
                if BEGUN.search(before) and "quote(" not in value and value not in PLAIN:
                    yield value
            before += str(each.value) if isinstance(each, ast.Constant) else "1"


def told() -> dict[str, list[str]]:
    """→ by what is told, the words after `affinery`"""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found += [match for text in texts(ast.parse(path.read_text())) for match in TOLD.findall(text)]
        for path in (ROOT / package).rglob("*.html"):
            found += TOLD.findall(re.sub(r"\{\{.*?\}\}", "1", path.read_text()))
    return {line: shlex.split(line.replace("…", "")) for line in found}


def test_every_next_step_names_a_command_with_what_it_takes() -> None:
    found = told()
    assert {"task show 1", "dataset add NAME FOLDER", "run", "job retry 1"} <= found.keys()
    refused = []
    for line, words in found.items():
        try:
            assert_command_exists(words)
        except Exception as error:  # noqa: BLE001 - Typer's own, of many kinds
            refused.append(f"affinery {line}: {error}")
    assert refused == []


def test_what_is_filled_into_a_next_step_is_quoted_for_a_shell() -> None:
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found += [f"{path.name}: {each}" for each in unquoted(ast.parse(path.read_text()))]
        for path in (ROOT / package).rglob("*.html"):
            held = re.findall(r"affinery [a-z][^<]*?\{\{(.*?)\}\}", path.read_text())
            found += [f"{path.name}: {each}" for each in held if not each.rstrip().endswith("|quoted")]
    assert found == []


@pytest.mark.parametrize("error", [TaskExists(NAME), NotMeasured(f"{NAME}@1", None), WebhookExists(NAME)])
def test_a_name_with_spaces_and_quotes_comes_out_of_a_next_step_as_it_was(error: Exception) -> None:
    told = str(error)
    last = shlex.split(told[told.rindex("affinery ") :])[-1]
    assert last.removesuffix("@1") == NAME
