"""The running average of the weights: what is evaluated, and what the best checkpoint holds.

Source: averaging of iterates, Polyak and Juditsky 1992; the warm-up is that of ``tf.train.ExponentialMovingAverage``.
"""

from __future__ import annotations

import copy

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spt_deploy.model.network import SptModel

_WARMUP = 10  # after t steps the average reaches back over at most about t / 10 of them, so it leaves the start behind


class WeightAverage:
    """An exponential moving average of a model's weights.

    Attributes:
        model: a copy of the model with the averaged weights, in evaluation mode, without gradients.
        decay: share of the average that one step keeps, once warm, in (0, 1).
    """

    def __init__(self, model: SptModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """The decay of a step, counted from 1: min(decay, (1 + step) / (10 + step))."""
        return min(self.decay, (1 + step) / (_WARMUP + step))

    def update(self, model: SptModel, step: int) -> None:
        """Take the weights of ``model`` in, after step number ``step`` of the run, counted from 1."""
        average, now = self.model.state_dict(), model.state_dict()
        names = [name for name, tensor in average.items() if tensor.is_floating_point()]
        # All tensors in one call: one kernel launch on a GPU instead of one for each.
        update = get_ema_multi_avg_fn(self.decay_at(step))  # type: ignore[no-untyped-call]
        update([average[n] for n in names], [now[n] for n in names], 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``.

        Raises:
            RuntimeError: when names or shapes are others.
        """
        self.model.load_state_dict(state)
