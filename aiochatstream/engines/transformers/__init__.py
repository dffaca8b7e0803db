"""Answers from a HuggingFace model. The only room that imports torch."""

from aiochatstream.engines.transformers.engine import TransformersEngine
from aiochatstream.engines.transformers.loading import small_model

__all__ = ["TransformersEngine", "small_model"]
