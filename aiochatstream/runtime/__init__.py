"""Turns from the queue to the saved answer, without HTTP."""
