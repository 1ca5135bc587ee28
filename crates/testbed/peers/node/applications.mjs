// Applications on top of WebSockets: `applications.mjs serve|connect APPLICATION`. The server says `listening on PORT`, and
// ends in its application's own way upon SIGTERM. A client is given a JSON job a line, `{url, event, count}`; it says
// `opened` when all are open, and then `{reports: [[text, ms], ...]}`: what the application reported of each, whether it
// came back or gave up, and when the first was reported.
import { createInterface } from 'node:readline';
import { createWebSocketStream, WebSocket, WebSocketServer } from 'ws';
import { listen, PAUSE } from './peer.mjs';

// So often bytes pass, so often does the client try again, and so long is it given, in milliseconds.
const [PING, RETRY, PATIENCE] = [300, 200, 8000];
const [role, application, port] = process.argv.slice(2);

function uponTerm(end) {
  process.on('SIGTERM', async () => {
    await end();
    process.exit();
  });
}

const servers = {
  async 'socket.io'() {
    const { Server } = await import('socket.io');
    const server = new Server(listen(port), { pingInterval: PING });
    server.on('connection', (socket) => {
      if (socket.handshake.auth.event === 'server closes') setTimeout(() => socket.disconnect(true), PAUSE);
    });
    uponTerm(() => server.close());
  },

  async 'graphql-ws'() {
    const { GraphQLObjectType, GraphQLSchema, GraphQLString } = await import('graphql');
    const { useServer } = await import('graphql-ws/use/ws');
    const never = { [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}), return: async () => ({ done: true }) }) };
    const field = { type: GraphQLString, subscribe: () => never };
    const schema = new GraphQLSchema({
      query: new GraphQLObjectType({ name: 'Query', fields: { hello: { type: GraphQLString } } }),
      subscription: new GraphQLObjectType({ name: 'Subscription', fields: { news: field } }),
    });
    const server = new WebSocketServer({ server: listen(port) });
    const codes = { '/server-refuses': [4400, 'Bad Request'], '/server-closes': [1012, 'restart'] };
    server.on('connection', (socket, request) => {
      const code = codes[request.url];
      if (code) setTimeout(() => socket.close(...code), PAUSE + PING);
    });
    const { dispose } = useServer({ schema }, server);
    uponTerm(dispose);
  },

  async mqtt() {
    const { Aedes } = await import('aedes');
    const broker = await Aedes.createBroker();
    const server = new WebSocketServer({ server: listen(port) });
    server.on('connection', (socket, request) => broker.handle(createWebSocketStream(socket), request));
    broker.on('clientReady', (client) => {
      if (client.id.startsWith('server-closes')) setTimeout(() => client.close(), PAUSE);
    });
    broker.on('clientError', () => {});
    uponTerm(() => new Promise((resolve) => broker.close(resolve)));
  },
};

// Each resolves `opened`, and then what was reported.
const clients = {
  async 'socket.io'() {
    const { io } = await import('socket.io-client');
    return (url, event, opened, report) => {
      const socket = io(url, {
        transports: ['websocket'], forceNew: true, auth: { event },
        reconnectionDelay: RETRY, reconnectionDelayMax: RETRY,
      });
      socket.on('connect', () => {
        if (!opened()) return report('reconnects', () => socket.disconnect());
        if (event === 'client closes') setTimeout(() => socket.disconnect(), PAUSE);
      });
      socket.on('disconnect', (reason, details) => {
        const code = details?.context?.code;
        report(code ? `${reason}, ${code}` : reason);
        if (!socket.active) report(event === 'client closes' ? 'ends' : 'stays closed', () => {});
      });
      return () => socket.disconnect();
    };
  },

  async 'graphql-ws'() {
    const { createClient } = await import('graphql-ws');
    return (url, event, opened, report) => {
      const client = createClient({
        url: `${url}/${event.replaceAll(/\W+/g, '-')}`, webSocketImpl: WebSocket, keepAlive: PING,
        shouldRetry: event.includes('shouldRetry') ? () => true : undefined,
        retryAttempts: 20, retryWait: () => new Promise((resolve) => setTimeout(resolve, RETRY)),
      });
      client.on('connected', () => {
        if (!opened()) return report('reconnects', () => client.dispose());
        if (event === 'client closes') setTimeout(() => client.dispose(), PAUSE);
      });
      client.on('closed', ({ code, wasClean }) => {
        report(wasClean ? `${code}` : `${code}, not clean`);
        if (event === 'client closes') report('ends', () => {});
      });
      client.subscribe({ query: 'subscription { news }' }, {
        next() {}, complete() {}, error: () => report('gives up', () => {}),
      });
      return () => client.dispose();
    };
  },

  async mqtt() {
    const { default: mqtt } = await import('mqtt');
    let serial = 0;
    return (url, event, opened, report) => {
      serial += 1;
      const clientId = `${event.replaceAll(' ', '-')}-${process.pid}-${serial}`;
      const client = mqtt.connect(url, { clientId, keepalive: 1, reconnectPeriod: RETRY });
      client.on('connect', () => {
        if (!opened()) return report('reconnects', () => client.end(true));
        if (event === 'client closes') setTimeout(() => client.end(), PAUSE);
      });
      client.on('error', () => {});
      client.on('close', () => report('close'));
      client.on('end', () => event === 'client closes' && report('ends', () => {}));
      return () => client.end(true);
    };
  },
};

// `opened` is true for the first time; a `report` with an `end` is the last.
function watch(start, url, event, whenOpened) {
  return new Promise((resolve) => {
    const said = [];
    let [begun, ms] = [undefined, undefined];
    const finish = () => {
      clearTimeout(patience);
      resolve([said.join('; '), ms ?? PATIENCE]);
    };
    const opened = () => {
      if (begun !== undefined) return false;
      begun = performance.now();
      whenOpened();
      return true;
    };
    const report = (what, end) => {
      if (begun === undefined || said.at(-1)?.match(/^(reconnects|gives up|ends|stays closed)$/)) return;
      if (ms === undefined) {
        ms = performance.now() - begun;
        said.push(what);
      } else if (end) {
        said.push(what);
      }
      if (end) {
        finish();
        end();
      }
    };
    const stop = start(url, event, opened, report);
    const patience = setTimeout(() => {
      said.push(ms === undefined ? 'hangs' : 'does not come back');
      finish();
      stop();
    }, PATIENCE);
  });
}

async function connect() {
  const start = await clients[application]();
  for await (const line of createInterface({ input: process.stdin })) {
    const { url, event, count } = JSON.parse(line);
    let open = 0;
    const whenOpened = () => {
      open += 1;
      if (open === count) console.log('opened');
    };
    const all = Array.from({ length: count }, () => watch(start, url, event, whenOpened));
    console.log(JSON.stringify({ reports: await Promise.all(all) }));
  }
}

if (role === 'serve') await servers[application]();
else await connect();
