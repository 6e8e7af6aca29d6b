"""A real Chroma server on loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def chroma_server(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Yields its port and its process; skips the test where the server cannot be started."""
    executable = Path(sys.executable).with_name("chroma")
    if not executable.exists():
        pytest.skip("no `chroma` command beside this Python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(executable), "run", "--host", "127.0.0.1", "--port", str(port), "--path", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None:
                pytest.skip(f"`chroma run` ended with {process.returncode}")
            time.sleep(0.1)
        else:
            pytest.skip("`chroma run` did not listen within 30 seconds")
        yield port, process
    finally:
        process.kill()
        process.wait()
