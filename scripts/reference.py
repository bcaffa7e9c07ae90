"""The reference, written from the code: commands, settings, HTTP API, tables, records. One page a noun."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.main
from sqlalchemy import UniqueConstraint
from typer.core import TyperCommand, TyperGroup


def pages() -> dict[str, str]:
    """Every page by its path below reference/."""
    made: dict[str, Callable[[], Iterator[str]]] = {
        "index.md": index,
        "cli.md": cli,
        "settings.md": settings,
        "http-api.md": http_api,
        "json.md": records,
        "schema.md": schema,
    }
    return {name: "\n".join(write()) + "\n" for name, write in made.items()}


def index() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Written from the code, whenever these pages are built:"
    yield ""
    yield "- [commands](cli.md): every command with its options"
    yield "- [settings](settings.md): of a workspace, of a training, and the variables that are read"
    yield "- [HTTP API](http-api.md): every route, with the scope that it asks for"
    yield "- [JSON](json.md): the fields of what commands print with `--json` and the API answers"
    yield "- [schema](schema.md): the registry's tables"


# --- commands ------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """Every command that can be typed, by its words."""
    root = typer.main.get_command(import_module("affinery_app.cli.commands").command_line())
    yield from _below(root, "affinery")


def _below(command: Any, path: str) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, each in command.commands.items():
            yield from _below(each, f"{path} {name}")
    else:
        yield path, command


def cli() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield "Results go to standard output, talk to standard error. `--json` prints a result for programs. Exit"
    yield "codes: 0 done, 1 it failed, 2 it cannot be done as asked, 130 interrupted. `--workspace`, or"
    yield "`AFFINERY_WORKSPACE`, says which workspace is meant; without either it is `./affinery-workspace`."
    yield "`affinery --install-completion` teaches your shell the commands, options and names."
    noun = ""
    for path, command in commands():
        if path.split()[1] != noun:
            noun = path.split()[1]
            yield f"\n## {noun}"
        yield f"\n### {path}"
        yield f"\n{_flat(inspect.cleandoc(command.help or ''))}\n"
        context = command.make_context(path, [], resilient_parsing=True)
        yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        rows = [row for each in command.params if (row := each.get_help_record(context)) is not None]
        yield from _table(("argument or option", "meaning"), [(f"`{shown}`", about) for shown, about in rows])


# --- settings ------------------------------------------------------------------------------------------


def settings() -> Iterator[str]:
    from affinery_app import settings as file
    from trainers.recipe import CHOICES, Recipe

    yield "# Settings"
    yield "\n## Of a workspace"
    yield "\nThey stand in the workspace's `affinery.toml`; a variable of the environment wins over the file."
    yield "`affinery config list` shows what holds and why; `affinery config set NAME VALUE` writes it.\n"
    yield from _table(
        ("setting", "variable", "default", "what it is", "example"),
        [
            (
                f"`{each.name}`",
                f"`{each.variable}`",
                f"`{each.default}`" if each.default else "none",
                each.about,
                f"`{each.example}`",
            )
            for each in file.SETTINGS
        ],
    )
    yield "\n## Variables that stand in no file\n"
    yield from _table(
        ("variable", "what it is"), [(f"`{name}`", what) for name, what in file.ENVIRONMENT.items()]
    )
    yield "\n## Of a training"
    yield "\n`affinery task add --set NAME=VALUE`, or `recipe:` in a plan. A backbone may advise others.\n"
    yield _flat(inspect.cleandoc(Recipe.__doc__ or "")) + "\n"
    yield from _table(
        ("setting", "default", "values"),
        [
            (f"`{each.name}`", f"`{each.default}`", ", ".join(CHOICES.get(each.name, ())) or str(each.type))
            for each in dataclasses.fields(Recipe)
        ],
    )
    yield "\n## Of the adapter kinds\n"
    yield "`--rank`, `--alpha`, `--targets`, `--parts` or `--set`: [kinds](../guides/adapter-kinds.md).\n"
    yield from _table(("kind", "what it is", "settings with their defaults"), _kinds())


def _kinds() -> Iterator[Sequence[str]]:
    from affinery.adapters import kind, kinds
    from affinery.kind_settings import about

    for name in kinds():
        defaults = kind(name).config({}).to_dict()
        yield f"`{name}`", about(name), ", ".join(f"`{key}` {value}" for key, value in defaults.items())


# --- HTTP API ------------------------------------------------------------------------------------------


def description() -> dict[str, Any]:
    """The OpenAPI document of the service."""
    from affinery_app.api.application import routes
    from affinery_app.settings import Settings
    from affinery_app.wiring import Workspace

    described: dict[str, Any] = routes(Workspace(Path("nowhere"), Settings())).openapi()
    return described


def http_api() -> Iterator[str]:
    yield "# HTTP API"
    yield ""
    yield "Of `affinery serve`; `/openapi.json` there says it for programs. How to use it: [the registry over"
    yield "HTTP](../guides/http-api.md). Every error is a problem (RFC 9457)."
    tag = None
    described = description()
    for path, methods in sorted(described["paths"].items(), key=lambda item: (_tag(item[1]), item[0])):
        if _tag(methods) != tag:
            tag = _tag(methods)
            yield f"\n## {tag}"
        for method, operation in methods.items():
            yield f"\n### {method.upper()} {path}"
            yield f"\n{_flat(operation.get('description') or operation.get('summary', ''))}\n"
            if scope := operation.get("x-affinery-scope"):
                yield f"Scope: `{scope}`.\n"
            yield from _table(
                ("parameter", "in", "type", "needed", "meaning"),
                [
                    (
                        f"`{each['name']}`",
                        each["in"],
                        _type(each.get("schema", {})),
                        "yes" if each.get("required") else "",
                        each.get("description", ""),
                    )
                    for each in operation.get("parameters", [])
                ],
            )
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                yield from _body(media, body.get("schema", {}), described["components"]["schemas"])


def _tag(methods: dict[str, Any]) -> str:
    return str(next(iter(methods.values())).get("tags", ["other"])[0])


def _body(media: str, shape: dict[str, Any], shapes: dict[str, Any]) -> Iterator[str]:
    name = shape.get("$ref", "").rpartition("/")[2]
    yield f"\nBody: `{media}`{f', {name}' if name else ''}\n"
    found = shapes.get(name, shape)
    needed = found.get("required", ())
    yield from _table(
        ("field", "type", "needed", "meaning"),
        [
            (f"`{key}`", _type(each), "yes" if key in needed else "", each.get("description", ""))
            for key, each in found.get("properties", {}).items()
        ],
    )


def _type(shape: dict[str, Any]) -> str:
    if "$ref" in shape:
        return str(shape["$ref"]).rpartition("/")[2]
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(_type(each) for each in shape["anyOf"]))
    if shape.get("type") == "array":
        return f"list of {_type(shape.get('items', {}))}"
    return str(shape.get("type", "any"))


# --- records and tables --------------------------------------------------------------------------------


def records() -> Iterator[str]:
    from orchestration import jobs
    from registry import records as kept

    yield "# JSON"
    yield ""
    yield "A command's `--json` prints one object or a list; a worker's and a watcher's, one a line. What is"
    yield "recorded has these fields, and most a `ref`, here and over HTTP. Instants are ISO 8601 with their"
    yield "zone; sizes are bytes; what is not known is `null`."
    for module in (kept, jobs):
        for name, each in inspect.getmembers(module, inspect.isclass):
            if (
                name.endswith("Record")
                and dataclasses.is_dataclass(each)
                and each.__module__ == module.__name__
            ):
                words = re.findall("[A-Z][a-z]*", name.removesuffix("Record"))
                yield f"\n## {' '.join(words).lower()}"
                yield f"\n{_flat(inspect.cleandoc(each.__doc__ or ''))}\n"
                told = [(f"`{field.name}`", f"`{field.type}`") for field in dataclasses.fields(each)]
                yield from _table(("field", "type"), told)


def schema() -> Iterator[str]:
    from registry.models import Base
    from registry.session import HEAD

    yield "# Schema"
    yield ""
    yield f"The registry's tables at revision {HEAD}, alike on SQLite and PostgreSQL. Triggers hold what"
    yield "[can never happen](../architecture.md#what-can-never-happen)."
    about = {each.__tablename__: inspect.cleandoc(each.__doc__ or "") for each in Base.__subclasses__()}
    for name, table in sorted(Base.metadata.tables.items()):
        yield f"\n## {name}"
        yield f"\n{_flat(about.get(name, ''))}\n"
        yield from _table(
            ("column", "type", "null", "refers to"),
            [
                (
                    f"`{column.name}`" + (" (key)" if column.primary_key else ""),
                    str(column.type).lower(),
                    "yes" if column.nullable else "",
                    ", ".join(f"`{key.target_fullname}`" for key in column.foreign_keys),
                )
                for column in table.columns
            ],
        )
        unique = [
            ", ".join(f"`{column.name}`" for column in each.columns)
            for each in sorted(table.constraints, key=lambda each: str(each.name))
            if isinstance(each, UniqueConstraint)
        ]
        if unique:
            yield f"\nUnique: {'; '.join(unique)}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    listed = [[_cell(cell) for cell in row] for row in rows]
    if listed:
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from (f"| {' | '.join(row)} |" for row in listed)


def _cell(text: str) -> str:
    return _flat(text).replace("|", "\\|").replace("\n", " ").strip() or " "


def _flat(text: str) -> str:
    """Paragraphs as lines; nothing in them is HTML."""
    joined = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    return re.sub(r"<(?=[a-zA-Z/])", "&lt;", joined) if "`" not in joined else joined
