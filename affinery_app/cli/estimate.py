"""affinery estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery_app.cli.kind_options import (
    AlphaOption,
    PartsOption,
    RankOption,
    TargetsOption,
    kind_values,
    parsed,
)
from affinery_app.cli.output import JsonOption, emit, fields, following, say, table
from affinery_app.figures import size

if TYPE_CHECKING:
    from affinery.estimate import Cost, Estimator, Step

GIGA = 1e9


def estimate(
    arch: Annotated[
        str,
        typer.Option(help="dit-xl-2, dit-b-4, sd15-unet …, or a .safetensors file or diffusers folder."),
    ],
    kind: Annotated[
        str, typer.Option(help="The adapter kind (affinery adapter kinds), or all: compare them.")
    ] = "all",
    rank: RankOption = None,
    alpha: AlphaOption = None,
    targets: TargetsOption = None,
    parts: PartsOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of the kind, as NAME=VALUE.")
    ] = None,
    classes: Annotated[int, typer.Option(help="How many classes the task has.")] = 1,
    batch: Annotated[
        int | None, typer.Option(help="Samples a step.", show_default="that of a training")
    ] = None,
    mask_ratio: Annotated[
        float | None,
        typer.Option(
            help="The share of the tokens that masked training drops.", show_default="that of a training"
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="The images' side in pixels.", show_default="the backbone's")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What adapters cost on a backbone, before any is trained: nothing is computed and no weight is read."""
    from affinery.adapters import kinds
    from affinery.estimate import Estimator, Setup, spec_for
    from affinery.kind_settings import advised_recipe, advised_settings, shared_out
    from trainers.recipe import Recipe

    spec = spec_for(arch)
    usual = Recipe.from_dict(advised_recipe(spec.arch, spec.defaults))
    ratio = usual.mask_ratio if mask_ratio is None else mask_ratio
    setup = Setup(classes, usual.batch if batch is None else batch, ratio, image_size)
    names = kinds() if kind == "all" else [kind]
    values = kind_values(rank, alpha, targets, parts) | parsed(settings or [])
    wanted = {
        name: advised_settings(name, spec.arch, spec.defaults) | own
        for name, own in zip(names, shared_out(names, values), strict=True)
    }
    estimator = Estimator(spec, setup)
    if kind == "all":
        costs, refusals = _all(estimator, wanted)
        shown = _described(arch, estimator) | {
            "kinds": [_entry(cost, estimator) for cost in costs],
            "not_defined": refusals,
        }
        if as_json:
            emit(shown)
            return
        _compare(estimator, costs, refusals)
        following(f"affinery estimate --arch {arch} --kind affiner", "affinery adapter kinds")
        return
    cost, full = estimator.cost(kind, wanted[kind]), estimator.cost("full", {})
    if as_json:
        emit(_described(arch, estimator) | _entry(cost, estimator) | {"full": full.to_json()})
        return
    _show(arch, estimator, cost, full)
    following(f"affinery estimate --arch {arch}", f"affinery task add NAME --backbone NAME --kind {kind}")


def _all(estimator: Estimator, wanted: dict[str, dict[str, Any]]) -> tuple[list[Cost], dict[str, str]]:
    """→ the costs of the kinds, the least parameters first, and why others are not possible."""
    from affinery.errors import ConfigInvalid

    costs, refusals = [], {}
    for name, values in wanted.items():
        try:
            costs.append(estimator.cost(name, values))
        except ConfigInvalid as error:
            refusals[name] = str(error)
    if not costs:
        raise ConfigInvalid("kind", next(iter(refusals.values())))
    return sorted(costs, key=lambda cost: cost.parameters), refusals


def _described(arch: str, estimator: Estimator) -> dict[str, Any]:
    setup = estimator.setup
    return {
        "arch": arch,
        "backbone_parameters": estimator.parameters,
        "tokens": estimator.tokens,
        "image_size": setup.image_size or estimator.spec.image_size,
        "classes": setup.classes,
        "batch": setup.batch,
        "mask_ratio": setup.mask_ratio,
    }


def _entry(cost: Cost, estimator: Estimator) -> dict[str, Any]:
    return cost.to_json() | {"share": cost.parameters / estimator.parameters}


