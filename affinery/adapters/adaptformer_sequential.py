"""AdaptFormer (Chen et al. 2022), behind the feed-forward branch.

y = m + s · (W_up ReLU(W_down m + b_d) + b_u), m = mlp(x)
"""

from __future__ import annotations

from affinery.adapters.bottleneck import Bottleneck


class AdaptFormerSequential(Bottleneck):
    """The bottleneck sees what the branch gives."""

    name = "adaptformer-sequential"
    sequential = True


KIND = AdaptFormerSequential()
