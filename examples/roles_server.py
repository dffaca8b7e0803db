"""Roles with a pass phrase and a key: DEVELOPER_PHRASE=... MONITOR_KEY=... python examples/roles_server.py.

A user who types the phrase into the chat gets the role developer for the session. A program without a session sends
the header X-FastSession-Skip: skip, and its key in X-ChatStream-Auth-Header.
"""

import hashlib
import os

import aiohttp_session
from aiohttp import web
from simple_server import model, tokenizer

from aiochatstream import ChatStream, MemoryStorage, hash_phrase

EVERYONE = ["chat_stream", "stop", "clear_context", "history", "set_feedback"]


def roles():
    phrase = hash_phrase(os.environ["DEVELOPER_PHRASE"])
    key = hashlib.sha256(os.environ["MONITOR_KEY"].encode()).hexdigest()
    return {
        "user": {"apis": {"allow": EVERYONE, "auth_method": "nothing", "use_session": True}},
        "developer": {
            "apis": {
                "allow": "all",
                "auth_method": "ui_pass_phrase_scrypt",
                "ui_pass_phrase_scrypt": phrase,
                "use_session": True,
                "enable_dev_tool": True,
            }
        },
        "monitor": {
            "apis": {
                "allow": ["get_load", "get_resource_usage"],
                "auth_method": "header_phrase_sha256",
                "header_phrase_sha256": key,
                "use_session": False,
            }
        },
    }


async def create_app():
    chat_stream = ChatStream(model=model, tokenizer=tokenizer, client_roles=roles())
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
