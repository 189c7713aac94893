"""The page of a tiny model, served by a thread of this process."""

import contextlib
import threading
from collections.abc import Iterator

from scalear.app.playground import Playground
from scalear.app.server import PageServer


@contextlib.contextmanager
def served(playground: Playground) -> Iterator[PageServer]:
    with PageServer(0) as server:
        server.playground = playground
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
