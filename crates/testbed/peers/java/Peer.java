// Java peers: `Peer serve jetty|undertow|tomcat|netty` and `Peer connect java.net.http|okhttp`; ../../src/peers.rs
// describes what they do.
import io.netty.bootstrap.ServerBootstrap;
import io.netty.channel.Channel;
import io.netty.channel.ChannelFuture;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.EventLoopGroup;
import io.netty.channel.MultiThreadIoEventLoopGroup;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.channel.nio.NioIoHandler;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpServerCodec;
import io.netty.handler.codec.http.websocketx.CloseWebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketServerProtocolConfig;
import io.netty.handler.codec.http.websocketx.WebSocketServerProtocolHandler;
import io.undertow.Handlers;
import io.undertow.Undertow;
import io.undertow.websockets.core.AbstractReceiveListener;
import io.undertow.websockets.core.CloseMessage;
import io.undertow.websockets.core.WebSocketChannel;
import io.undertow.websockets.core.WebSockets;
import jakarta.websocket.CloseReason;
import jakarta.websocket.Endpoint;
import jakarta.websocket.EndpointConfig;
import jakarta.websocket.server.ServerContainer;
import jakarta.websocket.server.ServerEndpointConfig;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocketListener;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.server.handler.ContextHandler;
import org.eclipse.jetty.websocket.api.Callback;
import org.eclipse.jetty.websocket.api.Session;
import org.eclipse.jetty.websocket.server.WebSocketUpgradeHandler;

public final class Peer {
    static final int CODE = 4321;
    static final String REASON = "bye";
    static final int PAUSE = 20;
    // What an application still has to send, and how far apart.
    static final int MESSAGES = 48;
    static final int GAP = 250;
    static final ScheduledExecutorService LATER = Executors.newScheduledThreadPool(1, (task) -> {
        Thread thread = new Thread(task);
        thread.setDaemon(true);
        return thread;
    });

    static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    static void later(Runnable task) {
        LATER.schedule(task, PAUSE, TimeUnit.MILLISECONDS);
    }

    interface Send {
        void message() throws Exception;
    }

    /** Sends for 12 s. */
    static CompletableFuture<Void> work(Send send) {
        return CompletableFuture.runAsync(() -> {
            long begun = System.currentTimeMillis();
            try {
                for (int i = 1; i <= MESSAGES; i++) {
                    Thread.sleep(Math.max(0, begun + i * GAP - System.currentTimeMillis()));
                    send.message();
                }
            } catch (Exception gone) {
                // There is nobody to send to any more.
            }
        }, (task) -> new Thread(task).start());
    }

    /** Reads nothing, not even a Close frame, before its work is done. */
    public static final class JettyWorks implements Session.Listener {
        @Override
        public void onWebSocketOpen(Session session) {
            say("opened");
            work(() -> session.sendText("work", Callback.NOOP)).thenRun(session::demand);
        }

        @Override
        public void onWebSocketClose(int status, String reason) {
            say("closed /works " + status);
        }

        @Override
        public void onWebSocketError(Throwable cause) {}
    }

    public static final class JettyEndpoint extends Session.Listener.AbstractAutoDemanding {
        private final String path;

        JettyEndpoint(String path) {
            this.path = path;
        }

        @Override
        public void onWebSocketOpen(Session session) {
            super.onWebSocketOpen(session);
            say("opened");
            if (path.equals("/server")) {
                later(() -> session.close(CODE, REASON, Callback.NOOP));
            }
        }

        @Override
        public void onWebSocketClose(int status, String reason) {
            say("closed " + path + " " + status);
        }

        @Override
        public void onWebSocketError(Throwable cause) {}
    }

