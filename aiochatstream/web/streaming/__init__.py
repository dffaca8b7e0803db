"""Streamed responses, their wire formats, and clients that disconnect."""
