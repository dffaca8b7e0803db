"""Tests of the compiled updates of states, compared with transformers' reference functions."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_5 import modeling_qwen3_5

from aiochatstream.engines.transformers.cpu import compiler, state_updates
from aiochatstream.engines.transformers.cpu.state_updates import UPDATES
from aiochatstream.engines.transformers.mixers import PackedMixer
from aiochatstream.engines.transformers.state_cache import SlotStates
from tests.engines.transformers.engine_harness import concurrent_answers, load_engine
from tests.engines.transformers.tiny_models import HYBRID, STATES, assert_same, reference, some_ids, tiny

pytestmark = pytest.mark.slow

if shutil.which("g++") is None:
    pytest.skip("a C++ compiler is missing: apt-get install g++", allow_module_level=True)

SLOTS = 5
some_slots = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True)
sizes = st.sampled_from([1, 3, 8, 33])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def packed(*parts: torch.Tensor) -> list[torch.Tensor]:
    """Return the parts, [rows, ...], as views of a single tensor, as modules split the results of a layer."""
    joint = torch.cat([part.flatten(1) for part in parts], 1)
    views = torch.split_with_sizes(joint, [part[0].numel() for part in parts], 1)
    return [view.view(part.shape) for view, part in zip(views, parts, strict=True)]


def assert_states(actual: SlotStates, before: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that the states of the rows are the ``expected`` ones, and other slots are as before."""
    all_states = before.clone()
    all_states[actual.slots] = expected
    torch.testing.assert_close(actual.tensor, all_states, atol=1e-5, rtol=1e-4)
    others = [slot for slot in range(SLOTS) if slot not in actual.slots.tolist()]
    assert torch.equal(actual.tensor[others], before[others])


@settings(max_examples=30, deadline=None)
@given(
    slots=some_slots,
    key_heads=st.sampled_from([1, 3]),
    sharing=st.sampled_from([1, 2]),
    key_size=sizes,
    value_size=sizes,
    normalizes=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example([4, 0, 2], 3, 2, 33, 3, True, torch.float32)
@example([1], 1, 1, 8, 8, False, torch.bfloat16)
def test_the_gated_delta_rule_is_that_of_transformers(
    slots: list[int],
    key_heads: int,
    sharing: int,
    key_size: int,
    value_size: int,
    normalizes: bool,
    dtype: torch.dtype,
) -> None:
    rows, heads = len(slots), key_heads * sharing
    states = random(SLOTS, heads, key_size, value_size)
    query, key, value = packed(
        *(random(rows, 1, key_heads, key_size, dtype=dtype) for _ in range(2)),
        random(rows, 1, heads, value_size, dtype=dtype),
    )
    gates, betas = -random(rows, 1, heads).abs(), random(rows, 1, heads, dtype=dtype).sigmoid()
    options: dict[str, Any] = {"g": gates, "beta": betas, "use_qk_l2norm_in_kernel": normalizes}
    options["output_final_state"] = True
    reference_function: Any = modeling_qwen3_5.torch_recurrent_gated_delta_rule
    expected, expected_states = reference_function(query, key, value, initial_state=states[slots], **options)
    location = SlotStates(states.clone(), torch.tensor(slots))
    _, update = UPDATES["torch_recurrent_gated_delta_rule"]
    actual, updated = update(query, key, value, initial_state=location, **options)
    assert updated is location
    assert_states(location, states, expected_states)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=30, deadline=None)
