"""A LoRA layer whose adapter costs little: what PEFT's layer computes, without its passes over whole activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from llm_gym.models.load import hub_id, quiet_peft


class LoRALinear(Linear):
    """PEFT's LoRA layer with the adapter's product added in place, forwards and backwards.

    PEFT writes `base(x) + B(A(x)) * scaling`: three more activations of full width, each kept or passed through again
    for the gradient, which together took a quarter of an update of SmolLM2-135M on a CPU. Whatever is not a single
    plain adapter on a frozen layer of the same dtype is left to PEFT.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return `(..., out)` for `(..., in)`."""
        if args or kwargs or not self._plain(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Product.apply(x, self.base_layer.weight, self.base_layer.bias, a, b, self.scaling[name])

    def _plain(self, x: torch.Tensor) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name, base = self.active_adapters[0], self.base_layer
        return (
            name in self.lora_A
            and name not in self.lora_variant
            and not (self.training and isinstance(self.lora_dropout[name], nn.Dropout))
            and type(base) is nn.Linear
            and not any(p.requires_grad for p in base.parameters())
            and x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype
            and self.lora_A[name].bias is None
            and self.lora_B[name].bias is None
        )


def with_adapters(bare: Any, model: str, rank: int, dropout: float = 0.0, task_type: str | None = "CAUSAL_LM") -> Any:
    """Return the model `bare`, known by the name `model`, with new adapters on all linear layers."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear", task_type=task_type
    )
    with quiet_peft():
        lm = get_peft_model(bare, config)
    # What is saved must name the public model, not a folder of this machine.
    lm.peft_config["default"].base_model_name_or_path = hub_id(model)
    make_lean(lm)
    return lm


def round_adapters(lm: nn.Module) -> None:
    """Round the adapters to what `save_adapters` keeps, so that what is measured is what will be loaded."""
    with torch.no_grad():
        for p in lm.parameters():
            if p.requires_grad:
                p.copy_(p.half())


def save_adapters(lm: Any, folder: Path) -> None:
    """Write the adapters into an existing folder, in half the precision: half the size."""
    adapter = {name: p.detach().half() for name, p in lm.named_parameters() if p.requires_grad}
    # The embeddings are never trained; asked to find out itself, PEFT would look for the base model on the hub.
    lm.save_pretrained(str(folder), save_embedding_layers=False, state_dict=adapter)
    (folder / "README.md").unlink(missing_ok=True)  # an empty template


def make_lean(lm: nn.Module) -> None:
    """Turn every LoRA layer of PEFT's on a linear layer into a `LoRALinear`; its tensors and names stay."""
    for layer in lm.modules():
        if type(layer) is Linear:
            layer.__class__ = LoRALinear


class _Product(torch.autograd.Function):
    """`x W' + bias + scaling x A' B'` with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ a.T
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        out = nn.functional.linear(flat, weight, bias).addmm_(inner, b.T, alpha=scaling)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        flat, inner, weight, a, b = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_inner = (gradient @ b).mul_(ctx.scaling)
        of_x = (gradient @ weight).addmm_(of_inner, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        # `inner.T @ gradient` and not its transpose: twice as fast for a few columns.
        return of_x, None, None, of_inner.T @ flat, (inner.T @ gradient).mul_(ctx.scaling).T, None
