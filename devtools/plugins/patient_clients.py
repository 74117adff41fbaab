"""A pytest plugin for ComfyUI's tests: their clients wait for a server that is still starting, on slow machines too.

They give up after 20 seconds by themselves.
"""

import functools
import http.client
import time

import websocket

PATIENCE = 120  # seconds


def _patient(connect):
    @functools.wraps(connect)
    def connect_patiently(*args, **kwargs):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return connect(*args, **kwargs)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    return connect_patiently


def pytest_configure():
    http.client.HTTPConnection.connect = _patient(http.client.HTTPConnection.connect)
    websocket.WebSocket.connect = _patient(websocket.WebSocket.connect)
