"""The port that the page listens on."""

import socket

HOST = "127.0.0.1"
FIRST, LAST = 7860, 7959


def free_port(port: int | None = None) -> int:
    """The given port if nothing listens on it, or the first free one from 7860 on.

    Raises:
        ValueError: the port is no port number, taken, or not allowed to this user; or none of the hundred is free.
    """
    if port is None:
        for candidate in range(FIRST, LAST + 1):
            if _problem(candidate) is None:
                return candidate
        raise ValueError(f"all ports from {FIRST} to {LAST} are in use; give another one with --port")
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}; allowed: 1 to 65535")
    if problem := _problem(port):
        raise ValueError(f"{problem}; give another one with --port, or leave it out to get the first free one")
    return port


def _problem(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        # As servers do, so that a port whose last connections are still being closed counts as free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except PermissionError:
            return f"port {port} is not allowed to this user"
        except OSError:
            return f"port {port} is in use by another program"
    return None
