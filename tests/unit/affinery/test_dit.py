"""The native DiT: its start, its patches, and computing some of its tokens only."""

from __future__ import annotations

import pytest
import torch

from affinery.backbones.contract import on_meta, parameter_count
from affinery.backbones.dit import DiT, position_table, sinusoid
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny


def test_all_tokens_kept_in_order_give_the_unmasked_prediction() -> None:
    model = tiny.backbone()
    x, t = tiny.inputs(3)
    classes = model.class_table[torch.tensor([0, 1, 3])]
    keep = torch.arange(model.tokens).repeat(3, 1)
    whole = model.denoise(x, t, classes)
    torch.testing.assert_close(model.denoise(x, t, classes, keep), model.patches(whole), rtol=0, atol=1e-6)


def test_each_sample_keeps_its_own_tokens() -> None:
    """Without attention between tokens, a kept token gives what it gives unmasked."""
    model = tiny.backbone()
    with torch.no_grad():
        for block in model.get_submodule("blocks").children():
            block.get_parameter("attn.proj.weight").zero_()
    x, t = tiny.inputs(2)
    classes = model.class_table[torch.tensor([0, 1])]
    keep = torch.tensor([[0, 3], [1, 2]])
    masked, whole = model.denoise(x, t, classes, keep), model.patches(model.denoise(x, t, classes))
    for i in range(2):
        torch.testing.assert_close(masked[i], whole[i, keep[i]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_cut_and_put_together_again(channels: int) -> None:
    model = DiT.build(tiny.spec(channels=channels, image_size=12))
    x = torch.randn(2, channels, 12, 12)
    patches = model.patches(x)
    assert patches.shape == (2, 9, 16 * channels)
    assert torch.equal(model.unpatch(patches), x)
    assert torch.equal(patches[0, 1].reshape(4, 4, channels).permute(2, 0, 1), x[0, :, 0:4, 4:8])


def test_patches_come_in_the_order_of_the_patch_embedding() -> None:
    """The token at a position is the embedding of the patch there, so masks of both agree."""
    model = DiT.build(tiny.spec())
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0:4, 4:8] = 1
    changed = (model.x_embedder(x) - model.x_embedder(torch.zeros_like(x))).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1]
    assert model.patches(x).abs().sum(-1)[0].nonzero().flatten().tolist() == [1]


def test_a_fresh_model_predicts_nothing_and_the_same_seed_gives_the_same_weights() -> None:
    one = DiT.build(tiny.spec()).initialise(torch.Generator().manual_seed(3))
    other = DiT.build(tiny.spec()).initialise(torch.Generator().manual_seed(3))
    assert tiny.digests(one) == tiny.digests(other)
    x, t = tiny.inputs(2)
    assert float(one(x, t, torch.tensor([0, 3])).detach().abs().max()) == 0


def test_the_position_table_is_fixed_and_does_not_train() -> None:
    model = DiT.build(tiny.spec())
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed, position_table(16, 2))
    rows = position_table(16, 3)[0]
    assert len({tuple(row.tolist()) for row in rows}) == 9


def test_time_steps_are_told_apart() -> None:
    table = sinusoid(torch.arange(1000), 256)
    assert table.shape == (1000, 256)
    assert len({tuple(row.tolist()) for row in table}) == 1000


def test_five_linears_a_block_are_adaptable_and_nothing_else() -> None:
    names = list(DiT.build(tiny.spec()).adaptable())
    assert names[:5] == [
        "blocks.0.adaLN_modulation.1",
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
    ]
    assert len(names) == 10


def test_on_the_meta_device_a_model_has_its_parameters_and_no_memory() -> None:
    model = on_meta(tiny.spec(), DiT)
    assert parameter_count(model) == parameter_count(tiny.backbone())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_image_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="10 is not a multiple of the patch side 4"):
        DiT.build(tiny.spec(image_size=10))
