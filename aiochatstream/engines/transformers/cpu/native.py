"""Attention of rows that decode, compiled when it is first needed for the CPU it runs on.

torch has none for few queries of many rows with different lengths: what it offers computes as far as the longest row
goes, and takes several times as long as reading the cache from memory.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import CDLL, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("decode_attention.cpp")
DTYPES = {torch.bfloat16: ["-DBFLOAT16"], torch.float32: []}
"""What it computes, and how the compiler is told."""
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]
"""Sums may be taken in any order; what is no number stays none."""
ARGUMENTS = [*[c_void_p] * 8, *[c_int64] * 13, *[c_float] * 2]


class DecodeAttention:
    """Writes new keys and values into the cache, and attends for rows that decode; see decode_attention.cpp.

    Its threads are torch's: those of the OpenMP that torch has loaded. Raises OSError without a compiler that can.

    :param size: of a head.
    :param sharing: so many query heads share keys and values.
    """

    def __init__(self, size: int, sharing: int, dtype: torch.dtype) -> None:
        self._function = _compiled([f"-DSIZE={size}", f"-DSHARING={sharing}", *DTYPES[dtype]])

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        decoding: int,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """
        :param query: [heads, tokens, head size]
        :param key: and ``value``: [key-value heads, tokens, head size]
        :param keys: and ``values``: the cache, [rows, key-value heads, length, head size].
        :param rows: and ``positions``: where the cache has each token. Others than these may come after them.
        :param decoding: so many tokens attend, the first ones.
        :param window: each sees so many, itself included; None is all.
        :returns: [decoding, heads, head size]

        Raises TypeError where numbers are not all of one kind.
        """
        if not query.dtype == key.dtype == value.dtype == keys.dtype:
            raise TypeError(f"{query.dtype} asks for {key.dtype} and {value.dtype}, and the cache has {keys.dtype}")
        query, key, value = (one if one.stride(2) == 1 else one.contiguous() for one in (query, key, value))
        answer = query.new_empty(decoding, query.shape[0], query.shape[2])
        self._function(
            *(one.data_ptr() for one in (query, key, value, keys, values, answer, rows, positions)),
            *(
                torch.get_num_threads(),
                len(rows),
                decoding,
                len(key),
                *(stride for one in (query, key, value) for stride in one.stride()[:2]),
            ),
            *(*keys.stride()[:2], window or 0, scale, softcap or 0.0),
        )
        return answer


decode_attention = functools.cache(DecodeAttention)


def _compiled(macros: list[str]) -> Callable[..., None]:
    compiler = os.environ.get("CXX") or "g++"
    with tempfile.TemporaryDirectory() as scratch:
        made, library = str(Path(scratch) / "made.o"), str(Path(scratch) / "made.so")
        # linked apart, and so with no OpenMP of its own beside torch's
        for command in (
            [compiler, *FLAGS, *macros, "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", made],
            [compiler, "-shared", made, "-o", library],
        ):
            ran = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
            if ran.returncode:
                raise OSError(ran.stderr.strip().partition("\n")[0] or f"{compiler} failed")
        function: Any = CDLL(library).attend
    function.argtypes, function.restype = ARGUMENTS, None
    typed: Callable[..., None] = function
    return typed
