"""Raw HTTP for tests of gateways, and what every one of them must do with a chat request."""

import hashlib
import http.client
import json
import socket
import time

BIRD = "Which bird is singing in this recording?"
LETTER = "Translate this letter into Spanish."


def chat(model: str, text: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    # Spaces and an order that no serializer would choose: they must arrive as they are.
    said = {"temperature": 1.0, **more, "model": model, "messages": messages}
    return json.dumps(said, ensure_ascii=False, separators=(" , ", ":  ")).encode()


def renamed(body: bytes, model: str, name: str) -> bytes:
    quoted = [json.dumps(text).encode() for text in (model, name)]
    assert body.count(quoted[0]) == 1
    return body.replace(*quoted)


class Gateway:
    def __init__(self, port: int) -> None:
        self.port = port

    def post(
        self,
        body: bytes | list[bytes],
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
    ) -> tuple[http.client.HTTPResponse, dict]:
        """A list of pieces is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        chunked = isinstance(body, list)
        fields = {"content-type": "application/json", **(headers or {})}
        connection.request(
            "POST", path, iter(body) if chunked else body, fields, encode_chunked=chunked
        )
        response = connection.getresponse()
        text = response.read()
        connection.close()
        assert response.status == 200, (response.status, text[:300])
        return response, json.loads(text)

    def send(self, pieces: list[bytes], pause: float = 0.0, close: bool = False) -> bytes:
        """The pieces as they are, with pauses; then all that comes, or nothing with `close`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            if close:
                return b""
            found = b""
            while part := connection.recv(65536):
                found += part
            return found


def head(body: bytes | None, path: str = "/v1/chat/completions", more: str = "") -> bytes:
    length = "transfer-encoding: chunked" if body is None else f"content-length: {len(body)}"
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"connection: close\r\n{more}{length}\r\n\r\n"
    ).encode()


def arrived(told: dict, body: bytes) -> None:
    """The upstream got exactly this body."""
    assert told["bytes"] == len(body), (told, len(body))
    assert told["sha256"] == hashlib.sha256(body).hexdigest(), told
    if told["content-length"] is not None:
        assert told["content-length"] == str(len(body)), told


def routed(gateway: Gateway, body: bytes | list[bytes], name: str, **more: object) -> dict:
    """`auto` is sent to the upstream `name`, and nothing else of the body changes."""
    response, told = gateway.post(body, **more)
    whole = b"".join(body) if isinstance(body, list) else body
    assert (told["upstream"], told["model"]) == (name, name), told
    arrived(told, renamed(whole, "auto", name))
    assert response.headers["x-hubrouter-model"] == name, response.headers
    return told


def events_come_apart(gateway: Gateway, body: bytes, name: str) -> None:
    """A streamed answer is passed on as it comes."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream"
    events, times = [], []
    while line := response.readline():
        if line.strip():
            events.append(line.strip())
            times.append(time.monotonic())
    connection.close()
    assert [event[:6] for event in events] == [b"data: "] * 3, events
    assert events[1:] == [b'data: {"part": 2}', b"data: [DONE]"], events
    told = json.loads(events[0][6:])
    assert told["upstream"] == name
    arrived(told, renamed(body, "auto", name))
    assert times[2] - times[0] > 0.3, times


def chunks(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def common(gateway: Gateway) -> None:
    """Small and streamed requests of the three APIs, and what must not be touched."""
    for text, name in [(BIRD, "birds"), (LETTER, "letters")]:
        routed(gateway, chat("auto", text), name)
        again = routed(gateway, chat("auto", text), name)
        assert again["headers"]["x-hubrouter-model"] == name
        events_come_apart(gateway, chat("auto", text, stream=True), name)
    said = {"model": "auto", "input": BIRD}
    routed(gateway, json.dumps(said).encode(), "birds", path="/v1/responses")
    said = {"system": "You listen.", "model": "auto", "max_tokens": 9, "messages": [
        {"role": "user", "content": [{"type": "text", "text": BIRD}]}]}
    routed(gateway, json.dumps(said).encode(), "birds", path="/v1/messages?beta=true")
    text = "Übersetze diesen Brief ins Spanische: «¿Qué tal?» 𝄞 日本語"
    odd = chat("auto", text, note='a " \\ quote')
    routed(gateway, odd, gateway.post(odd)[1]["upstream"])
    forged = {"x-hubrouter-model": "birds", "x-hubrouter-reason": "decided"}
    untouched = [
        chat("gpt2", BIRD),
        b'{"messages": []}',
        b'{"model": "auto", "model": "auto", "messages": []}',
        b'{"model": "auto"',
        b"not JSON",
        b"",
    ]
    for body in untouched:
        response, told = gateway.post(body, headers=forged)
        assert told["upstream"] == "letters", told
        assert "x-hubrouter-model" not in told["headers"], told
        assert "x-hubrouter-model" not in response.headers, response.headers
        arrived(told, body)
    _, told = gateway.post(chat("auto", BIRD), path="/v1/embeddings")
    assert told["model"] == "auto"
