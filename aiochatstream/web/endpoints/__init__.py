"""Endpoints of the chat API."""