    static void jetty(int port) throws Exception {
        Server server = new Server();
        ServerConnector connector = new ServerConnector(server);
        connector.setHost("127.0.0.1");
        connector.setPort(port);
        server.addConnector(connector);
        ContextHandler context = new ContextHandler("/");
        server.setHandler(context);
        context.setHandler(WebSocketUpgradeHandler.from(server, context, (container) ->
            container.addMapping("/*", (request, response, callback) -> {
                String path = request.getHttpURI().getPath();
                return path.equals("/works") ? new JettyWorks() : new JettyEndpoint(path);
            })));
        server.setStopAtShutdown(true);
        server.start();
        say("listening on " + connector.getLocalPort());
        server.join();
    }

    static void undertow(int port) {
        Undertow server = Undertow.builder().addHttpListener(port, "127.0.0.1").setIoThreads(2)
            .setHandler(Handlers.websocket((exchange, channel) -> {
                String path = URI.create(exchange.getRequestURI()).getPath();
                say("opened");
                // It answers a Close frame by itself.
                channel.getReceiveSetter().set(new AbstractReceiveListener() {});
                channel.addCloseTask((closed) -> {
                    int code = closed.getCloseCode();
                    say("closed " + path + " " + (code <= 0 ? 1006 : code));
                });
                channel.resumeReceives();
                if (path.equals("/server")) {
                    later(() -> WebSockets.sendClose(new CloseMessage(CODE, REASON), channel, null));
                }
            })).build();
        server.start();
        InetSocketAddress address = (InetSocketAddress) server.getListenerInfo().get(0).getAddress();
        say("listening on " + address.getPort());
    }

    public static final class TomcatEndpoint extends Endpoint {
        @Override
        public void onOpen(jakarta.websocket.Session session, EndpointConfig config) {
            say("opened");
            session.addMessageHandler(String.class, (message) -> {});
            if (session.getRequestURI().getPath().equals("/server")) {
                later(() -> {
                    try {
                        session.close(new CloseReason(CloseReason.CloseCodes.getCloseCode(CODE), REASON));
                    } catch (java.io.IOException gone) {
                        // The other side was faster.
                    }
                });
            }
        }

        @Override
        public void onClose(jakarta.websocket.Session session, CloseReason reason) {
            say("closed " + session.getRequestURI().getPath() + " " + reason.getCloseCode().getCode());
        }

        @Override
        public void onError(jakarta.websocket.Session session, Throwable error) {}
    }

    static void tomcat(int port) throws Exception {
        java.util.logging.LogManager.getLogManager().reset();
        String folder = Files.createTempDirectory("tomcat").toString();
        org.apache.catalina.startup.Tomcat tomcat = new org.apache.catalina.startup.Tomcat();
        tomcat.setBaseDir(folder);
        tomcat.setHostname("127.0.0.1");
        tomcat.setPort(port);
        tomcat.getConnector();
        org.apache.catalina.Context context = tomcat.addContext("", folder);
        context.addServletContainerInitializer(new org.apache.tomcat.websocket.server.WsSci(), null);
        context.addApplicationListener(TomcatStart.class.getName());
        tomcat.addServlet("", "default", new org.apache.catalina.servlets.DefaultServlet());
        context.addServletMappingDecoded("/", "default");
        tomcat.start();
        say("listening on " + tomcat.getConnector().getLocalPort());
        tomcat.getServer().await();
    }

