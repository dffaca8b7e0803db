"""Attention of decoding rows in C++, compiled at the first use for the CPU it runs on.

torch has no kernel for few queries of many rows with different lengths: its kernels compute up to the length of the
longest row and take several times as long as reading the cache from memory.
"""

from __future__ import annotations

import functools
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from aiochatstream.engines.transformers.cpu.compiler import compile_library

SOURCE = Path(__file__).with_name("decode_attention.cpp")
COMPILER_FLAGS = {torch.bfloat16: ["-DBFLOAT16"], torch.float32: []}
"""Flags for each supported dtype."""
BLOCK_SIZE = 16
"""Number of tokens in a block of the KV cache."""
ARGUMENTS = [*[c_void_p] * 11, *[c_int64] * 13, *[c_float] * 2]


class DecodeAttention:
    """Writes new keys and values to the cache, and attends for decoding rows; see decode_attention.cpp.

    It uses the OpenMP threads of torch. Raises OSError if the compiler is missing or fails.

    :param size: head size.
    :param sharing: number of query heads per key-value head.
    """

    def __init__(self, size: int, sharing: int, dtype: torch.dtype) -> None:
        macros = [f"-DSIZE={size}", f"-DSHARING={sharing}", f"-DBLOCK={BLOCK_SIZE}", *COMPILER_FLAGS[dtype]]
        function: Any = compile_library(SOURCE, macros).attend
        function.argtypes, function.restype = ARGUMENTS, None
        self._function = function

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        places: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        tables: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write the keys and values of all tokens, and attend for the first ``len(rows)`` ones.

        :param query: [heads, tokens, head size]
        :param key: and ``value``: [key-value heads, tokens, head size]
        :param keys: and ``values``: the cache, [key-value heads, places, head size].
        :param places: place of each token in the cache; -1 for one that is not written. Padding may follow the tokens.
        :param rows: row of each token that attends.
        :param positions: position in its row of each token.
        :param tables: block tables of all rows, [rows, blocks], int32.
        :param window: maximum number of tokens that a token attends to, including itself; None for all.
        :param sinks: a logit for each head without a value, [heads]; None for none.
        :returns: [tokens that attend, heads, head size]

        Raise TypeError if the dtypes differ.
        """
        if not query.dtype == key.dtype == value.dtype == keys.dtype:
            raise TypeError(
                f"dtypes differ: query {query.dtype}, key {key.dtype}, value {value.dtype}, cache {keys.dtype}"
            )
        query, key, value = (part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value))
        result = query.new_empty(len(rows), query.shape[0], query.shape[2])
        sinks = None if sinks is None else sinks.float().contiguous()
        self._function(
            *(part.data_ptr() for part in (query, key, value, keys, values, result, places, rows, positions, tables)),
            None if sinks is None else sinks.data_ptr(),
            *(
                torch.get_num_threads(),
                len(places),
                len(rows),
                len(key),
                *(stride for part in (query, key, value) for stride in part.stride()[:2]),
            ),
            *(keys.stride(0), tables.stride(0), window or 0, scale, softcap or 0.0),
        )
        return result


decode_attention = functools.cache(DecodeAttention)
