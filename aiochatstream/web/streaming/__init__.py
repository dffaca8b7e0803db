"""Streamed responses."""
