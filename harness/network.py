"""Whether a hub can be asked: its own client tries for most of a minute before it says no."""

import os
import socket
from urllib.parse import urlparse

CONNECT_TIMEOUT_S = 3.0


def is_offline() -> bool:
    """Whether the user forbids the Hugging Face hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def reachable(endpoint: str) -> bool:
    """Whether a connection to the URL's host can be opened within CONNECT_TIMEOUT_S."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy can tell
    url = urlparse(endpoint)
    try:
        with socket.create_connection((url.hostname, url.port or 443), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
