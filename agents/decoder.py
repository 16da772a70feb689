"""A second form of a model, for decoding: adapters are part of the weights, and these lie as the kernels read them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer without gradient, whose weight is stored in oneDNN's blocked layout.

    PyTorch's own `linear` on a CPU lays out the whole weight anew in each call, which is most of its time at the few
    rows of a decoding step (2.7 times slower for 16 rows of SmolLM2-135M, `benchmarks/speed.py`).
    """

    ROWS = 16  # for how many rows the layout is chosen; it works for any number

    def put(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over a weight, `(out, in)`, and a bias, `(out,)`."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), self.ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `(..., out)` for `(..., in)`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Decoder:
    """A transformer in the form that decodes fastest on a CPU, and its output layer.

    It shares all tensors with the original but for the linear weights, so it costs their memory.

    Args:
        backbone: The transformer, adapters inside; see `can_pack`.

    Attributes:
        backbone: The transformer to run; right after `refresh`.
        head: The output layer.
    """

    def __init__(self, backbone: nn.Module) -> None:
        shared: Any = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
        self.backbone = copy.deepcopy(backbone, shared)
        self.head = PackedLinear()
        self._layers: list[tuple[Any, PackedLinear]] = []
        for name, layer in _linear_layers(backbone):
            packed = PackedLinear()
            self.backbone.set_submodule(name, packed)
            self._layers.append((layer, packed))

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self, head: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over the weights as they are now, adapters switched on or off, and the output layer's `(V, H)`."""
        self.head.put(head, bias)
        for layer, packed in self._layers:
            base = _base(layer)
            weight = base.weight
            for adapter in _adapters(layer):
                weight = weight + layer.get_delta_weight(adapter)
            packed.put(weight, base.bias)


def can_pack(backbone: nn.Module) -> bool:
    """Return whether a `Decoder` can be made: linear layers in float32 on a CPU with oneDNN, adapters of plain LoRA.

    In bf16 the sum of weight and adapter would be rounded, and what was sampled would not have the log-probability
    that training computes.
    """
    return torch.backends.mkldnn.is_available() and all(
        type(_base(layer)) is nn.Linear
        and (_base(layer).weight.dtype, _base(layer).weight.device.type) == (torch.float32, "cpu")
        and not getattr(layer, "lora_variant", None)
        and not any(getattr(layer, "lora_bias", {}).values())
        for _, layer in _linear_layers(backbone)
    )


def _linear_layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and layer of every linear layer, and of every other adapted one; an adapter's own are left out."""
    inside = "\0"
    for name, layer in backbone.named_modules():
        if name.startswith(inside):
            continue
        if hasattr(layer, "base_layer"):
            inside = f"{name}."
            yield name, layer
        elif isinstance(layer, nn.Linear):
            yield name, layer


def _base(layer: Any) -> Any:
    return getattr(layer, "base_layer", layer)


def _adapters(layer: Any) -> list[str]:
    on = hasattr(layer, "base_layer") and not layer.disable_adapters and not layer.merged
    return list(layer.active_adapters) if on else []
