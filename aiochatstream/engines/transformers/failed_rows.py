"""The search for the rows that cause the error of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.request import Request

Plan = Sequence[tuple[Request, Chunk]]
"""Requests of a forward pass, each with the tokens to compute."""


class FailedRows:
    """Groups of rows whose forward pass failed, to be computed apart from all others.

    A group that fails is divided into halves, so that the rows that fail alone are found in few passes. A group that
    fails only as a whole is computed in halves, and then with all others again.
    """

    def __init__(self) -> None:
        self._groups: list[dict[Request, int]] = []

    def next_group(self) -> list[Request]:
        """Return the requests of the next group that are still to compute the tokens of their failed pass."""
        while self._groups:
            group = [
                request
                for request, end in self._groups[-1].items()
                if not request.finished and request.computed_tokens < end
            ]
            if group:
                return group
            self._groups.pop()
        return []

    def add(self, plan: Plan) -> Request | None:
        """Divide the rows of a failed pass into groups. Return the request of a row that has failed alone.

        A row that had no others in its first failed pass is a group of its own: its error may be transient.
        """
        if len(plan) == 1 and self._groups:
            return plan[0][0]
        middle = len(plan) // 2
        for half in (plan[middle:], plan[:middle]):
            self._groups.append({request: chunk.end for request, chunk in half})
        return None
