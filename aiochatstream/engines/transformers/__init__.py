"""The engine of HuggingFace models. No other package imports torch."""

from aiochatstream.extras import requires_extra

with requires_extra("transformers"):
    from aiochatstream.engines.transformers.engine import TransformersEngine
    from aiochatstream.engines.transformers.loading import choose_device, choose_dtype, small_model

__all__ = ["TransformersEngine", "choose_device", "choose_dtype", "small_model"]
