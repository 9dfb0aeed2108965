"""An application on a real port of this machine, in a thread."""

import contextlib
import socket
import threading
import time

import uvicorn

WAIT_S = 60


def until(what, seconds=WAIT_S):
    """Wait until something holds."""
    patience = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < patience
        time.sleep(0.02)


@contextlib.contextmanager
def on_port(app, force=False, **options):
    """The URL of an application, and its uvicorn server, which ends with the block.

    Args:
        app: of ASGI.
        force: whether it ends at once, whatever is open, and without a word to the application.
        options: of `uvicorn.Config`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free.listen()
        server = uvicorn.Server(uvicorn.Config(app, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            assert thread.is_alive()
            yield f"http://127.0.0.1:{free.getsockname()[1]}", server
        finally:
            server.should_exit = True
            server.force_exit = force
            thread.join(WAIT_S)
            assert not thread.is_alive()
