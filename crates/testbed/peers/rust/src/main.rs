//! Rust peers: `peer serve axum|actix PORT`; ../../../src/peers.rs describes what they do.

use std::time::Duration;

const CODE: u16 = 4321;
const REASON: &str = "bye";
const PAUSE: Duration = Duration::from_millis(20);

/// As its examples have it: the answer to a Close frame is tungstenite's.
mod axum_peer {
    use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
    use axum::extract::Path;
    use axum::response::Response;
    use axum::{routing, Router};

    pub async fn serve(port: u16) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        println!("listening on {}", listener.local_addr()?.port());
        axum::serve(listener, Router::new().route("/{path}", routing::any(upgrade))).await
    }

    async fn upgrade(upgrade: WebSocketUpgrade, Path(path): Path<String>) -> Response {
        upgrade.on_upgrade(|socket| follow(socket, path))
    }

    async fn follow(mut socket: WebSocket, path: String) {
        println!("opened");
        if path != "client" {
            tokio::time::sleep(super::PAUSE).await;
            let frame = CloseFrame { code: super::CODE, reason: super::REASON.into() };
            let sent = socket.send(Message::Close(Some(frame))).await;
            if sent.is_err() {
                return;
            }
        }
        let mut code = 1006;
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Close(frame) = message {
                code = frame.map_or(1005, |frame| frame.code);
            }
        }
        println!("closed /{path} {code}");
    }
}

/// As its examples have it: a Close frame is answered with its own reason.
mod actix_peer {
    use actix_web::{rt, web, App, Error, HttpRequest, HttpResponse, HttpServer};
    use actix_ws::{CloseReason, Message, MessageStream, Session};

    pub async fn serve(port: u16) -> std::io::Result<()> {
        let app = || App::new().route("/{path}", web::get().to(upgrade));
        let server = HttpServer::new(app).workers(1).bind(("127.0.0.1", port))?;
        for address in server.addrs() {
            println!("listening on {}", address.port());
        }
        server.run().await
    }

    async fn upgrade(
        request: HttpRequest,
        path: web::Path<String>,
        body: web::Payload,
    ) -> Result<HttpResponse, Error> {
        let (response, session, messages) = actix_ws::handle(&request, body)?;
        rt::spawn(follow(session, messages, path.into_inner()));
        Ok(response)
    }

    async fn follow(session: Session, mut messages: MessageStream, path: String) {
        println!("opened");
        let mut session = Some(session);
        if path != "client" {
            rt::time::sleep(super::PAUSE).await;
            let reason =
                CloseReason { code: super::CODE.into(), description: Some(super::REASON.into()) };
            if let Some(session) = session.take() {
                let _ = session.close(Some(reason)).await;
            }
        }
        while let Some(Ok(message)) = messages.recv().await {
            if let Message::Close(reason) = message {
                if let Some(session) = session.take() {
                    let _ = session.close(reason).await;
                }
                break;
            }
        }
    }
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let port = arguments.get(3).and_then(|port| port.parse().ok()).unwrap_or(0);
    match arguments.get(2).map(String::as_str) {
        Some("axum") => tokio::runtime::Runtime::new()?.block_on(axum_peer::serve(port)),
        Some("actix") => actix_web::rt::System::new().block_on(actix_peer::serve(port)),
        other => panic!("no peer {other:?}"),
    }
}
