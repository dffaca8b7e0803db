"""States of recurrent layers and convolutions, which have a fixed size and change with every token.

Examples are the layers of Mamba and linear attention. Unlike keys and values, a state cannot be shortened: it belongs
to exactly the tokens that were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.device import device_tensor, lazy_zeros

StateKey = tuple[str, int, int]
"""Kind of a state, "conv" or "recurrent", its layer, and its number in the layer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy of a row's states after its first ``tokens`` tokens."""

    slot: int
    tokens: int


class StateCache:
    """States of all rows, allocated once and written in place, and snapshots of them.

    Each state has a tensor [slots, ...]: one slot for each row, then those of the snapshots.

    :param like: states of one sequence, [1, ...], for shapes, dtypes and device; empty for a model without states.
    :param snapshots: maximum number of snapshots.
    """

    def __init__(self, like: Mapping[StateKey, torch.Tensor], rows: int, snapshots: int = 0) -> None:
        self.tensors = {key: lazy_zeros(state, rows + snapshots, *state.shape[1:]) for key, state in like.items()}
        self._tokens = [0] * rows
        self._free = list(range(rows, rows + snapshots))

    def __bool__(self) -> bool:
        """Return True if the model has states."""
        return bool(self.tensors)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, row: int) -> Snapshot | None:
        """Copy the states of a row; return None if no snapshot is free or the row has no tokens."""
        if not self._free or not self._tokens[row]:
            return None
        snapshot = Snapshot(self._free[-1], self._tokens[row])
        self._copy(row, snapshot.slot)
        self._free.pop()
        return snapshot

    def load(self, snapshot: Snapshot, row: int) -> None:
        """Replace the states of a row by those of a snapshot. The row continues at position ``snapshot.tokens``."""
        self._copy(snapshot.slot, row)
        self._tokens[row] = snapshot.tokens

    def free(self, snapshot: Snapshot) -> None:
        """Make the slot of a snapshot, which was not freed before, available to later ones."""
        self._free.append(snapshot.slot)

    @contextmanager
    def advance(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Compute the chunks of a step. Rows start with zeros at position 0; after an error they must do so.

        Raise ValueError if a chunk does not follow the tokens of its row.
        """
        for chunk in chunks if self.tensors else ():
            if chunk.start not in (0, self._tokens[chunk.row]):
                tokens = self._tokens[chunk.row]
                raise ValueError(f"row {chunk.row}: the states are those of {tokens} tokens, not of {chunk.start}.")
            self._tokens[chunk.row] = 0
            if chunk.start == 0:
                for tensor in self.tensors.values():
                    tensor[chunk.row] = 0
        yield
        for chunk in chunks:
            self._tokens[chunk.row] = chunk.end

    def _copy(self, source: int, target: int) -> None:
        for tensor in self.tensors.values():
            tensor[target] = tensor[source]


@dataclass(frozen=True, slots=True, eq=False)
class SlotStates:
    """States of some rows in the tensor of all, for functions that update them there.

    tensor: [slots, ...].
    slots: slot of each row, in host memory.
    """

    tensor: torch.Tensor
    slots: torch.Tensor


class RowStates:
    """The part of transformers' cache that modules with states use, for the rows of one call.

    :param rows: neighbouring rows, whose states are changed in place, or any rows, whose states are copied until
        :meth:`write`.
    :param numbers: the rows.
    """

    def __init__(
        self, tensors: Mapping[StateKey, torch.Tensor], rows: slice | torch.Tensor, numbers: Sequence[int] = ()
    ) -> None:
        self._tensors, self._rows, self._numbers = tensors, rows, numbers
        self._states: dict[StateKey, torch.Tensor] = {}
        self.kinds_in_slots: Container[str] = ()
        """Kinds of states that are returned as :class:`SlotStates`."""

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Any:
        """Return the latest inputs of a convolution, [rows, channels, kernel size]."""
        return self._find("conv", layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Any:
        """Return a recurrent state, [rows, ...]."""
        return self._find("recurrent", layer_idx, state_idx)

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> torch.Tensor:
        """Append inputs of a convolution to the latest ones, and return all of them."""
        state = self._state("conv", layer_idx, state_idx)
        inputs = torch.cat([state, conv_states], dim=-1)
        state.copy_(inputs[..., -state.shape[-1] :])
        return inputs

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor | SlotStates, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> torch.Tensor | SlotStates:
        """Replace a recurrent state, unless it was updated in its slots."""
        if isinstance(recurrent_states, SlotStates):
            return recurrent_states
        return self._state("recurrent", layer_idx, state_idx).copy_(recurrent_states)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Return True: new rows have zeros."""
        return True

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return False: states are never taken back."""
        return False

    def write(self) -> None:
        """Write copied states back."""
        if not isinstance(self._rows, slice):
            for key, state in self._states.items():
                self._tensors[key].index_copy_(0, self._rows, state)

    def _find(self, kind: str, layer: int, number: int) -> torch.Tensor | SlotStates:
        if kind in self.kinds_in_slots:
            return SlotStates(self._tensors[kind, layer, number], torch.tensor(self._numbers))
        return self._state(kind, layer, number)

    def _state(self, *key: Any) -> torch.Tensor:
        if key not in self._states:
            self._states[key] = self._tensors[key][self._rows]
        return self._states[key]


Mixer = Callable[[torch.Tensor, RowStates], torch.Tensor]
"""Function of hidden states, [rows, tokens of each row, size], and of the rows' states."""


class StepStates:
    """States of one step: of its decoding rows together, and of each longer chunk.

    :param chunks: as of a :class:`PackedStep`, those of a single token first.
    """

    def __init__(self, cache: StateCache, chunks: Sequence[Chunk], device: torch.device) -> None:
        self._cache, self._chunks, self._device = cache, chunks, device
        self._singles = [chunk.row for chunk in chunks if len(chunk.ids) == 1]
        self._rows = self._decoding_rows() if cache else slice(0)

    def advance(self) -> Any:
        """Return the context in which the step is computed; see :meth:`StateCache.advance`."""
        return self._cache.advance(self._chunks)

    def mix(self, mixer: Mixer, hidden: torch.Tensor) -> torch.Tensor:
        """Call a module with states for each group of rows, and return its results for all tokens.

        :param hidden: [1, tokens, size]; padding may follow the step's tokens.
        """
        results = []
        if end := len(self._singles):
            results.append(self._call(mixer, hidden[0, :end, None], self._rows, self._singles)[None, :, 0])
        for chunk in self._chunks[end:]:
            start, end = end, end + len(chunk.ids)
            results.append(self._call(mixer, hidden[:, start:end], slice(chunk.row, chunk.row + 1)))
        if padding := hidden.shape[1] - end:
            results.append(results[0].new_zeros(1, padding, results[0].shape[2]))
        return torch.cat(results, dim=1) if len(results) > 1 else results[0].contiguous()

    def _call(
        self, mixer: Mixer, hidden: torch.Tensor, rows: slice | torch.Tensor, numbers: Sequence[int] = ()
    ) -> torch.Tensor:
        states = RowStates(self._cache.tensors, rows, numbers)
        result = mixer(hidden, states)
        states.write()
        return result

    def _decoding_rows(self) -> slice | torch.Tensor:
        """Return the decoding rows, as a slice if they are neighbours."""
        rows = self._singles
        if rows and rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return device_tensor(rows, self._device)
