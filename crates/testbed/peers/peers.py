"""Python peers: `peers.py serve websockets|aiohttp|uvicorn|fastapi|hypercorn|daphne|tornado` and
`peers.py connect websockets|aiohttp|tornado`; what is asked of them is said in ../src/peers.rs."""

import asyncio
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket as sockets
import ssl
import sys
import tempfile
import threading
import time

import aiohttp
import aiohttp.web
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

CODE, REASON, PAUSE = 4321, "bye", 0.02
# What an application still has to send, and how far apart.
MESSAGES, GAP = 48, 0.25


def identity(certificate=None, key=None):
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def say(line):
    print(line, flush=True)


async def work(socket):
    """Sends for 12 s, and reads nothing; of aiohttp."""
    begun = time.monotonic()
    try:
        for sent in range(MESSAGES):
            await asyncio.sleep(begun + (sent + 1) * GAP - time.monotonic())
            await socket.send_str("work")
    except ConnectionError:
        pass


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
            if request.path == "/works":
                await work(socket)
            async for _ in socket:
                pass
        say(f"closed {request.path} {socket.close_code or 1006}")
        return socket

    application = aiohttp.web.Application()
    application.router.add_get("/{path}", handler)
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", port, ssl_context=identity(*files))
    await site.start()
    say(f"listening on {runner.addresses[0][1]}")
    await asyncio.Event().wait()


async def application(scope, receive, send):
    """For the ASGI servers."""
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    say("opened")
    if scope["path"] != "/client":
        await asyncio.sleep(PAUSE)
        await send({"type": "websocket.close", "code": CODE, "reason": REASON})
    while (event := await receive())["type"] != "websocket.disconnect":
        pass
    say(f"closed {scope['path']} {event.get('code')}")


async def serve_uvicorn(port, *files):
    import uvicorn

    config = uvicorn.Config(application, port=port, lifespan="off", log_level="warning")
    if files:
        config.ssl_certfile, config.ssl_keyfile = files
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    say(f"listening on {server.servers[0].sockets[0].getsockname()[1]}")
    await serving


def serve_fastapi(port):
    """As by `uvicorn --reload`, which starts a process for each version of the source; SIGHUP changes it."""
    import uvicorn
    import uvicorn.supervisors

    folder = os.environ["WATCHED"] = tempfile.mkdtemp()
    source = pathlib.Path(folder, "source.py")
    source.touch()
    config = uvicorn.Config(
        "peers:fastapi_application",
        factory=True,
        port=port,
        reload=True,
        reload_dirs=[folder],
        log_level="error",
    )
    signal.signal(signal.SIGHUP, lambda *_: source.touch())
    listener = config.bind_socket()
    # Not only once the other process does.
    listener.listen(2048)
    say(f"listening on {listener.getsockname()[1]}")
    server = uvicorn.Server(config)
    uvicorn.supervisors.ChangeReload(config, target=server.run, sockets=[listener]).run()


def fastapi_application():
    import fastapi

    def end_with_parent():
        multiprocessing.parent_process().join()
        shutil.rmtree(os.environ["WATCHED"])
        os._exit(0)

    say("started")
    threading.Thread(target=end_with_parent, daemon=True).start()
    application = fastapi.FastAPI()

    @application.websocket("/{path}")
    async def follow(socket: fastapi.WebSocket, path: str):
        await socket.accept()
        say("opened")
        try:
            while True:
                await socket.receive_text()
        except fastapi.WebSocketDisconnect as end:
            say(f"closed /{path} {end.code}")

    return application


async def serve_hypercorn(port, *files):
    import hypercorn.asyncio
    import hypercorn.config

    listener = sockets.create_server(("127.0.0.1", port))
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.loglevel = "ERROR"
    if files:
        config.certfile, config.keyfile = files
        config.alpn_protocols = ["http/1.1"]
    say(f"listening on {listener.getsockname()[1]}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await hypercorn.asyncio.serve(application, config, shutdown_trigger=stop.wait)


def serve_daphne(port):
    import daphne.server

    def ready():
        say(f"listening on {server.listening_addresses[0][1]}")

    endpoint = f"tcp:port={port}:interface=127.0.0.1"
    server = daphne.server.Server(application, endpoints=[endpoint], ready_callable=ready, verbosity=0)
    server.run()


async def serve_tornado(port, *files):
    import tornado.httpserver
    import tornado.web
    import tornado.websocket

    class Handler(tornado.websocket.WebSocketHandler):
        def check_origin(self, origin):
            return True

        async def open(self, path):
            say("opened")
            if path == "server":
                await asyncio.sleep(PAUSE)
                self.close(CODE, REASON)

        def on_message(self, message):
            pass

        def on_close(self):
            say(f"closed {self.request.path} {self.close_code or 1006}")

    listener = sockets.create_server(("127.0.0.1", port))
    listener.setblocking(False)
    application = tornado.web.Application([("/(.*)", Handler)])
    server = tornado.httpserver.HTTPServer(application, ssl_options=identity(*files))
    server.add_sockets([listener])
    say(f"listening on {listener.getsockname()[1]}")
    await asyncio.Event().wait()


async def connect_tornado(url, code):
    import tornado.httpclient
    import tornado.websocket

    request = tornado.httpclient.HTTPRequest(url, validate_cert=False)
    socket = await tornado.websocket.websocket_connect(request)
    begun = time.monotonic()
    if code:
        await asyncio.sleep(PAUSE)
        begun = time.monotonic()
        socket.close(code)
    while await socket.read_message() is not None:
        pass
    ms = (time.monotonic() - begun) * 1000
    seen = socket.close_code or 1006
    return closed(seen, socket.close_reason, seen != 1006, ms)


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


async def connect_aiohttp(url, code, works=False):
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, ssl=False) as socket:
            begun = time.monotonic()
            if code:
                await asyncio.sleep(PAUSE)
                begun = time.monotonic()
                await socket.close(code=code)
                seen, reason = socket.close_code or 1006, ""
            else:
                if works:
                    await work(socket)
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
    one = globals()[f"connect_{library}"]
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        try:
            works = {"works": True} if job.get("works") else {}
            jobs = [one(job["url"], job.get("close"), **works) for _ in range(job["count"])]
            answer = {"closes": await asyncio.gather(*jobs)}
        except Exception as error:
            answer = {"error": repr(error)}
        say(json.dumps(answer))


# Those that bring an event loop of their own.
LOOPS = {"daphne": serve_daphne, "fastapi": serve_fastapi}

# A process that one of them starts imports this file.
if __name__ == "__main__":
    role, library, *rest = sys.argv[1:]
    if role == "connect":
        asyncio.run(drive(library))
    elif library in LOOPS:
        LOOPS[library](int(rest[0]))
    else:
        asyncio.run(globals()[f"serve_{library}"](int(rest[0]), *rest[1:]))