    public static final class TomcatStart implements jakarta.servlet.ServletContextListener {
        @Override
        public void contextInitialized(jakarta.servlet.ServletContextEvent event) {
            ServerContainer container = (ServerContainer) event.getServletContext()
                .getAttribute(ServerContainer.class.getName());
            try {
                for (String path : new String[] {"/server", "/client"}) {
                    container.addEndpoint(ServerEndpointConfig.Builder.create(TomcatEndpoint.class, path).build());
                }
            } catch (jakarta.websocket.DeploymentException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    public static final class NettyHandler extends SimpleChannelInboundHandler<WebSocketFrame> {
        @Override
        public void userEventTriggered(ChannelHandlerContext context, Object event) {
            if (!(event instanceof WebSocketServerProtocolHandler.HandshakeComplete complete)) {
                return;
            }
            say("opened");
            String path = complete.requestUri();
            if (!path.equals("/client")) {
                later(() -> {
                    ChannelFuture sent = context.writeAndFlush(new CloseWebSocketFrame(CODE, REASON));
                    // The idiom that is common.
                    if (path.equals("/fin-without-waiting")) {
                        sent.addListener(ChannelFutureListener.CLOSE);
                    }
                });
            }
        }

        @Override
        protected void channelRead0(ChannelHandlerContext context, WebSocketFrame frame) {}

        @Override
        public void exceptionCaught(ChannelHandlerContext context, Throwable cause) {
            context.close();
        }
    }

    static void netty(int port) throws Exception {
        EventLoopGroup group = new MultiThreadIoEventLoopGroup(2, NioIoHandler.newFactory());
        // It answers a Close frame by itself.
        WebSocketServerProtocolConfig config =
            WebSocketServerProtocolConfig.newBuilder().websocketPath("/").checkStartsWith(true).build();
        Channel server = new ServerBootstrap().group(group).channel(NioServerSocketChannel.class)
            .childHandler(new ChannelInitializer<Channel>() {
                @Override
                protected void initChannel(Channel channel) {
                    channel.pipeline().addLast(new HttpServerCodec(), new HttpObjectAggregator(65536),
                        new WebSocketServerProtocolHandler(config), new NettyHandler());
                }
            }).bind("127.0.0.1", port).sync().channel();
        say("listening on " + ((InetSocketAddress) server.localAddress()).getPort());
        server.closeFuture().sync();
    }

    interface Client {
        CompletableFuture<String> watch(String url, int close, boolean works);
    }

    static String closed(int code, String reason, boolean clean, long begun) {
        double ms = (System.nanoTime() - begun) / 1e6;
        return String.format(java.util.Locale.ROOT,
            "{\"code\":%d,\"reason\":\"%s\",\"wasClean\":%b,\"ms\":%.3f}", code, reason, clean, ms);
    }

    static CompletableFuture<String> javaClient(HttpClient client, String url, int close, boolean works) {
        CompletableFuture<Void> done = new CompletableFuture<>();
        CompletableFuture<String> seen = new CompletableFuture<>();
        long[] begun = {System.nanoTime()};
        client.newWebSocketBuilder().buildAsync(URI.create(url), new WebSocket.Listener() {
            @Override
            public void onOpen(WebSocket socket) {
                begun[0] = System.nanoTime();
                socket.request(Long.MAX_VALUE);
                if (works) {
                    work(() -> socket.sendText("work", true).get()).thenRun(() -> done.complete(null));
                } else {
                    done.complete(null);
                }
                if (close != 0) {
                    later(() -> {
                        begun[0] = System.nanoTime();
                        socket.sendClose(close, "");
                    });
                }
            }

            @Override
            public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
                // It answers when this is done.
                return done.thenRun(() -> seen.complete(closed(code, reason, code != 1006, begun[0])));
            }

            @Override
            public void onError(WebSocket socket, Throwable error) {
                seen.complete(closed(1006, "", false, begun[0]));
            }
        }).exceptionally((error) -> {
            seen.completeExceptionally(error);
            return null;
        });
        return seen;
    }

    static CompletableFuture<String> okhttp(OkHttpClient client, String url, int close) {
        CompletableFuture<String> seen = new CompletableFuture<>();
        long[] begun = {System.nanoTime()};
        client.newWebSocket(new Request.Builder().url(url).build(), new WebSocketListener() {
            @Override
            public void onOpen(okhttp3.WebSocket socket, Response response) {
                begun[0] = System.nanoTime();
                if (close != 0) {
                    later(() -> {
                        begun[0] = System.nanoTime();
                        socket.close(close, null);
                    });
                }
            }

            @Override
            public void onClosing(okhttp3.WebSocket socket, int code, String reason) {
                if (close == 0) {
                    socket.close(code, null);
                }
            }

            @Override
            public void onClosed(okhttp3.WebSocket socket, int code, String reason) {
                seen.complete(closed(code, reason, true, begun[0]));
            }

            @Override
            public void onFailure(okhttp3.WebSocket socket, Throwable error, Response response) {
                seen.complete(closed(1006, "", false, begun[0]));
            }
        });
        return seen;
    }

    static javax.net.ssl.X509ExtendedTrustManager trustsAll() {
        return new javax.net.ssl.X509ExtendedTrustManager() {
            public void checkClientTrusted(java.security.cert.X509Certificate[] chain, String type) {}
            public void checkServerTrusted(java.security.cert.X509Certificate[] chain, String type) {}
            public void checkClientTrusted(java.security.cert.X509Certificate[] c, String t, java.net.Socket s) {}
            public void checkServerTrusted(java.security.cert.X509Certificate[] c, String t, java.net.Socket s) {}
            public void checkClientTrusted(java.security.cert.X509Certificate[] c, String t, javax.net.ssl.SSLEngine e) {}
            public void checkServerTrusted(java.security.cert.X509Certificate[] c, String t, javax.net.ssl.SSLEngine e) {}
            public java.security.cert.X509Certificate[] getAcceptedIssuers() {
                return new java.security.cert.X509Certificate[0];
            }
        };
    }

    static void connect(Client client) throws Exception {
        Pattern job = Pattern.compile("\"(url|close|count)\":(?:\"([^\"]*)\"|(\\d+)|null)");
        Scanner input = new Scanner(System.in);
        while (input.hasNextLine()) {
            String url = null;
            int close = 0;
            int count = 1;
            String line = input.nextLine();
            boolean works = line.contains("\"works\":true");
            Matcher matcher = job.matcher(line);
            while (matcher.find()) {
                if (matcher.group(2) != null) {
                    url = matcher.group(2);
                } else if (matcher.group(3) != null) {
                    int number = Integer.parseInt(matcher.group(3));
                    if (matcher.group(1).equals("close")) {
                        close = number;
                    } else {
                        count = number;
                    }
                }
            }
            List<CompletableFuture<String>> all = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                all.add(client.watch(url, close, works));
            }
            List<String> closes = new ArrayList<>();
            try {
                for (CompletableFuture<String> one : all) {
                    closes.add(one.get());
                }
                say("{\"closes\":[" + String.join(",", closes) + "]}");
            } catch (java.util.concurrent.ExecutionException error) {
                say("{\"error\":\"" + error.getCause().toString().replaceAll("[\"\\\\\n]", "'") + "\"}");
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        String what = arguments[0] + " " + arguments[1];
        int port = arguments.length > 2 ? Integer.parseInt(arguments[2]) : 0;
        // For the built-in client's TLS, whatever the certificate's name.
        System.setProperty("jdk.internal.httpclient.disableHostnameVerification", "true");
        javax.net.ssl.SSLContext tls = javax.net.ssl.SSLContext.getInstance("TLS");
        tls.init(null, new javax.net.ssl.TrustManager[] {trustsAll()}, null);
        switch (what) {
            case "serve jetty" -> jetty(port);
            case "serve undertow" -> undertow(port);
            case "serve tomcat" -> tomcat(port);
            case "serve netty" -> netty(port);
            case "connect java.net.http" -> {
                HttpClient client = HttpClient.newBuilder().sslContext(tls).build();
                connect((url, close, works) -> javaClient(client, url, close, works));
            }
            case "connect okhttp" -> {
                OkHttpClient client = new OkHttpClient.Builder()
                    .sslSocketFactory(tls.getSocketFactory(), trustsAll())
                    .hostnameVerifier((name, session) -> true)
                    .build();
                connect((url, close, works) -> okhttp(client, url, close));
            }
            default -> throw new IllegalArgumentException(what);
        }
    }
}
