"""The HTTP layer: endpoints, access control and streaming on aiohttp."""
