"""The loss of any weights of any model of the protocol, by ``torch.func.functional_call``: the model is run whole, chain by
chain.

This is the plain way: what the engine for heads gives is tested against it. In models of our own the fused kernels run.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from circuits.complexity.blocks import Block
from circuits.complexity.pool import TOGETHER
from circuits.models.hooked import HookedTransformer
from circuits.models.own import bare
from circuits.models.protocol import device_of, named_parameters


class GeneralLoss:
    """The loss of a block of weights over a pool of sequences; see ``circuits.complexity.chains.Loss``."""

    def __init__(self, model: Any, tokens: Int[Tensor, "example pos"], weights: Any, reference: Any = None):
        self.model = bare(model) if isinstance(model, HookedTransformer) else model
        self.tokens = tokens.to(device_of(model))
        self.parameters = {name: weight.detach() for name, weight in named_parameters(self.model)}
        self.block = Block(weights, self.parameters, model.cfg)
        self.centre = self.block.vector(self.parameters)
        with torch.no_grad():
            said = [] if reference is None else [reference(some).log_softmax(-1) for some in self.tokens.split(TOGETHER)]
            self.said: Float[Tensor, "example pos d_vocab"] | None = torch.cat(said) if said else None
            places = torch.arange(len(self.tokens), device=self.tokens.device).split(TOGETHER)
            self.base = torch.cat([self._losses(self.centre, some) for some in places])

    def loss(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> Float[Tensor, "chain example pos_minus_1"]:
        """Losses of every chain on its sequences."""
        with torch.no_grad():
            return torch.stack([self._losses(one, some) for one, some in zip(w, examples, strict=True)])

    def loss_and_gradient(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> tuple[Float[Tensor, "chain example pos_minus_1"], Float[Tensor, "chain parameter"]]:
        """The same, and the gradient of each chain's mean."""
        losses, gradients = [], []
        for one, some in zip(w, examples, strict=True):
            one = one.detach().requires_grad_()
            found = self._losses(one, some)
            gradients.append(torch.autograd.grad(found.mean(), one)[0])
            losses.append(found.detach())
        return torch.stack(losses), torch.stack(gradients)

    def _losses(self, w: Float[Tensor, "parameter"], examples: Int[Tensor, "example"]) -> Float[Tensor, "example pos_minus_1"]:
        tokens = self.tokens[examples]
        logits = functional_call(self.model, self.block.placed(w, self.parameters), (tokens,))
        logp = logits[:, :-1].log_softmax(-1)
        if self.said is None:
            return -logp.gather(-1, tokens[:, 1:, None].long())[..., 0]
        said = self.said[examples][:, :-1]
        return (said.exp() * (said - logp)).sum(-1)
