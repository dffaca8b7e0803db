"""Tests of linear layers and embeddings in int8."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
from torch import nn

from aiochatstream.engines.transformers.cpu import int8_linear
from aiochatstream.engines.transformers.cpu.compiler import FLAGS
from aiochatstream.engines.transformers.cpu.int8_linear import Int8Embedding, Int8Rows, Int8Weights, quantize_linears
from aiochatstream.engines.transformers.cpu.packed_linear import PackedLinear
from aiochatstream.engines.transformers.weights import weight_bytes

pytestmark = pytest.mark.slow  # the kernel is compiled

SIZES = [(1, 1), (33, 17), (48, 20), (576, 100), (5000, 16)]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def linear_of(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


@torch.inference_mode()
def apply(weights: Int8Weights, inputs: torch.Tensor) -> torch.Tensor:
    return weights.apply(inputs, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_results_are_those_of_the_rounded_weights(size: tuple[int, int], dtype: torch.dtype, tokens: int) -> None:
    linear = linear_of(*size, dtype, bias=tokens > 1)
    weights, inputs = Int8Weights([linear]), torch.randn(1, tokens, size[0]).to(dtype)
    bias = 0.0 if linear.bias is None else linear.bias.detach().float()
    rounded = Int8Rows(linear.weight.detach()).take(torch.arange(size[1]), torch.float32)
    expected = inputs.float() @ rounded.T + bias
    results = apply(weights, inputs)
    assert results.dtype == dtype
    limit = min(2**15 - 1, (2**31 - 1) // (127 * size[0]))
    half_step = inputs.float().abs().amax(-1, keepdim=True) / limit / 2
    bounds = half_step * rounded.abs().sum(1) + TOLERANCES[dtype] * expected.abs() + 1e-6
    assert ((results.float() - expected).abs() <= bounds * 1.01).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_results_of_a_token_are_the_same_in_any_step(size: tuple[int, int], dtype: torch.dtype) -> None:
    weights, inputs = Int8Weights([linear_of(*size, dtype)]), torch.randn(60, size[0]).to(dtype)
    together = apply(weights, inputs)
    assert torch.equal(torch.cat([apply(weights, token) for token in inputs[:, None]]), together)
    assert torch.equal(apply(weights, inputs[7:20]), together[7:20])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_inputs_that_are_not_finite_make_the_results_of_their_token_nan(value: float) -> None:
    weights, inputs = Int8Weights([linear_of(48, 20)]), torch.randn(3, 48)
    expected = apply(weights, inputs)
    inputs[1, 40] = value
    results = apply(weights, inputs)
    assert results[1].isnan().all()
    assert torch.equal(results[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("value", [0.0, 1e-38])
def test_inputs_close_to_0_leave_the_bias(value: float) -> None:
    linear = linear_of(48, 20)
    assert torch.allclose(apply(Int8Weights([linear]), torch.full((1, 48), value)), linear.bias.detach()[None])


def test_a_large_input_does_not_hide_the_others() -> None:
    weights, inputs = Int8Weights([linear_of(576, 64, bias=False)]), torch.randn(1, 576)
    inputs[0, 5] = 200.0  # models have such channels
    exact = inputs @ weights.plain[0].T
    others = inputs.clone()
    others[0, 5] = 0.0
    assert (apply(weights, inputs) - exact).abs().max() < 0.01 * (others @ weights.plain[0].T).abs().mean()


def test_rounded_weights_differ_by_half_a_step_at_most() -> None:
    rows = torch.randn(37, 51) * torch.logspace(-6, 6, 37)[:, None]
    rows[3] = 0
    rounded = Int8Rows(rows).take(torch.arange(37), torch.float32)
    assert ((rounded - rows).abs() <= rows.abs().amax(1, keepdim=True) / 127 * 0.5001).all()


@pytest.mark.parametrize(
    "inputs", [torch.zeros(1, 47), torch.zeros(1, 48, dtype=torch.bfloat16), torch.zeros(1, 48).double()]
)
def test_other_inputs_are_an_error(inputs: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"^inputs: must be \[\*, 48\] in torch.float32, not"):
        apply(Int8Weights([linear_of(48, 20)]), inputs)


class TiedModel(nn.Module):
    """An embedding and an output layer that share their weight, and layers with the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, size) for size in (32, 16, 16))
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        logits: torch.Tensor = self.head(query + torch.cat((key, value), -1))
        return logits


def test_a_model_is_converted_with_a_shared_embedding() -> None:
    torch.manual_seed(0)
    model, ids = TiedModel(), torch.tensor([[0, 7, 49]])
    weight, key = model.embedding.weight.detach(), model.k_proj.weight.detach()
    with torch.inference_mode():
        expected, before = model(ids), weight_bytes(model)
        assert quantize_linears(model) == 4
        results = model(ids)
    assert isinstance(model.embedding, Int8Embedding)
    assert isinstance(model.head, PackedLinear)
    assert torch.nn.functional.cosine_similarity(results, expected, dim=-1).min() > 0.999
    assert torch.allclose(model.embedding.weight, weight, atol=0.02)
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert torch.allclose(model.k_proj.weight, key, atol=0.01)
    assert weight_bytes(model) < before * 0.45, "the embedding's weights are there twice"
    assert not list(model.parameters())


def test_an_embedding_of_its_own_remains() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(16, 8), "head": nn.Linear(8, 16)})
    assert quantize_linears(model) == 1
    assert type(model["embedding"]) is nn.Embedding


def test_other_models_and_cpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^quantize: int8 requires a model in float32 or bfloat16, not float16\.$"):
        quantize_linears(nn.Linear(8, 8, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"^quantize: int8 requires a model on a CPU, not on meta\.$"):
        quantize_linears(nn.Linear(8, 8, device="meta"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ValueError, match=r"^quantize: int8 requires an x86 CPU with AVX2"):
        quantize_linears(nn.Linear(8, 8))


def test_a_kernel_with_wrong_results_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongLibrary:
        @staticmethod
        def linear(*arguments: Any) -> None:
            """Compute nothing."""

    monkeypatch.setattr(int8_linear, "compile_library", lambda *_: WrongLibrary)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    with pytest.raises(RuntimeError, match=r"^quantize: .* wrong results"):
        int8_linear.kernel.__wrapped__(torch.float32)


@pytest.mark.parametrize("macros", int8_linear.MACROS.values(), ids=str)
def test_the_code_for_avx512_compiles_without_warnings(macros: list[str]) -> None:
    flags = [flag for flag in FLAGS if "march" not in flag]
    command = ["g++", *flags, *macros, "-march=icelake-server", "-Wall", "-Werror", "-fopenmp", "-S", "-o", "-"]
    code = subprocess.run([*command, str(int8_linear.SOURCE)], capture_output=True, text=True, check=True).stdout
    assert "vpdpwssd" in code
