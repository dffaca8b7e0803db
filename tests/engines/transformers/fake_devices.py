"""CUDA and MPS devices that a CPU imitates, for tests of placement without a GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from unittest import mock

import pytest
import torch
import torchgen
import yaml  # type: ignore[import-untyped]
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from aiochatstream.engines.transformers import attention

DEVICE_GUARDS = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
C10_REGISTER_GUARD_IMPL(MPS, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS>)
"""
"""Code of a library with which torch indexes fake tensors of devices for which it is not built."""

COMPOSITE_KEYS = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
"""Dispatch keys of kernels for all devices."""

UPLOADS = {getattr(torch.ops.aten, name) for name in ("_to_copy", "to", "copy_", "index", "index_put", "index_put_")}
"""Operations that copy tensors from the host to the device."""

UNSUPPORTED_DTYPES = {"cuda": set[torch.dtype](), "mps": {torch.float64, torch.complex128}}


class FakeDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A device whose tensors exist twice: as torch's fake tensors of this device, and with values on the CPU.

    Each operation runs on both. FakeTensorMode knows the device of each result, and raises an error if an operation
    mixes devices. Dtypes without support on the device, and operations for which torch has no kernel on it, are errors
    as well. Use it as a context manager, in each thread that computes.

    :param kind: "cuda" or "mps".

    waits: operations so far for which the host would wait for the device (on CUDA, also copies from memory that is not
        pinned).
    """

    def __init__(self, kind: Literal["cuda", "mps"]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if shutil.which("g++") is None:
            pytest.skip("a C++ compiler is missing: apt-get install g++")
        _register_device_guards()
        self.device = torch.device(kind, 0)
        self.waits: list[str] = []
        self._fake_mode = FakeTensorMode()
        self._contexts: list[ExitStack] = []

    def __enter__(self) -> Self:
        context = ExitStack()
        patch = mock.patch.object
        context.enter_context(patch(torch.cuda, "_lazy_init", lambda: None))
        context.enter_context(patch(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()))
        context.enter_context(_tensors_start_on_the_cpu())
        context.enter_context(_MPSAttention())
        self._contexts.append(context)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._contexts.pop().close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if not any(isinstance(leaf, FakeTensor) or self._is_device(leaf) for leaf in tree_leaves((args, options))):
            return _compute_on_host(func, args, options)
        if func is torch.ops.prim.device.default:
            return self.device
        if func is torch.ops.aiochatstream.attend.default:
            with self:
                return attention._attend(*args, **options)
        return self._compute(func, args, options)

    def _compute(self, func: Any, args: Any, options: Any) -> Any:
        _require_kernel(func, self.device.type)
        self._record_upload(func, args, options)
        value_args, value_options = tree_map(self._value_of, (args, options))
        values = EMULATIONS.get(func.name(), func)(*value_args, **value_options)
        fake_args, fake_options = tree_map(self._fake_of, (args, options))
        try:
            with self._fake_mode:
                fakes = func(*fake_args, **fake_options)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.waits.append(func.name())
            fakes = tree_map(self._new_fake, values)
        return tree_map(functools.partial(self._join, func.name()), fakes, values)

    def _record_upload(self, func: Any, args: Any, options: Any) -> None:
        """Record a wait for an operation that copies tensors from memory that is not pinned."""
        sources = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"]
        if self.device.type != "cuda" or not sources or func.overloadpacket not in UPLOADS:
            return
        names = [argument.name for argument in func._schema.arguments]
        asynchronous = (dict(zip(names, args, strict=False)) | options).get("non_blocking", False)
        if not asynchronous or not all(getattr(source, "pinned", False) for source in sources):
            self.waits.append(f"{func.name()} from the host")

    def _value_of(self, leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return value_of(leaf)
        return torch.device("cpu") if self._is_device(leaf) else leaf

    def _is_device(self, leaf: Any) -> bool:
        return isinstance(leaf, torch.device) and leaf.type == self.device.type

    def _fake_of(self, leaf: Any) -> Any:
        is_on_host = isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)
        return self._fake_mode.from_tensor(leaf) if is_on_host else leaf

    def _new_fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        with self._fake_mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=self.device)

    def _join(self, name: str, fake: Any, value: Any) -> Any:
        """Return a result: its fake tensor with its value, or on the CPU the value."""
        if not isinstance(fake, torch.Tensor):
            return value
        if fake.device.type == "cpu":
            self.waits.append(f"{name} to the host")
            return value
        if fake.dtype in UNSUPPORTED_DTYPES[self.device.type]:
            raise TypeError(f"{self.device.type} does not support {fake.dtype} ({name})")
        assert (fake.shape, fake.dtype) == (value.shape, value.dtype), name
        if not hasattr(fake, "value"):  # results of operations in place have theirs already
            fake.value = value  # type: ignore[attr-defined]
        return fake


class _MPSAttention(TorchFunctionMode):
    """Calls torch's attention for MPS, which torch itself does only if it is built for MPS."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].device.type == "mps":
            return torch.ops.aten._scaled_dot_product_attention_math_for_mps(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def value_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the value of a tensor of a :class:`FakeDevice`, on the CPU."""
    value: torch.Tensor = tensor.value  # type: ignore[attr-defined]
    return value


def _compute_on_host(func: Any, args: Any, options: Any) -> Any:
    """Compute on the CPU, with memory that is only marked as pinned."""
    pinned = options.pop("pin_memory", None)
    result = func(*args, **options)
    if pinned:
        result.pinned = True
    return result


@contextmanager
def _tensors_start_on_the_cpu() -> Iterator[None]:
    """Let ``torch.tensor`` create tensors on the CPU and then copy them by an operation, which a mode can see."""
    internals: Any = torch._C
    before = internals._only_lift_cpu_tensors()
    internals._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        internals._set_only_lift_cpu_tensors(before)


@functools.cache
def _register_device_guards() -> None:
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "guards.cpp", Path(scratch) / "guards.so"
        source.write_text(DEVICE_GUARDS)
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}"]
        command = ["g++", *options, str(source), "-o", str(library), f"-L{root / 'lib'}", "-lc10"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(library))


@functools.cache
def _require_kernel(func: Any, kind: str) -> None:
    """Raise NotImplementedError if torch has no kernel of ``func`` for a device."""
    namespace, _, name = func.name().partition("::")
    if namespace != "aten":
        return
    kernels = _kernels()[name]
    if not kernels & {*COMPOSITE_KEYS, kind.upper()}:
        raise NotImplementedError(f"{name} has no kernel for {kind}")


@functools.cache
def _kernels() -> dict[str, set[str]]:
    """Return the dispatch keys of all operations, by torch's list of its kernels."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.load(path.read_text(), yaml.CSafeLoader)}

    def keys(entry: dict[str, Any]) -> set[str]:
        delegate = entries.get(entry.get("structured_delegate", ""))
        own = {key.strip() for names in entry.get("dispatch", ()) for key in names.split(",")}
        own |= {"CPU", "CUDA"} if "ufunc_inner_loop" in entry else set()
        if delegate is not None:
            return own | keys(delegate)
        return own if "dispatch" in entry else {"CompositeImplicitAutograd"}

    return {name: keys(entry) for name, entry in entries.items()}


def _attend_on_mps(*tensors: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of the operation's results. The second one, the weights, is not used."""
    query, key = tensors[:2]
    result = torch.nn.functional.scaled_dot_product_attention(*tensors, **options)
    return result, query.new_empty(*query.shape[:-1], key.shape[-2])


def _attend_by_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    max_queries: int,
    max_keys: int,
    is_causal: bool,
    scale: float,
    window: tuple[int, int],
    enable_gqa: bool,
    lengths: torch.Tensor,
    tables: torch.Tensor,
    num_splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the values of torch's FlashAttention with block tables, [tokens, heads, head size], and of its sums.

    Arguments that FlashAttention does not support are errors.
    """
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query.shape[2] in range(8, 257, 8)
    assert key.shape[1] % 256 == 0
    assert query.stride(2) == key.stride(3) == value.stride(3) == 1
    assert {part.dtype for part in (query_offsets, key_offsets, lengths, tables)} == {torch.int32}
    assert tables.is_contiguous()
    assert enable_gqa
    assert (is_causal, window[1]) == (window[0] < 0, 0)
    result, sums = torch.zeros_like(query), torch.zeros(query.shape[1], len(query))
    for row, length in enumerate(lengths.tolist()):
        start, stop = query_offsets[row : row + 2].tolist()
        assert stop - start <= max_queries
        assert length <= min(max_keys, tables.shape[1] * key.shape[1])
        assert length == key_offsets[row + 1] - key_offsets[row]
        keys, values = (
            part[tables[row].long()]
            .flatten(0, 1)[:length]
            .float()
            .repeat_interleave(query.shape[1] // part.shape[2], 1)
            for part in (key, value)
        )
        scores = torch.einsum("qhs,khs->hqk", query[start:stop].float(), keys) * scale
        ends = torch.arange(length - (stop - start), length)[:, None]
        positions = torch.arange(length)
        hidden = positions > ends
        if window[0] >= 0:
            hidden |= positions < ends - window[0]
        scores = scores.masked_fill(hidden, -torch.inf)
        result[start:stop] = torch.einsum("hqk,khs->qhs", scores.softmax(-1), values).to(query.dtype)
        sums[:, start:stop] = scores.logsumexp(-1)
    return result, sums, torch.zeros(2, dtype=torch.uint64)


EMULATIONS: dict[str, Callable[..., Any]] = {
    "torch_attn::_varlen_attn": _attend_by_blocks,
    "aten::_scaled_dot_product_attention_math_for_mps": _attend_on_mps,
}
"""Functions for the values of operations that have no kernel for a CPU, by the operation's name."""
