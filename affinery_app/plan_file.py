"""A plan: many tasks in one YAML file, read strictly, so that nothing in it is overlooked.

    backbone: tiny-dit
    recipe: {steps: 800}
    jobs:
      - tasks: [digits, letters]            # together, on one backbone in memory
      - task: {name: animals, dataset: animals@2, kind: lora, config: {rank: 16}}
        after: [digits + letters]
        priority: 5

What a job does not say itself is as the file says for all. docs/guides/queue.md has every field.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orchestration.errors import PlanInvalid
from orchestration.queue.amounts import LONGEST_KEY, key_of
from orchestration.scheduling import Wanted

LARGEST_BYTES = 1 << 20
_Place = tuple[int | str, ...]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _moment(value: Any) -> datetime:
    """In UTC; a time without a zone is this machine's."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise ValueError("it is no time, as 2030-01-31T03:00+01:00 is one")
    try:
        return value.astimezone(UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("it is too far away") from error


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PlannedTask(_Part):
    """One task; its name alone is enough where its dataset bears the same."""

    name: str
    dataset: str | None = None
    kind: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    condition: dict[str, Any] | None = None


class PlannedJob(_Part):
    """One job: its tasks train together. name: what `after` calls it; without one, a task's name does."""

    name: str | None = None
    tasks: Annotated[
        list[Annotated[PlannedTask, BeforeValidator(_named)]], BeforeValidator(_listed), Field(min_length=1)
    ] = Field(alias="task")
    after: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    backbone: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    priority: int | None = None
    image_size: int | None = None
    strategy: Literal["sequential", "co-trained", "parallel", "data-parallel"] | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    max_attempts: Annotated[int, Field(ge=1)] = 5
    run_at: Annotated[datetime, BeforeValidator(_moment)] | None = None
    key: Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)] | None = None

    @property
    def called(self) -> str:
        return self.name or " + ".join(task.name for task in self.tasks)


class Plan(_Part):
    """The whole file. What stands beside jobs holds for each of them that does not say otherwise."""

    backbone: str | None = None
    kind: str = "affiner"
    config: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    priority: int = 0
    jobs: Annotated[list[PlannedJob], Field(min_length=1)]


def read_plan(path: Path) -> Plan:
    """Raises PlanInvalid, which says every place with its line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PlanInvalid(str(path), [error.strerror or str(error)]) from error
    if len(content) > LARGEST_BYTES:
        raise PlanInvalid(str(path), [f"it has {len(content)} bytes; a plan has at most {LARGEST_BYTES}"])
    try:
        loader = _Loader(content.decode("utf-8"))
        try:
            node = loader.get_single_node()
            value = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise PlanInvalid(str(path), ["it is not text in UTF-8"]) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PlanInvalid(str(path), [f"line {line}: {error.problem}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanInvalid(str(path), [str(error).splitlines()[0]]) from error
    for entry in value.get("jobs") or [] if isinstance(value, dict) else []:
        if isinstance(entry, dict) and "tasks" in entry and "task" not in entry:
            entry["task"] = entry.pop("tasks")
    try:
        plan = Plan.model_validate(value)
    except ValidationError as error:
        raise PlanInvalid(str(path), [_told(each, node) for each in error.errors()]) from error
    _check_names(path, plan, node)
    return plan


def wanted_of(plan: Plan, path: Path, **job: Any) -> list[Wanted]:
    """What is to be scheduled. job: further fields of every job. Raises PlanInvalid."""
    places = _places(plan)
    wanted = []
    for number, entry in enumerate(plan.jobs):
        backbone = entry.backbone or plan.backbone
        if backbone is None:
            raise PlanInvalid(str(path), [f"jobs[{number}]: it names no backbone, and neither does the plan"])
        kinds = tuple(task.kind or plan.kind for task in entry.tasks)
        own = {"workers": entry.workers, "max_attempts": entry.max_attempts, "strategy": entry.strategy}
        needs = {
            "cpus": entry.cpus,
            "gpus": entry.gpus,
            "memory_bytes": entry.memory_bytes,
            "timeout_seconds": entry.timeout_seconds,
            "run_at": entry.run_at,
            "priority": plan.priority if entry.priority is None else entry.priority,
        }
        names = tuple(task.name for task in entry.tasks)
        wanted.append(
            Wanted(
                names=names,
                sources=tuple(task.dataset or task.name for task in entry.tasks),
                backbone=backbone,
                kinds=kinds,
                configs=tuple(
                    (plan.config if (task.kind or plan.kind) == plan.kind else {}) | task.config
                    for task in entry.tasks
                ),
                recipe=plan.recipe | entry.recipe,
                conditions=tuple(task.condition for task in entry.tasks),
                image_size=entry.image_size,
                after=tuple(places[need] for need in entry.after),
                key=entry.key or key_of("plan", names),
                adopt=entry.key is None,
                job=job | own | needs,
            )
        )
    return wanted


def _places(plan: Plan) -> dict[str, int]:
    """What `after` may call a job: its name, or a task of its."""
    tasks = {task.name: number for number, entry in enumerate(plan.jobs) for task in entry.tasks}
    return tasks | {entry.called: number for number, entry in enumerate(plan.jobs)}


def _check_names(path: Path, plan: Plan, node: yaml.Node | None) -> None:
    found: list[str] = []
    jobs = [entry.called for entry in plan.jobs]
    learners = [task.name for entry in plan.jobs for task in entry.tasks]
    for number, entry in enumerate(plan.jobs):
        line = _line(node, ("jobs", number))
        if jobs.index(entry.called) < number:
            found.append(f"line {line}, jobs[{number}]: there is another job named {entry.called!r}")
        found += [
            f"line {_line(node, ('jobs', number, 'after'))}, jobs[{number}].after: no job is named {need!r}; "
            f"there is {', '.join(map(repr, jobs))}"
            for need in entry.after
            if need not in _places(plan)
        ]
    for name in sorted({name for name in learners if learners.count(name) > 1}):
        found.append(f"task {name!r} stands in it {learners.count(name)} times")
    if found:
        raise PlanInvalid(str(path), found)


def _told(error: Any, node: yaml.Node | None) -> str:
    place: _Place = error["loc"]
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    words = {"extra_forbidden": "there is no such field", "missing": "it is required"}
    return f"line {_line(node, place)}, {shown or 'the file'}: {words.get(error['type'], error['msg'])}"


def _line(node: yaml.Node | None, place: Sequence[int | str]) -> int:
    """The line of a place, or of the nearest thing around it."""
    if node is None:
        return 1
    line = node.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            spelt = (part, "tasks") if part == "task" else (part,)
            found = [(key, value) for key, value in node.value if key.value in spelt]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


class _Loader(yaml.SafeLoader):
    """YAML without what could hide something: no key twice, no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"{key.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
