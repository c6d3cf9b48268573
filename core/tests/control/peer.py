"""A process of its own with a control channel that answers: ``python peer.py HOST PORT``.

Prints its endpoint, then whatever it gets. A frame ``tcp://...|text`` is answered with ``pid:text`` (the first 40
characters) to that endpoint.
Ends when its standard input is closed, so that it never outlives the test.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from kv_core.runtime.control import ControlChannel, Frame


def main() -> None:
    channel = ControlChannel(sys.argv[1], int(sys.argv[2]), None, 1 << 20, logging.getLogger("peer"))
    stop = threading.Event()

    def watch_stdin() -> None:
        sys.stdin.read()
        stop.set()
        channel.wake()

    watcher = threading.Thread(target=watch_stdin)
    watcher.start()
    print(channel.open(), flush=True)
    while not stop.is_set():
        for incoming in channel.poll(10.0):
            if isinstance(incoming, Frame):
                endpoint, _, text = incoming.data.decode().partition("|")
                channel.send(endpoint, f"{os.getpid()}:{text[:40]}".encode())
    channel.close()
    watcher.join()


if __name__ == "__main__":
    main()
