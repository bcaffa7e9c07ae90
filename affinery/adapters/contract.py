"""What an adapter kind is: the tensors that it gives a task at one module, and what they do there.

A kind is a few functions of a site, which is one module of the network: the shapes of its tensors there,
their values before training, and how they change the module's output. Everything else (stacking the tensors
of many tasks, mixing tasks in a batch, saving, loading) is done once, in `sites`, for all kinds.

Shape legend: B samples of a batch, G tasks in it side by side (B = G · n, task by task).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from affinery.backbones.contract import LAYER_ROLES, ROLES, Site
from affinery.errors import ConfigInvalid, near

if TYPE_CHECKING:
    from affinery.adapters.routing import Choice
    from affinery.adapters.sites import Bank


@dataclass(frozen=True)
class Config:
    """A kind's settings. Subclasses are frozen dataclasses whose values survive JSON."""

    def to_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Part:
    """One tensor of a task at one module. neutral: the value that does nothing there."""

    shape: tuple[int, ...]
    neutral: float = 0.0


def check_parts(wanted: Mapping[str, Part], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a part is missing, unknown or of another shape."""
    if tensors.keys() != wanted.keys():
        raise ValueError(f"the parts are {sorted(tensors)}, not {sorted(wanted)}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != wanted[name].shape:
            found, needed = list(tensor.shape), list(wanted[name].shape)
            raise ValueError(f"part {name} has the shape {found}, not {needed}")


@dataclass(frozen=True)
class Folded:
    """A task folded into a layer. weights: the layer's parameters that change, by name.

    rest: the parts that stay beside the layer, the folded ones at their neutral values; None where nothing
    is left. reason: why something is left.
    """

    weights: dict[str, Tensor]
    rest: dict[str, Tensor] | None = None
    reason: str = ""


class Kind(ABC, Generic[C]):
    """One adapter method. A file in this folder offers it as `KIND`.

    replaces: it computes the module's output anew (`run`), instead of changing it (`adapt`).
    """

    name: ClassVar[str]
    settings: type[C]
    replaces: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or pickled model has the same kinds, of which there is one object each."""
        from affinery.adapters import kind

        return kind, (self.name,)

    def config(self, values: Mapping[str, Any]) -> C:
        """Settings from JSON values, defaults filled in. Raises ConfigInvalid."""
        known = [entry.name for entry in fields(self.settings)]
        for name in values:
            if name not in known:
                listing = ", ".join(known) or "none"
                raise ConfigInvalid(
                    self.name, f"it has no setting {name!r}; it has: {listing}.{near(name, known)}"
                )
        typed = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return self.settings(**typed)

    @abstractmethod
    def targets(self, name: str, site: Site, config: C) -> bool:
        """Whether the method changes this module of a network. name: its path."""

    def choose(self, sites: Mapping[str, Site], config: C) -> tuple[str, ...]:
        """The modules of a network that the method changes. Raises ConfigInvalid where it finds none."""
        found = tuple(name for name, site in sites.items() if self.targets(name, site, config))
        if not found:
            raise ConfigInvalid(self.name, "it finds nothing to adapt in this backbone.")
        for target in getattr(config, "targets", ()):
            if not any(matches(name, sites[name], target) for name in found):
                roles = sorted({site.role for site in sites.values()})
                raise ConfigInvalid(
                    "targets",
                    f"{target!r} is no layer that {self.name} takes in this backbone. "
                    f"Name a role ({', '.join(roles)}) or a pattern of names like {next(iter(found))!r}.",
                )
        return found

    @abstractmethod
    def parts(self, site: Site, config: C) -> dict[str, Part]:
        """A task's tensors at a module. Raises ConfigInvalid where the method is not defined on it.

        An empty answer means that it does nothing there.
        """

    @abstractmethod
    def initial(self, site: Site, config: C, generator: torch.Generator) -> dict[str, Tensor]:
        """The tensors before training: the module's output is that of the frozen one."""

    def prepare(
        self, site: Site, config: C, parts: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The parts as `adapt` wants them, in the number type of the pass.

        Where nothing trains it is asked once, for all tasks, until a tensor changes: what follows from the
        tensors alone is worked out here.
        """
        return {name: part.to(dtype) for name, part in parts.items()}

    def adapt(self, site: Site, config: C, parts: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """What the adapted module gives.

        parts: what `prepare` gave, (G, *shape); x: (B, …) its input; y: (B, …) what the frozen module makes
        of it.
        """
        raise NotImplementedError

    def learn(self, site: Site, config: C, bank: Bank, choice: Choice, x: Tensor, y: Tensor) -> Tensor:
        """As `adapt`, where gradients are wanted: a kind that knows how keeps less than autograd would."""
        return self.adapt(site, config, self.prepare(site, config, bank.pick(choice), y.dtype), x, y)

    def look(self, banks: Sequence[Bank]) -> None:
        """Before each pass that learns: the one place where a kind may wait for values on the device."""

    def recalled(self, measured: Tensor | None) -> Any:
        """A layer's findings, where its last pass measured this (`Bank.measured`), in whatever process."""
        return None

    def run(
        self,
        site: Site,
        config: C,
        bank: Bank,
        choice: Choice,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """What the module gives, for kinds that compute it anew. What samples of slot 0 get is not used."""
        raise NotImplementedError

    def learning_rates(self) -> dict[str, float]:
        """Factors on the learning rate, by part, where a part wants its own."""
        return {}

    def fold(self, site: Site, config: C, parts: Mapping[str, Tensor]) -> Folded:
        """One task's tensors, folded into the layer's own weights as far as that is exact."""
        return Folded({}, dict(parts), f"{self.name} is not foldable")

    def merged_config(self, configs: Sequence[C]) -> C:
        """The config of a weighted sum of such tasks. Raises ConfigInvalid where there is none."""
        raise ConfigInvalid("merge", f"tasks of kind {self.name} cannot be summed exactly.")

    def merge(
        self, site: Site, config: C, members: Sequence[tuple[float, C, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """One task that changes a module's output by Σ weight · (the member's change of it).

        config: that of `merged_config`; members: weight, config and tensors of each that is at this module.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TargetConfig(Config):
    """Settings of a kind whose layers can be chosen.

    targets: roles (see ROLES) or glob patterns of layers' names, like `down_blocks.*`; none means the layers
    that the method itself names.
    """

    targets: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.targets, tuple) or not all(isinstance(t, str) and t for t in self.targets):
            raise ConfigInvalid("targets", f"{self.targets!r} is not a list of roles or name patterns.")


def chosen(name: str, site: Site, targets: Sequence[str], default: frozenset[str]) -> bool:
    """Whether a layer is meant. default: the roles that the method itself names."""
    if site.role not in LAYER_ROLES:
        return False
    if not targets:
        return site.role in default
    return any(matches(name, site, target) for target in targets)


def matches(name: str, site: Site, target: str) -> bool:
    """Whether a target, a role or a glob pattern of names, means this site."""
    return site.role == target if target in ROLES else fnmatchcase(name, target)


def whole_number(name: str, value: object, least: int, most: int) -> None:
    """Raises ConfigInvalid unless value is a whole number in [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise ConfigInvalid(name, f"{value!r} is not a whole number from {least} to {most}.")


def number(name: str, value: object, least: float, most: float) -> None:
    """Raises ConfigInvalid unless value is a number in [least, most]."""
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise ConfigInvalid(name, f"{value!r} is not a number from {least:g} to {most:g}.")