@given(
    slots=some_slots,
    groups=st.sampled_from([1, 3]),
    sharing=st.sampled_from([1, 2]),
    head_size=sizes,
    state_size=sizes,
    softplus=st.booleans(),
    has_options=st.booleans(),
)
@example([4, 0, 2], 3, 2, 3, 33, True, True)
def test_the_selective_state_is_that_of_transformers(
    slots: list[int], groups: int, sharing: int, head_size: int, state_size: int, softplus: bool, has_options: bool
) -> None:
    rows, heads = len(slots), groups * sharing
    states = random(SLOTS, heads, head_size, state_size)
    inputs, *maps, steps = packed(
        random(rows, heads, head_size),
        *(random(rows, groups, state_size) for _ in range(2)),
        random(rows, heads, 1) * 15,
    )
    steps = (steps if softplus else steps.abs()).expand(-1, -1, head_size)
    rates = (-random(heads).abs())[:, None, None].expand(-1, head_size, state_size)
    skips, biases = (random(heads)[:, None].expand(-1, head_size) if has_options else None for _ in range(2))
    gates = random(rows, heads, head_size) if has_options else None
    options: dict[str, Any] = {"z": gates, "dt_bias": biases, "dt_softplus": softplus}
    expected_states = states[slots]
    reference_function: Any = modeling_mamba2.mamba2_selective_state_update
    expected = reference_function(expected_states, inputs, steps, rates, *maps, skips, **options)
    location = SlotStates(states.clone(), torch.tensor(slots))
    _, update = UPDATES["mamba2_selective_state_update"]
    actual = update(location, inputs, steps, rates, *maps, skips, **options)
    assert_states(location, states, expected_states)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    slots=some_slots,
    channels=st.sampled_from([1, 3, 64, 150]),
    size=st.sampled_from([2, 3, 4, 7]),
    more=st.integers(-1, 1),
    has_bias=st.booleans(),
    activation=st.sampled_from([None, "silu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example([4, 0, 2], 150, 4, 0, True, "silu", torch.float32)
@example([4, 0, 2], 150, 3, 0, False, None, torch.bfloat16)
def test_the_convolution_is_that_of_transformers(
    slots: list[int], channels: int, size: int, more: int, has_bias: bool, activation: str | None, dtype: torch.dtype
) -> None:
    states = random(SLOTS, channels, size + more, dtype=dtype)
    inputs, _ = packed(random(len(slots), 1, channels, dtype=dtype), random(len(slots), 2, dtype=dtype))
    weight, bias = random(channels, size, dtype=dtype), random(channels, dtype=dtype) if has_bias else None
    expected_states = states[slots]
    arguments = (weight, bias, activation)
    reference_function: Any = modeling_qwen3_5.causal_conv1d_update
    expected = reference_function(inputs.transpose(1, 2), expected_states, *arguments)
    location = SlotStates(states.clone(), torch.tensor(slots))
    _, update = UPDATES["causal_conv1d_update"]
    actual = update(inputs.transpose(1, 2), location, *arguments)
    assert_states(location, states, expected_states)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_what_the_functions_do_not_support_is_an_error() -> None:
    location = SlotStates(torch.zeros(SLOTS, 2, 2, 2, dtype=torch.float64), torch.tensor([0]))
    conv = UPDATES["causal_conv1d_update"][1]
    selective = UPDATES["mamba2_selective_state_update"][1]
    ones = torch.ones(1, 2, 2)
    with pytest.raises(TypeError, match=r"state torch\.float64"):
        conv(ones, location, ones[0])
    with pytest.raises(TypeError, match=r"must be of float32, not torch\.float64"):
        selective(location, ones, ones[..., :1].expand(-1, -1, 2), torch.ones(2, 1, 1).expand(-1, 2, 2), ones, ones)
    location = SlotStates(torch.zeros(SLOTS, 2, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"^activation: must be silu or None, not 'gelu'\."):
        conv(ones[..., :1], location, ones[0], activation="gelu")
    with pytest.raises(NotImplementedError, match="single channels"):
        selective(location, ones, ones, torch.ones(2, 2, 2), ones, ones)


def updating_mixers(model: Any) -> list[PackedMixer]:
    forwards = [getattr(module.forward, "__self__", None) for module in model.modules()]
    return [mixer for mixer in forwards if isinstance(mixer, PackedMixer) and mixer.updates_in_slots]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Numbers of calls of each function in C++."""
    counts = Counter[str]()
    call = state_updates._call

    def count(name: str, *arguments: Any) -> None:
        counts[name] += 1
        call(name, *arguments)

    monkeypatch.setattr(state_updates, "_call", count)
    return counts


@pytest.mark.parametrize("family", STATES | HYBRID)
def test_engines_update_the_states_of_every_decoding_step(family: str, calls: Counter[str]) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    engine = load_engine(model, slots=3)
    mixers = len(updating_mixers(model))
    assert mixers
    calls.clear()
    prompts = [some_ids(12, seed) for seed in range(2)]
    answers = concurrent_answers(engine, prompts, max_new_tokens=9, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 9))
    recurrent = {"LFM2": (), "Qwen3-Next": ("gated_delta_rule",), "Qwen3.5": ("gated_delta_rule",)}
    names = {"convolve_float32", *recurrent.get(family, ("selective_state_update",))}
    assert calls.keys() == names
    for name in names:  # 8 tokens after the first one, of two answers
        assert 8 * mixers <= calls[name] <= 16 * mixers
        assert calls[name] % mixers == 0
    engine.close()
    assert not updating_mixers(model)


def test_without_a_compiler_torch_updates_the_states(monkeypatch: pytest.MonkeyPatch, calls: Counter[str]) -> None:
    def fail(*arguments: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(state_updates, "_library", fail)
    model = tiny("Qwen3.5", 3)
    plain = copy.deepcopy(model)
    engine = load_engine(model)
    assert engine.batch_obstacle is None
    assert not updating_mixers(model)
    calls.clear()
    ids = some_ids(20)
    (actual,) = concurrent_answers(engine, [ids], max_new_tokens=9, ignore_eos=True)
    assert_same(plain, ids, actual, reference(plain, ids, 9))
    assert not calls
    engine.close()


def test_a_failing_compiler_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="error"):
        compiler.compile_library(state_updates.SOURCE, ["-Dfloat=nothing"])
    monkeypatch.setenv("CXX", "missing-compiler")
    with pytest.raises(OSError, match="missing-compiler"):
        compiler.compile_library(state_updates.SOURCE)
