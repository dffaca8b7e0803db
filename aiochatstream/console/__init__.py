"""``aiochatstream chat``: talk to a model, or to a running server, in a terminal or through a pipe."""
