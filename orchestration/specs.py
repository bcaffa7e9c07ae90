"""What a backbone's record says a model is built from."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING

from affinery.errors import ConfigInvalid
from registry.records import BackboneRecord

if TYPE_CHECKING:
    from affinery.backbones.contract import BackboneSpec


def spec_of(backbone: BackboneRecord) -> BackboneSpec:
    """Raises ConfigInvalid where it is none, as in a row that was not made by `affinery backbone add`."""
    from affinery.backbones.contract import BackboneSpec

    try:
        return BackboneSpec.from_json(json.dumps(backbone.spec))
    except KeyError as error:
        reason = f"it has no {error.args[0]}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    what = f"the record of {backbone.ref} describes no model: {reason}. Register its file as a new version"
    raise ConfigInvalid("backbone", f"{what}: affinery backbone add FILE --name {quote(backbone.name)}")
