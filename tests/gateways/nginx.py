"""What nginx with hubrouter must do: nginx.py PORT."""

import sys

from chat_client import BIRD, LETTER, Gateway, arrived, chat, chunks, common, routed

gateway = Gateway(int(sys.argv[1]))
common(gateway)
print("plain and streamed requests, three APIs, what must not be touched")

body = chat("auto", f"{LETTER} «Ñandú» 𝄞")
name = gateway.post(body)[1]["upstream"]
for size in [1, 50]:
    routed(gateway, chunks(body, size), name)
print("chunks, split characters")

# Beyond client_body_buffer_size nginx keeps a body in a file.
routed(gateway, chat("auto", LETTER + " And so on." * 240_000), "letters")
print("a body of 2.6 MB")

body = b'{"model": "auto", "messages": [{"role": "user", "content": 3}]}'
_, told = gateway.post(body)
assert told["headers"]["x-hubrouter-reason"] == "failed", told
arrived(told, body.replace(b'"auto"', b'"letters"'))
_, told = gateway.post(chat("auto", BIRD), path="/v1/embeddings")
assert (told["upstream"], told["model"]) == ("letters", "auto")
print("the fallback")
