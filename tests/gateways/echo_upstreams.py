"""Models that answer with what they got: echo_upstreams.py NAME=PORT ..

A body is read by its length or in chunks, with trailers. The answer is JSON with the name of the
upstream, the model, the length and the SHA-256 of the body, headers of hubrouter and trailers; with
"stream": true it is three events that come apart.
"""

import asyncio
import hashlib
import json
import sys


async def head(reader: asyncio.StreamReader) -> dict[str, str]:
    fields = {}
    while line := (await reader.readline()).strip().decode("latin-1"):
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return fields


async def body_of(
    reader: asyncio.StreamReader, fields: dict[str, str]
) -> tuple[bytes, dict[str, str]]:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", 0))), {}
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts), await head(reader)


def seen(name: str, fields: dict[str, str], body: bytes, trailers: dict[str, str]) -> dict:
    try:
        chat = json.loads(body)
    except ValueError:
        chat = None
    chat = chat if isinstance(chat, dict) else {}
    return {
        "upstream": name,
        "model": chat.get("model"),
        "stream": bool(chat.get("stream")),
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "content-length": fields.get("content-length"),
        "headers": {key: text for key, text in fields.items() if key.startswith("x-")},
        "trailers": trailers,
    }


async def answer(
    name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while (await reader.readline()).strip():
            fields = await head(reader)
            body, trailers = await body_of(reader, fields)
            told = seen(name, fields, body, trailers)
            text = json.dumps(told).encode()
            if told["stream"]:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                    b"transfer-encoding: chunked\r\n\r\n"
                )
                for event in [text, b'{"part": 2}', b"[DONE]"]:
                    event = b"data: " + event + b"\n\n"
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(0.2)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (len(text), text)
                )
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def main() -> None:
    for pair in sys.argv[1:]:
        name, port = pair.split("=")

        def serve(reader, writer, name=name):
            return answer(name, reader, writer)

        await asyncio.start_server(serve, "127.0.0.1", int(port), backlog=1024)
    await asyncio.Event().wait()


asyncio.run(main())
