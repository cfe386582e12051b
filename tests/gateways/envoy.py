"""What Envoy with hubrouter must do: envoy.py PORT ADMIN_PORT."""

import json
import sys
import threading
import time
import urllib.request

from chat_client import BIRD, LETTER, Gateway, arrived, chat, chunks, common, head, routed

gateway = Gateway(int(sys.argv[1]))
admin = f"http://127.0.0.1:{sys.argv[2]}"

common(gateway)
print("plain and streamed requests, three APIs, what must not be touched")


def told_by(answer: bytes) -> dict:
    top, _, body = answer.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200"), answer[:500]
    if b"transfer-encoding: chunked" in top.lower():
        _, _, body = body.partition(b"\r\n")
        body = body.rpartition(b"\r\n0\r\n")[0]
    return json.loads(body)


# The body in pieces that split characters, in chunks and by its length.
body = chat("auto", f"{LETTER} «Ñandú» 𝄞")
name = gateway.post(body)[1]["upstream"]
renamed_body = body.replace(b'"auto"', json.dumps(name).encode())
for size in [1, 3, 50]:
    routed(gateway, chunks(body, size), name)
slow = told_by(gateway.send([head(body), *chunks(body, 5)], pause=0.002))
assert slow["upstream"] == name
arrived(slow, renamed_body)
print("chunks, split characters")

# Trailers, behind a body that is new and behind one that the cache has.
for text in [f"{BIRD} It is morning.", f"{BIRD} It is morning."]:
    body = chat("auto", text)
    framed = [b"%x\r\n%b\r\n" % (len(part), part) for part in chunks(body, 40)]
    told = told_by(gateway.send([head(None), *framed, b"0\r\nx-check: 17\r\n\r\n"]))
    assert (told["upstream"], told["trailers"]) == ("birds", {"x-check": "17"}), told
    arrived(told, body.replace(b'"auto"', b'"birds"'))
print("trailers")

# Larger than Envoy holds by itself, and larger than the filter does.
text = LETTER + " And so on." * 60_000
for _ in range(2):
    told = routed(gateway, chat("auto", text * 4), "letters")
assert told["headers"]["x-hubrouter-reason"] == "cached", told
body = chat("auto", "a" * (5 << 20))
for sent in [body, chunks(body, 1 << 20)]:
    _, told = gateway.post(sent)
    assert told["headers"]["x-hubrouter-reason"] == "too_large", told
    assert "x-hubrouter-model" not in told["headers"], told
    arrived(told, body)
print("bodies of 2.6 MB and of 5 MiB")

# A decision that cannot be made.
body = b'{"model": "auto", "messages": [{"role": "user", "content": 3}]}'
_, told = gateway.post(body)
assert told["headers"]["x-hubrouter-reason"] == "invalid_request", told
assert told["headers"]["x-hubrouter-fallback"] == "true", told
arrived(told, body.replace(b'"auto"', b'"letters"'))
print("the fallback")

# Clients that go while their prompt waits or is computed.
def abort(first: int) -> None:
    for number in range(first, first + 50):
        body = chat("auto", f"{BIRD} Number {number}.")
        gateway.send([head(body), body], pause=0.001 * (number % 8), close=True)
        gateway.send([head(body), body[:-9]], close=True)

threads = [threading.Thread(target=abort, args=(1000 * n,)) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
routed(gateway, chat("auto", f"{BIRD} After all of them."), "birds")
print("800 clients that went")

# Metrics.
time.sleep(0.5)
text = urllib.request.urlopen(f"{admin}/stats/prometheus").read().decode()
ours = [line for line in text.splitlines() if line.startswith("envoy_hubrouter")]
counted = {}
for line in ours:
    if "route_us" not in line:
        key, value = line.rsplit(" ", 1)
        counted[key] = float(value)
        print(f"  {line}")
for needed in ['reason="decided"', 'reason="cached"', "cache_hits", "passed", "invalid_request",
               'reason="too_large"']:
    assert any(needed in key and value > 0 for key, value in counted.items()), needed
assert any("route_us_count" in line for line in ours)
alive = json.load(urllib.request.urlopen(f"{admin}/server_info"))
assert alive["state"] == "LIVE", alive
