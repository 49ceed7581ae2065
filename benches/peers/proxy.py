"""What a client of a server on loopback gets, with `proxy` or without: run in a sandbox and on this machine."""

import socket
import time


def connect(server, proxy, tunnel):
    """A connection to the server, and what a plain request's target begins with."""
    connection = socket.create_connection(proxy or server)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not proxy:
        return connection, ""
    name = "%s:%d" % server
    if not tunnel:
        return connection, "http://" + name
    connection.sendall(f"CONNECT {name} HTTP/1.1\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 200 "), head
    return connection, ""


def ask(connection, target, buffer):
    """Sends a request and reads to the end of the response. Gives its length."""
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    received = 0
    while count := connection.recv_into(buffer):
        received += count
    return received


def download(server, proxy, length):
    """Seconds for so many bytes through a tunnel that is open."""
    connection, _ = connect(server, proxy, True)
    buffer = bytearray(1 << 18)
    began = time.perf_counter()
    received = ask(connection, f"/{length}", buffer)
    seconds = time.perf_counter() - began
    assert received >= length, received
    return seconds


def requests(server, proxy, count):
    """Seconds of each request, from the connection to the end of the response."""
    seconds, buffer = [], bytearray(1 << 16)
    for _ in range(count):
        began = time.perf_counter()
        connection, start = connect(server, proxy, False)
        assert ask(connection, start + "/100", buffer) >= 100
        seconds.append(time.perf_counter() - began)
        connection.close()
    return seconds
