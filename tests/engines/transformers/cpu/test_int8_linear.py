"""Tests of linear layers and embeddings in int8."""

from __future__ import annotations

import subprocess
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from aiochatstream.engines.transformers.cpu import int8_linear
from aiochatstream.engines.transformers.cpu.compiler import FLAGS
from aiochatstream.engines.transformers.cpu.int8_linear import Int8Embedding, Int8Rows, Int8Weights, quantize_linears
from aiochatstream.engines.transformers.cpu.packed_linear import PackedLinear
from aiochatstream.engines.transformers.weights import weight_bytes

pytestmark = pytest.mark.slow  # the kernel is compiled

SIZES = [(1, 1), (33, 17), (48, 20), (576, 100), (5000, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def linear_of(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


@torch.inference_mode()
def apply(weights: Int8Weights, inputs: torch.Tensor) -> torch.Tensor:
    return weights.apply(inputs, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_results_are_those_of_the_rounded_weights(size: tuple[int, int], dtype: torch.dtype, tokens: int) -> None:
    linear = linear_of(*size, dtype, bias=tokens > 1)
    weights, inputs = Int8Weights([linear]), torch.randn(1, tokens, size[0])
    bias = 0.0 if linear.bias is None else linear.bias.detach().float()
    expected = inputs @ weights.plain[0].T + bias
    results = apply(weights, inputs)
    assert results.dtype == torch.float32
    limit = min(2**15 - 1, (2**31 - 1) // (127 * size[0]))
    half_step = inputs.abs().amax(-1, keepdim=True) / limit / 2
    bounds = half_step * weights.plain[0].abs().sum(1) + 1e-5 * expected.abs() + 1e-6
    assert ((results - expected).abs() <= bounds * 1.01).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_of_a_token_are_the_same_in_any_step(size: tuple[int, int]) -> None:
    weights, inputs = Int8Weights([linear_of(*size)]), torch.randn(60, size[0])
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


@pytest.mark.parametrize("count", [37, 1050])
def test_rounded_weights_differ_by_half_a_step_at_most(count: int) -> None:
    rows = torch.randn(count, 51) * torch.logspace(-6, 6, count)[:, None]
    rows[3] = 0
    rounded = Int8Rows(rows).take_all()
    assert ((rounded - rows).abs() <= rows.abs().amax(1, keepdim=True) / 127 * 0.5001).all()


@pytest.mark.parametrize(
    "inputs", [torch.zeros(1, 47), torch.zeros(1, 48, dtype=torch.bfloat16), torch.zeros(1, 48).double()]
)
def test_other_inputs_are_an_error(inputs: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"^inputs: must be \[\*, 48\] in float32, not"):
        apply(Int8Weights([linear_of(48, 20)]), inputs)


class ScaledEmbedding(nn.Embedding):
    """An embedding with a scale, like that of Gemma."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * torch.tensor(5.0, dtype=self.weight.dtype)


@pytest.mark.parametrize("embedding_class", [nn.Embedding, ScaledEmbedding])
@pytest.mark.parametrize("shares", [True, False])
def test_a_model_is_converted_with_its_embedding(embedding_class: type[nn.Embedding], shares: bool) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=shares)
    model = LlamaForCausalLM(config).eval()
    model.set_input_embeddings(embedding_class(50, 32))
    model.tie_weights()
    ids = torch.tensor([[0, 7, 49]])
    key_layer: Any = model.model.layers[0].self_attn
    weight, key = model.get_input_embeddings().weight.detach(), key_layer.k_proj.weight.detach()
    with torch.inference_mode():
        expected, before = model(ids).logits, weight_bytes(model)
        assert quantize_linears(model) == 15
        results = model(ids).logits
    assert torch.nn.functional.cosine_similarity(results, expected, dim=-1).min() > 0.998
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, Int8Embedding)
    assert isinstance(head, PackedLinear)
    assert torch.allclose(embedding.weight, weight, atol=0.02)
    assert torch.equal(head.weight, embedding.weight) == shares
    assert torch.allclose(key_layer.k_proj.weight, key, atol=0.01)
    assert weight_bytes(model) < before * 0.33, "weights are there twice, or in float32"


def test_plain_weights_are_freed_during_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(4)])
    weights = [weakref.ref(weight) for name, weight in model.named_parameters() if name.endswith("weight")]
    alive = []
    create = Int8Rows.__init__

    def count_and_create(rows: Int8Rows, numbers: torch.Tensor) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        create(rows, numbers)

    monkeypatch.setattr(Int8Rows, "__init__", count_and_create)
    quantize_linears(model)
    assert alive == [4, 3, 2, 1]


def test_the_rest_of_a_model_becomes_float32() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 8)).to(torch.bfloat16)
    inputs = torch.randn(3, 32)
    with torch.inference_mode():
        expected = model(inputs.to(torch.bfloat16))
        quantize_linears(model)
        results = model(inputs)
    assert results.dtype == torch.float32
    assert torch.allclose(results, expected.float(), atol=0.05)


def test_other_models_and_cpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = nn.ParameterDict({"experts": torch.ones(4, 8, 8), "router": torch.ones(8, 4)})
    with pytest.raises(ValueError, match=r"^quantize: most weights of ModuleDict are not in linear layers\.$"):
        quantize_linears(nn.ModuleDict({"experts": experts, "head": nn.Linear(8, 8)}))
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
        int8_linear.kernel.__wrapped__()


def test_the_code_for_avx512_compiles_without_warnings() -> None:
    flags = [flag for flag in FLAGS if "march" not in flag]
    command = ["g++", *flags, "-march=icelake-server", "-Wall", "-Werror", "-fopenmp", "-S", "-o", "-"]
    code = subprocess.run([*command, str(int8_linear.SOURCE)], capture_output=True, text=True, check=True).stdout
    assert "vpdpwssd" in code
