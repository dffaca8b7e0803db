"""``aiochatstream chat``: chat with a model or a running server, in a terminal or through a pipe."""
