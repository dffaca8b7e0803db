"""Linear layers in the CPU's own layout: the same numbers, and no plain weight is left beside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aiochatstream.engines.transformers.cpu.prepacked_linear import PrepackedLinear, PrepackedWeights, prepack_linears


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_packed_layer_computes_what_the_plain_one_does(tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    inputs = torch.randn(1, tokens, 48)
    with torch.inference_mode():
        assert torch.allclose(PrepackedWeights([plain]).apply(inputs, 0), plain(inputs), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_precision_still_answers_and_as_before(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)).to(dtype)
    inputs = torch.randn(1, 3, 32, dtype=dtype)
    with torch.inference_mode():
        before = model(inputs)
        prepack_linears(model)
        after = model(inputs)
    assert after.dtype == dtype
    assert torch.allclose(after, before, atol=1e-5 if dtype in (torch.float32, torch.float64) else 0.02)


class Adapted(nn.Module):
    """A linear layer with a LoRA adapter, as PEFT wraps it: it reads the dtype of the adapter's weight."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base_layer.out_features, bias=False)})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second = self.lora_A["default"], self.lora_B["default"]
        result: torch.Tensor = self.base_layer(inputs)
        return result + second(first(inputs.to(first.weight.dtype)))


def test_layers_around_a_packed_one_may_read_its_weight_and_bias() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(16, 16), "k_proj": nn.Linear(16, 8), "v_proj": nn.Linear(16, 8)})
    before = {name: (one.weight.clone(), one.bias.clone()) for name, one in model.items()}
    adapted = Adapted(nn.Linear(16, 8))
    inputs = torch.randn(1, 3, 16)
    with torch.inference_mode():
        expected = adapted(inputs)
        assert prepack_linears(model) + prepack_linears(adapted) == 6
        assert torch.allclose(adapted(inputs), expected, atol=1e-5)
    for name, (weight, bias) in before.items():
        assert torch.equal(model[name].weight, weight)
        assert torch.equal(model[name].bias, bias)


def test_only_plain_linear_layers_are_replaced_and_their_number_told() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {"deep": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "own": Own(8, 8), "norm": nn.LayerNorm(8)}
    )
    assert prepack_linears(model) == 1
    assert isinstance(model["deep"][0], PrepackedLinear)
    assert type(model["own"]) is Own
    assert [name for name, _ in model.named_parameters()] == ["own.weight", "own.bias", "norm.weight", "norm.bias"]


def test_a_weight_that_an_embedding_shares_stays_with_the_embedding() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False)})
    model["head"].weight = model["embed"].weight
    inputs = torch.randn(2, 8)
    with torch.inference_mode():
        before = model["head"](inputs)
        assert prepack_linears(model) == 1
        assert torch.allclose(model["head"](inputs), before, atol=1e-5)
    assert model["embed"].weight.shape == (16, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_read_the_same_input_are_computed_at_once(bias: bool) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    plain = {name: nn.Linear(24, size, bias=bias) for name, size in zip(names, (24, 8, 8), strict=True)}
    model = nn.ModuleDict(plain)
    assert prepack_linears(model) == 3
    first, second = torch.randn(1, 3, 24), torch.randn(1, 3, 24)
    with torch.inference_mode():
        for inputs in (first, second, first):
            for name in names:
                assert torch.allclose(model[name](inputs), plain[name](inputs), atol=1e-5)
        for name in (*reversed(names), "k_proj", "q_proj"):  # in whichever order, with whichever input
            for inputs in (first, second):
                assert torch.allclose(model[name](inputs), plain[name](inputs), atol=1e-5)
    weights = model["q_proj"]._weights
    assert all(model[name]._weights is weights for name in names)
    with torch.inference_mode():
        latest = [model[name](first).untyped_storage().data_ptr() for name in names]
    assert len(set(latest)) == 1


def test_layers_of_different_kinds_are_packed_each_for_itself() -> None:
    model = nn.ModuleDict({"gate_proj": nn.Linear(8, 8, bias=True), "up_proj": nn.Linear(8, 8, bias=False)})
    assert prepack_linears(model) == 2
    assert model["gate_proj"]._weights is not model["up_proj"]._weights
