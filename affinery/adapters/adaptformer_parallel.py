"""AdaptFormer (Chen et al. 2022), beside the feed-forward branch.

y = mlp(x) + s · (W_up ReLU(W_down x + b_d) + b_u)
"""

from __future__ import annotations

from affinery.adapters.bottleneck import Bottleneck


class AdaptFormerParallel(Bottleneck):
    """The bottleneck sees what the branch sees."""

    name = "adaptformer-parallel"
    sequential = False


KIND = AdaptFormerParallel()
