"""Python peers: `peers.py serve|connect websockets|aiohttp|uvicorn`; what is asked of them is said in
../src/peers.rs."""

import asyncio
import json
import ssl
import sys
import time

import aiohttp
import aiohttp.web
import uvicorn
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

CODE, REASON, PAUSE = 4321, "bye", 0.02


def identity(certificate=None, key=None):
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def say(line):
    print(line, flush=True)


async def serve_websockets(port, *files):
    async def handler(socket):
        say("opened")
        if socket.request.path == "/server":
            await asyncio.sleep(PAUSE)
            await socket.close(CODE, REASON)
        else:
            await socket.wait_closed()

    async with serve(handler, "127.0.0.1", port, ssl=identity(*files)) as server:
        say(f"listening on {server.sockets[0].getsockname()[1]}")
        await server.serve_forever()


async def serve_aiohttp(port, *files):
    async def handler(request):
        socket = aiohttp.web.WebSocketResponse()
        await socket.prepare(request)
        say("opened")
        if request.path == "/server":
            await asyncio.sleep(PAUSE)
            await socket.close(code=CODE, message=REASON.encode())
        else:
            async for _ in socket:
                pass
        return socket

    application = aiohttp.web.Application()
    application.router.add_get("/{path}", handler)
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", port, ssl_context=identity(*files))
    await site.start()
    say(f"listening on {runner.addresses[0][1]}")
    await asyncio.Event().wait()


async def serve_uvicorn(port, *files):
    async def application(scope, receive, send):
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        say("opened")
        if scope["path"] == "/server":
            await asyncio.sleep(PAUSE)
            await send({"type": "websocket.close", "code": CODE, "reason": REASON})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = uvicorn.Config(application, port=port, lifespan="off", log_level="warning")
    if files:
        config.ssl_certfile, config.ssl_keyfile = files
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    say(f"listening on {server.servers[0].sockets[0].getsockname()[1]}")
    await serving


async def connect_websockets(url, code):
    async with connect(url, ssl=no_questions(url), open_timeout=30) as socket:
        begun = time.monotonic()
        if code:
            await asyncio.sleep(PAUSE)
            begun = time.monotonic()
            await socket.close(code)
        await socket.wait_closed()
        ms = (time.monotonic() - begun) * 1000
        protocol = socket.protocol
        both = protocol.close_rcvd is not None and protocol.close_sent is not None
        return closed(protocol.close_code, protocol.close_reason, both, ms)


async def connect_aiohttp(url, code):
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, ssl=False) as socket:
            begun = time.monotonic()
            if code:
                await asyncio.sleep(PAUSE)
                begun = time.monotonic()
                await socket.close(code=code)
                seen, reason = socket.close_code or 1006, ""
            else:
                message = await socket.receive()
                received = message.type == aiohttp.WSMsgType.CLOSE
                seen, reason = (message.data, message.extra) if received else (1006, "")
            ms = (time.monotonic() - begun) * 1000
            # 1006 also where the server's Close frame could not be answered.
            return closed(seen, reason, socket.close_code not in (None, 1006), ms)


def no_questions(url):
    if not url.startswith("wss:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def closed(code, reason, clean, ms):
    return {"code": code, "reason": reason or "", "wasClean": clean, "ms": ms}


async def drive(library):
    one = {"websockets": connect_websockets, "aiohttp": connect_aiohttp}[library]
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        try:
            jobs = [one(job["url"], job.get("close")) for _ in range(job["count"])]
            answer = {"closes": await asyncio.gather(*jobs)}
        except Exception as error:
            answer = {"error": repr(error)}
        say(json.dumps(answer))


role, library, *rest = sys.argv[1:]
if role == "serve":
    asyncio.run(globals()[f"serve_{library}"](int(rest[0]), *rest[1:]))
else:
    asyncio.run(drive(library))
