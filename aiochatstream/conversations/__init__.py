"""Conversations and their stores."""
