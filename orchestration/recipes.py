"""What was asked of a training, filled in: by what the backbone's spec advises, then by what is usual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.specs import spec_of
from registry.records import BackboneRecord


def full_recipe(backbone: BackboneRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    from affinery.kind_settings import advised_recipe, check_mask_ratio
    from trainers.recipe import Recipe

    spec = spec_of(backbone)
    advised = advised_recipe(spec.arch, spec.defaults)
    recipe = Recipe.from_dict({**advised, **given})
    check_mask_ratio(spec.arch, recipe.mask_ratio)
    return recipe.to_dict()


def full_configs(
    backbone: BackboneRecord, kinds: Sequence[str], given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each task's settings, found to fit the backbone. Raises UnknownName or ConfigInvalid."""
    from affinery.adapters import kind as kind_named
    from affinery.kind_settings import advised_settings, check_fits

    spec = spec_of(backbone)
    configs = []
    for kind, own in zip(kinds, given, strict=True):
        advised = advised_settings(kind, spec.arch, spec.defaults)
        configs.append(kind_named(kind).config({**advised, **own}).to_dict())
    check_fits(spec, list(zip(kinds, configs, strict=True)))
    return configs
