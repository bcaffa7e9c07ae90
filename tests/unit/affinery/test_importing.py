"""Libraries whose modules import each other in rings come whole to every thread that imports them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery.importing import IN_RINGS

ROOT = Path(__file__).parents[3]
PACKAGES = ("affinery", "affinery_app", "orchestration", "trainers")
AT_ONCE = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from affinery.backbones import architecture, architectures
from affinery.backbones.contract import on_meta
from affinery.diffusion.schedule import scheduler
from tests.tiny_unets import latent_spec, text_spec, unet_spec

sys.setswitchinterval(1e-5)
SPECS = [unet_spec(), text_spec(), latent_spec()]
FIRST = [lambda spec=spec: on_meta(spec, architecture(spec.arch)) for spec in SPECS]
FIRST += [lambda name=name: architecture(name) for name in architectures()]
FIRST += [lambda: scheduler(SPECS[0])]
together = threading.Barrier(2 * len(FIRST))


def ask(first):
    together.wait()
    first()


with ThreadPoolExecutor(2 * len(FIRST)) as pool:
    for done in [pool.submit(ask, first) for first in 2 * FIRST]:
        done.result()
"""


@pytest.mark.slow
def test_threads_that_are_the_first_to_need_diffusers_all_get_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_whatever_begins_with_such_a_library_is_imported_by_one_thread_at_a_time() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    found = {name: list(_imports(ast.parse(path.read_text()))) for name, path in modules.items()}
    begins = set(IN_RINGS)  # with what is imported, however indirectly, as a module of ours is
    while more := {
        name
        for name, all_of_it in found.items()
        if name not in begins and any(not inside and _meant(each, begins) for each, inside, _ in all_of_it)
    }:
        begins |= more
    assert {"affinery.backbones.unet", "affinery.formats.dit"} <= begins
    alone = [
        (name, each)
        for name, all_of_it in found.items()
        for each, inside, held in all_of_it
        if inside and not held and _meant(each, begins)
    ]
    assert not alone


def _meant(imported: str, modules: set[str]) -> bool:
    return imported in modules or imported.partition(".")[0] in IN_RINGS


def _imports(node: ast.AST, inside: bool = False, held: bool = False) -> Iterator[tuple[str, bool, bool]]:
    """→ what is imported, whether in a function, and whether `with IMPORTING` stands around it"""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((each.name, inside, held) for each in child.names)
        elif isinstance(child, ast.ImportFrom):
            named = [child.module or "", *(f"{child.module}.{each.name}" for each in child.names)]
            yield from ((each, inside, held) for each in named)
        else:
            within = isinstance(child, ast.With) and ast.unparse(child.items[0]) == "IMPORTING"
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(child, inside or function, held or within)
