"""chatstream's samplers, as settings of the built-in sampler."""

from __future__ import annotations


class TokenSamplerHft:
    """The built-in sampler, in the order of transformers: repetition penalty, temperature, top_k, top_p."""


class TokenSamplerIsok:
    """The built-in sampler without top_p: the ``top_p`` of parameters has no effect."""
