"""dit: one task folded into a checkpoint of the official DiT layout, its null row last as that code has it.

model.pt             {"ema": state dict}, read with weights_only=True
model.safetensors    the same without a pickle
"""

from __future__ import annotations

from pathlib import Path

from affinery.backbones.dit import DiT
from affinery.backbones.dit_conversion import to_native
from affinery.backbones.dit_diffusers import DiffusersDiT
from affinery.backbones.official_dit import read_official, write_official
from affinery.errors import ConfigInvalid
from affinery.formats.contract import Format, Shipment
from affinery.formats.folded import compared, folded_backbone

FILES = ("model.pt", "model.safetensors")


class OfficialDiT(Format):
    """The layout of facebookresearch/DiT."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        task = shipment.one_task("a DiT checkpoint")
        backbone = folded_backbone(shipment.model, task)
        if isinstance(backbone, DiffusersDiT):
            backbone = to_native(backbone)
        if not isinstance(backbone, DiT):
            raise ConfigInvalid("format", f"a backbone of {backbone.spec.arch} is no DiT.")
        for name in FILES:
            write_official(backbone, folder / name)
        lost = () if backbone.spec.latent is None else ("a checkpoint holds no VAE; it goes separately.",)
        return (f"num_classes = {backbone.spec.num_classes}: the backbone's, then {task}'s.", *lost)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        task = shipment.one_task("a DiT checkpoint")
        heads = shipment.model.spec.config["heads"]
        read = [read_official(folder / name, heads=heads) for name in FILES]
        return max(compared(shipment.model, task, backbone) for backbone in read)


FORMAT = OfficialDiT()