def _compare(estimator: Estimator, costs: list[Cost], refusals: dict[str, str]) -> None:
    masked = ["masked"] if estimator.setup.mask_ratio > 0 else []
    numbers = ["parameters", "share", "file", "memory", "GMAC", *masked]
    table(
        ["kind", *numbers],
        [
            (
                cost.kind,
                f"{cost.parameters:,}",
                _share(cost, estimator),
                _short(cost.file_bytes),
                _short(cost.memory_bytes(cost.step)),
                _gmac(cost.step),
                *([_gmac(cost.masked)] if cost.masked is not None else []),
            )
            for cost in costs
        ],
        "",
        numbers=numbers,
    )
    for name, reason in refusals.items():
        say(f"{name} is left out: {reason.removeprefix(f'{name}: ')}")
    print()
    for line in _legend(estimator):
        print(line)


def _legend(estimator: Estimator) -> list[str]:
    setup = estimator.setup
    side = setup.image_size or estimator.spec.image_size
    width = estimator.model.backbone.class_table.shape[1]
    tokens = f" ({estimator.tokens} tokens)" if estimator.tokens else ""
    lines = [
        f"share   of the backbone's {estimator.parameters:,}; every kind has {setup.classes:,} × {width:,}",
        "        of class rows",
        f"memory  of training in batches of {setup.batch:,}, in float32: the weights, what trains (with",
        "        gradients, AdamW's moments, running average), the saved activations",
        f"GMAC    a sample, forward and backward, of {side} × {side} pixels{tokens}",
    ]
    if setup.mask_ratio:
        lines.append(f"masked  GMAC with {setup.mask_ratio:.0%} of the tokens dropped")
    return lines


def _show(arch: str, estimator: Estimator, cost: Cost, full: Cost) -> None:
    setup = estimator.setup
    side = setup.image_size or estimator.spec.image_size
    tokens = f", {estimator.tokens} tokens" if estimator.tokens else ""
    settings = "; ".join(f"{name} {_value(value)}" for name, value in cost.config.items())
    fields(
        [
            ("backbone", f"{arch}: {estimator.parameters:,} parameters, {side} × {side} pixels{tokens}"),
            ("kind", f"{cost.kind}" + (f" ({settings})" if settings else "")),
            ("modules", f"{cost.modules:,}"),
            ("parameters", f"{cost.parameters:,}, {_share(cost, estimator)} of the backbone's"),
            *((f"  {part.replace('_', ' ')}", f"{count:>14,}") for part, count in cost.by_part.items()),
            ("adapter file", f"{size(cost.file_bytes)} ({cost.file_bytes:,} bytes)"),
        ]
    )
    print()
    columns = ["", "full", cost.kind]
    steps = [full.step, cost.step]
    owners = [full, cost]
    if cost.masked is not None:
        columns.append(f"{setup.mask_ratio:.0%} masked")
        steps.append(cost.masked)
        owners.append(cost)
    table(
        columns,
        [
            ["GMAC a sample", *(_gmac(step) for step in steps)],
            ["  of full fine-tuning", *(f"{step.macs / full.step.macs:.2f}" for step in steps)],
            ["  forward alone", *(f"{step.forward_macs / GIGA:.1f}" for step in steps)],
            [f"GMAC a step of {setup.batch}", *(f"{step.macs * setup.batch / GIGA:,.0f}" for step in steps)],
            ["frozen weights", *(size(owner.weights_bytes) for owner in owners)],
            ["what trains", *(size(owner.states_bytes) for owner in owners)],
            ["saved activations", *(size(step.saved_bytes) for step in steps)],
            [
                "memory of training",
                *(size(owner.memory_bytes(step)) for owner, step in zip(owners, steps, strict=True)),
            ],
        ],
        "",
        numbers=columns[1:],
    )
    print()
    print("Memory is in float32 and without the workspaces of kernels. What trains is kept with")
    print("its gradient, AdamW's two moments and a running average; saved activations are what")
    print("the forward pass keeps for the backward pass.")


def _share(cost: Cost, estimator: Estimator) -> str:
    return f"{100 * cost.parameters / estimator.parameters:.3g}%"


def _gmac(step: Step) -> str:
    return f"{step.macs / GIGA:.1f}"


def _short(count: int) -> str:
    """Bytes in three digits."""
    amount, _, unit = size(count).partition(" ")
    return f"{float(amount):.3g} {unit}" if float(amount) < 1000 else f"{float(amount):.0f} {unit}"


def _value(value: object) -> str:
    if value is None or value == []:
        return "as the method has it"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
