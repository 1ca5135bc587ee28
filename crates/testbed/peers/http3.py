"""One HTTP/3 connection, driven by JSON lines: a command in, an answer out.

open {path}: a WebSocket by extended CONNECT (RFC 9220). get {path}: a plain request. send {id, hex}.
read {id, seconds}: what has come up to the stream's end, or in that time.
"""

import asyncio
import json
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset


class Stream:
    def __init__(self):
        self.status = asyncio.get_running_loop().create_future()
        self.bytes = b""
        self.end = asyncio.get_running_loop().create_future()

    def finish(self, how):
        if not self.end.done():
            self.end.set_result(how)
        if not self.status.done():
            self.status.set_result(None)


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.streams = {}
        self.alive = True

    def quic_event_received(self, event):
        if isinstance(event, StreamReset) and event.stream_id in self.streams:
            self.streams[event.stream_id].finish(f"reset {event.error_code:#x}")
        if isinstance(event, ConnectionTerminated):
            self.alive = False
            for stream in self.streams.values():
                stream.finish("closed")
        for event in self.http.handle_event(event):
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream is None:
                continue
            if isinstance(event, HeadersReceived) and not stream.status.done():
                stream.status.set_result(int(dict(event.headers)[b":status"]))
            if isinstance(event, DataReceived):
                stream.bytes += event.data
            if getattr(event, "stream_ended", False):
                stream.finish("fin")

    async def request(self, headers, end_stream):
        stream_id = self._quic.get_next_available_stream_id()
        self.streams[stream_id] = stream = Stream()
        self.http.send_headers(stream_id, headers, end_stream=end_stream)
        self.transmit()
        return stream_id, await asyncio.wait_for(stream.status, 5)

    async def do(self, command):
        path = command.get("path", "").encode()
        common = [(b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path)]
        match command["do"]:
            case "get":
                _, status = await self.request([(b":method", b"GET"), *common], True)
                return {"status": status}
            case "open":
                headers = [
                    (b":method", b"CONNECT"),
                    (b":protocol", b"websocket"),
                    *common,
                    (b"sec-websocket-version", b"13"),
                    # RFC 9220 has no use for it; the HTTP/1.1 server behind Envoy has.
                    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
                ]
                stream_id, status = await self.request(headers, False)
                return {"id": stream_id, "status": status}
            case "send":
                # aioquic would open a stream that has ended anew.
                if not self.streams[command["id"]].end.done():
                    self.http.send_data(command["id"], bytes.fromhex(command["hex"]), False)
                    self.transmit()
                return {}
            case "read":
                stream = self.streams[command["id"]]
                await asyncio.wait([stream.end], timeout=command["seconds"])
                data, stream.bytes = stream.bytes, b""
                end = stream.end.result() if stream.end.done() else None
                return {"hex": data.hex(), "end": end}
            case "alive":
                return {"alive": self.alive}


async def main(port):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
    configuration.verify_mode = ssl.CERT_NONE
    configuration.server_name = "localhost"
    configuration.max_datagram_frame_size = None
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Client) as client:
        print(json.dumps({"connected": True}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await client.do(json.loads(line))), flush=True)


asyncio.run(main(int(sys.argv[1])))
