import os
from pathlib import Path

import httpx
from websockets.sync.client import connect

server = os.environ.get("LONGTAKE_URL", "127.0.0.1:8000")
take = httpx.post(f"http://{server}/api/takes", json={"prompt": "a red ball rolls over a meadow"}).json()
with connect(f"ws://{server}/api/takes/{take['id']}/watch?from=0&credit=60") as messages:
    for message in messages:
        if isinstance(message, bytes):  # a frame: 40 bytes of header and a JPEG; everything else is JSON
            number = int.from_bytes(message[12:16], "big")
            Path(f"frame{number:03d}.jpg").write_bytes(message[40:])
            if number == 20:
                said = {"prompt": "a blue box bounces in a room", "change": "cut"}
                print(httpx.post(f"http://{server}/api/takes/{take['id']}/steer", json=said).json())
            if number == 59:
                break
