"""Tests of modules with states: how they are found and replaced."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from aiochatstream.engines.transformers.mixers import MixerProbe, PackedMixer
from aiochatstream.engines.transformers.plain_forward import PlainForward
from tests.engines.transformers.engine_harness import answer, load_engine
from tests.engines.transformers.tiny_models import HYBRID, STATES, reference, some_ids, tiny

MIXERS = {
    "Mamba 2": ("Mamba2Mixer", 6),
    "LFM2": ("Lfm2ShortConv", 3),
    "Qwen3-Next": ("Qwen3NextGatedDeltaNet", 4),
    "Qwen3.5": ("Qwen3_5GatedDeltaNet", 4),
    "Granite 4": ("GraniteMoeHybridMambaLayer", 4),
    "Nemotron-H": ("NemotronHMamba2Mixer", 2),
    "Falcon-H1": ("FalconH1Mixer", 6),
    "Bamba": ("BambaMixer", 4),
}
"""Class and number of the modules with states of each family."""


def probe_of(model: Any) -> MixerProbe:
    probe = MixerProbe(model.config)
    with probe.watch(model):
        PlainForward(model)(some_ids(9), probe)
    return probe


@pytest.mark.parametrize("family", STATES | HYBRID)
def test_the_modules_that_use_states_are_found(family: str) -> None:
    probe = probe_of(tiny(family))
    name, count = MIXERS[family]
    assert [type(module).__name__ for module in probe.outputs] == [name] * count
    assert all(output.shape == (1, 9, 32) for output in probe.outputs.values())
    assert probe.obstacle is None


def test_models_without_states_have_no_such_modules_and_no_hooks_remain() -> None:
    model = tiny("Llama", 1)
    probe = probe_of(model)
    assert not probe.outputs
    assert probe.obstacle is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Attention(nn.Module):
    """A module with keys and states."""

    def forward(self, hidden: torch.Tensor, cache: Any) -> torch.Tensor:
        cache.update(hidden[None], hidden[None], 0)
        state: torch.Tensor = cache.update_conv_state(hidden, 0)
        return state


class Splitter(nn.Module):
    """A module with a state and two results."""

    def forward(self, hidden: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cache.update_recurrent_state(hidden, 0)
        return hidden, hidden


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Attention(), "Attention has both keys and states"),
        (Splitter(), "Splitter has a state and several results"),
    ],
)
def test_modules_that_cannot_be_replaced_are_named(module: nn.Module, reason: str) -> None:
    probe = MixerProbe(tiny("Falcon-H1", 1).config)
    with probe.watch(module):
        module(torch.zeros(1, 2, 3), probe)
    assert probe.obstacle == reason


def test_a_removed_replacement_leaves_the_module_as_it_was() -> None:
    model = tiny("LFM2", 2)
    (module, output), *_ = probe_of(model).outputs.items()
    for own in (None, module.forward):
        if own is not None:
            module.forward = own  # as accelerate does
        before = dict(vars(module))
        mixer = PackedMixer(module, output)
        mixer.install()
        assert module.forward != before.get("forward")
        mixer.remove()
        assert vars(module) == before
        mixer.remove()


def test_the_application_can_use_the_model_of_an_engine() -> None:
    model = tiny("Qwen3.5")
    expected = reference(copy.deepcopy(model), some_ids(20))
    engine = load_engine(model)
    assert answer(engine, some_ids(20), ignore_eos=True) == expected
    assert reference(model, some_ids(20)) == expected
    engine.close()
