from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from agents.lora import LoRALinear, make_lean


def layers(bias: bool = True, dtype: torch.dtype = torch.float32, **config) -> tuple[Linear, Linear]:
    """Return PEFT's layer and the lean one, with the same weights and an adapter that does something."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10, bias=bias, dtype=dtype))
    peft = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["0"], **config))
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    lean = copy.deepcopy(peft)
    make_lean(lean)
    return peft.base_model.model[0], lean.base_model.model[0]


def run(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the layer's output and all gradients of a loss on it."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # of dropout
    out = layer(x)
    layer.zero_grad()
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out, x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


def check_equal(peft: Linear, lean: Linear, x: torch.Tensor) -> None:
    expected, got = run(peft, x), run(lean, x)
    assert len(expected) == len(got) >= 2
    for wanted, value in zip(expected, got, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 6), (2, 0, 6)])
def test_it_computes_what_pefts_layer_computes(shape, bias) -> None:
    peft, lean = layers(bias)
    assert type(lean) is LoRALinear
    check_equal(peft, lean, torch.randn(shape))


def test_an_input_that_is_no_block_of_memory_is_fine() -> None:
    check_equal(*layers(), torch.randn(2, 6, 5).transpose(1, 2))


def test_only_what_was_asked_gets_a_gradient() -> None:
    _, lean = layers()
    out = lean(torch.randn(4, 6))
    out.sum().backward()
    assert {name for name, p in lean.named_parameters() if p.grad is not None} == {
        "lora_A.default.weight",
        "lora_B.default.weight",
    }


@pytest.mark.parametrize(
    "config",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}, {"use_rslora": True}],
    ids=lambda config: next(iter(config)),
)
def test_other_kinds_of_adapters_stay_what_they_are(config) -> None:
    peft, lean = layers(**config)
    check_equal(peft.train(), lean.train(), torch.randn(4, 6))


def test_a_base_of_another_dtype_stays_what_it_is() -> None:
    peft, lean = layers(dtype=torch.bfloat16)
    assert lean.lora_A["default"].weight.dtype == torch.float32
    check_equal(peft, lean, torch.randn(4, 6, dtype=torch.bfloat16))


def test_adapters_that_are_off_merged_or_several() -> None:
    peft, lean = layers()
    x = torch.randn(4, 6)
    for layer in (peft, lean):
        layer.enable_adapters(False)
    torch.testing.assert_close(lean(x), lean.base_layer(x))
    for layer in (peft, lean):
        layer.enable_adapters(True)
        layer.merge()
    torch.testing.assert_close(lean(x), peft(x))
    for layer in (peft, lean):
        layer.unmerge()
        torch.manual_seed(3)
        layer.update_layer("other", 2, 4, config=LoraConfig(r=2, init_lora_weights=False))
        layer.set_adapter(["default", "other"])
    check_equal(peft, lean, x)
