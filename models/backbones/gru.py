"""A gated recurrent unit, the plain baseline (Cho et al. 2014, arXiv 1406.1078; the gates as in torch.nn.GRU).

    r = sigmoid(W_r x + U_r h)   z = sigmoid(W_z x + U_z h)   n = tanh(W_n x + r * (U_n h))   h <- (1 - z) * n + z * h

Pre-norm and residual: x <- x + h(norm(x)).

B batch   T new inputs   D model width
"""

import torch
from torch import Tensor, nn

from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm


class GRULayer(Layer):
    """x + GRU(norm(x)); it remembers h (B, D)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.gru = nn.GRU(d_model, d_model, batch_first=True)

    def initial(self, batch_size: int) -> Memory:
        return (self.norm.gain.new_zeros(batch_size, self.gru.hidden_size).detach(),)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        (h,) = memory
        u = self.norm(x)
        if flow.reset is None and flow.parents is None:
            states, _ = self.gru(u, h.unsqueeze(0))  # (B, T, D)
        else:
            states = self._one_by_one(u, h, flow)
        return x + states, (Part(h, states=states),)

    def _one_by_one(self, u: Tensor, h: Tensor, flow: Flow) -> Tensor:
        """(B, T, D) states where the inputs are not one plain chain."""
        before: list[Tensor] = []
        for t, u_t in enumerate(u.unbind(1)):
            parent = t - 1 if flow.parents is None else int(flow.parents[t])
            past = before[parent] if parent >= 0 else h
            if flow.reset is not None:
                past = past.masked_fill(flow.reset[:, t, None], 0.0)
            before.append(self.gru(u_t.unsqueeze(1), past.unsqueeze(0))[1][0])
        return torch.stack(before, dim=1)


class GRU(RecurrentBackbone):
    """A stack of GRU layers and a last norm.

    :param d_model: width D
    :param n_layers: layers
    """

    def __init__(self, d_model: int, n_layers: int):
        super().__init__(d_model, [GRULayer(d_model) for _ in range(n_layers)], RMSNorm(d_model))
