"""Tests of prepacked linear layers: their results and the memory of their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from aiochatstream.engines.transformers.cpu.packed_linear import OneDNNWeights, PackedLinear, prepack_linears
from tests.engines.transformers.test_weights import Int8Weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_prepacked_layer_has_the_results_of_the_plain_one(tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    inputs = torch.randn(1, tokens, 48)
    with torch.inference_mode():
        assert torch.allclose(OneDNNWeights([plain]).apply(inputs, 0), plain(inputs), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_dtype_have_the_same_results(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)).to(dtype)
    inputs = torch.randn(1, 3, 32, dtype=dtype)
    with torch.inference_mode():
        expected = model(inputs)
        prepack_linears(model)
        actual = model(inputs)
    assert actual.dtype == dtype
    assert torch.allclose(actual, expected, atol=1e-5 if dtype in (torch.float32, torch.float64) else 0.02)


class LoRALinear(nn.Module):
    """A linear layer with a LoRA adapter, as in PEFT, which reads the dtype of the adapter's weight."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, base_layer.out_features, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(inputs) + self.up(self.down(inputs.to(self.down.weight.dtype)))
        return result


def test_weight_and_bias_of_a_prepacked_layer_can_be_read() -> None:
    torch.manual_seed(0)
    linears = {"q_proj": nn.Linear(16, 16), "k_proj": nn.Linear(16, 8), "v_proj": nn.Linear(16, 8)}
    before = {name: (linear.weight.clone(), linear.bias.clone()) for name, linear in linears.items()}
    model = nn.ModuleDict(linears)
    adapted = LoRALinear(nn.Linear(16, 8))
    inputs = torch.randn(1, 3, 16)
    with torch.inference_mode():
        expected = adapted(inputs)
        assert prepack_linears(model) + prepack_linears(adapted) == 6
        assert torch.allclose(adapted(inputs), expected, atol=1e-5)
    for name, (weight, bias) in before.items():
        layer = model[name]
        assert isinstance(layer, PackedLinear)
        assert layer.bias is not None
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)


def test_only_plain_linear_layers_are_replaced() -> None:
    class Subclass(nn.Linear):
        pass

    nested = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.ModuleDict({"nested": nested, "own": Subclass(8, 8), "norm": nn.LayerNorm(8)})
    assert prepack_linears(model) == 1
    assert isinstance(nested[0], PackedLinear)
    assert type(model["own"]) is Subclass
    assert [name for name, _ in model.named_parameters()] == ["own.weight", "own.bias", "norm.weight", "norm.bias"]


def patched_linear() -> nn.Linear:
    """Return a layer with a forward pass of its own, as compressed-tensors and accelerate's hooks replace it."""
    layer = nn.Linear(8, 8)
    layer.forward = lambda inputs: nn.Linear.forward(layer, inputs) * 2  # type: ignore[method-assign, assignment]
    return layer


def hooked_linear() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    return layer


def packed_linear() -> nn.Linear:
    """Return a layer without a weight, as compressed-tensors packs it into another tensor."""
    layer = nn.Linear(8, 8)
    del layer.weight
    return layer


def subclass_linear() -> nn.Linear:
    """Return a layer whose weight is not a plain tensor, as with torchao."""
    layer = nn.Linear(8, 8, bias=False)
    weight = Int8Weight(torch.ones(8, 8, dtype=torch.int8), torch.ones(8, 1))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize("make", [patched_linear, hooked_linear, packed_linear, subclass_linear])
def test_layers_of_quantisation_libraries_are_not_replaced(make: Callable[[], nn.Linear]) -> None:
    layer = make()
    model = nn.ModuleDict({"q_proj": layer, "k_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 8)})
    assert prepack_linears(model) == 2
    assert model["q_proj"] is layer


def test_an_embedding_keeps_a_shared_weight() -> None:
    embedding, head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embed": embedding, "head": head})
    inputs = torch.randn(2, 8)
    with torch.inference_mode():
        expected = model["head"](inputs)
        assert prepack_linears(model) == 1
        assert torch.allclose(model["head"](inputs), expected, atol=1e-5)
    assert embedding.weight.shape == (16, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_with_the_same_input_are_computed_together(bias: bool) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    plain = {name: nn.Linear(24, size, bias=bias) for name, size in zip(names, (24, 8, 8), strict=True)}
    model = nn.ModuleDict(plain)
    assert prepack_linears(model) == 3
    first, second = torch.randn(1, 3, 24), torch.randn(1, 3, 24)
    with torch.inference_mode():
        for inputs in (first, second, first):
            for name in names:
                assert torch.allclose(model[name](inputs), plain[name](inputs), atol=1e-5)
        for name in (*reversed(names), "k_proj", "q_proj"):  # in any order, with any input
            for inputs in (first, second):
                assert torch.allclose(model[name](inputs), plain[name](inputs), atol=1e-5)
        results = [model[name](first) for name in names]
    assert len({result.untyped_storage().data_ptr() for result in results}) == 1


def test_incompatible_layers_are_computed_separately() -> None:
    model = nn.ModuleDict({"gate_proj": nn.Linear(8, 8, bias=True), "up_proj": nn.Linear(8, 8, bias=False)})
    assert prepack_linears(model) == 2
    inputs = torch.randn(1, 8)
    with torch.inference_mode():
        results = [model[name](inputs) for name in ("gate_proj", "up_proj")]
    assert len({result.untyped_storage().data_ptr() for result in results}) == 2
