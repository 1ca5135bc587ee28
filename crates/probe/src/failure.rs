//! Why there was nothing to judge, and what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as Tls};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{header, StatusCode};
use tokio_tungstenite::tungstenite::Error;

/// A cause, and what to do: each a sentence without its full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub cause: String,
    pub advice: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}.", self.cause, self.advice)
    }
}

impl Failure {
    pub fn new(cause: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { cause: cause.into(), advice: advice.into() }
    }

    pub fn dns(host: &str, error: &io::Error) -> Self {
        Self::new(
            format!("cannot resolve {host}: {error}"),
            "Check the name; inside a cluster it is SERVICE.NAMESPACE.svc.cluster.local, or give an IP address \
             and --header \"Host: …\"",
        )
    }

    pub fn connect(place: &str, error: &io::Error) -> Self {
        let advice = match error.kind() {
            ErrorKind::ConnectionRefused => {
                "Nothing listens there: check the port, and that the server or gateway is up"
            }
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
                "No route leads there: check the network, or probe from inside the cluster"
            }
            _ => "Check the address, and what stands between: firewalls, NetworkPolicies",
        };
        Self::new(format!("cannot connect to {place}: {error}"), advice)
    }

    pub fn timeout(what: &str, seconds: f64) -> Self {
        let advice = match what {
            "connecting" => "A firewall or NetworkPolicy may drop the packets: check the address, or give a longer --timeout",
            _ => "The server is overloaded or hangs: look at its log, or give a longer --timeout",
        };
        Self::new(format!("{what} took more than {seconds} s"), advice)
    }

    pub fn no_server_close(seconds: f64) -> Self {
        Self::new(
            format!("the server did not close within {seconds} s"),
            "Let it close, for example by a restart, or give a longer --timeout, or leave out --server-close",
        )
    }

    /// The handshake of TLS with `place`, a host and a port.
    pub fn tls(place: &str, error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
        let (cause, advice) = match inner {
            Some(Tls::InvalidCertificate(wrong)) => certificate(wrong),
            Some(Tls::InvalidMessage(_)) => (
                "the server does not answer in TLS".to_owned(),
                "Try ws:// on this port, or another port",
            ),
            Some(Tls::AlertReceived(AlertDescription::UnrecognisedName)) => (
                "the server has no certificate for this host name".to_owned(),
                "Check `hosts` and `credentialName` of the Gateway, and the host name in the address",
            ),
            Some(Tls::AlertReceived(alert)) => (
                format!("the server refuses: {alert:?}"),
                "It may ask for a client certificate, which the probe has none of: probe from inside the mesh, through \
                 a sidecar",
            ),
            Some(other) => (other.to_string(), "Check TLS on the server, for example with openssl s_client"),
            None => (
                format!("the server ended the connection: {error}"),
                "Envoy does so if no filter chain matches the host name: check `hosts` of the Gateway. A sidecar does so \
                 if it asks for mTLS: probe from inside the mesh",
            ),
        };
        Self::new(format!("TLS with {place} failed: {cause}"), advice)
    }

    /// The opening handshake of the WebSocket; `tls` if the address is wss://.
    pub fn opening(error: &Error, tls: bool) -> Self {
        let other = if tls { "ws" } else { "wss" };
        match error {
            Error::Http(response) => Self::status(response),
            Error::Protocol(ProtocolError::HandshakeIncomplete) | Error::Io(_) | Error::ConnectionClosed => Self::new(
                "the server ended the connection instead of answering the opening handshake",
                format!(
                    "Try {other}://; or the port expects the mesh's mTLS: probe from inside the mesh, through a sidecar"
                ),
            ),
            Error::Protocol(ProtocolError::HttparseError(_)) => Self::new(
                "the answer to the opening handshake is not HTTP",
                format!("Try {other}://, or another port"),
            ),
            Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Self::new(
                format!("the opening handshake failed: {error}"),
                "Check --subprotocol against what the server offers",
            ),
            _ => Self::new(
                format!("the opening handshake failed: {error}"),
                "The server breaks RFC 6455, or a proxy changes the answer: probe the server itself",
            ),
        }
    }

    fn status(response: &Response) -> Self {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let advice = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "Give what the server or an AuthorizationPolicy asks for: --header \"Authorization: …\", --header \
                 \"Cookie: …\" or --header \"Origin: https://…\""
                    .to_owned()
            }
            StatusCode::NOT_FOUND => {
                "Check the path, and that a route (VirtualService, HTTPRoute) exists for this host and path".to_owned()
            }
            StatusCode::TOO_MANY_REQUESTS => "Probe less often".to_owned(),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                "The proxy reaches no server: look at its response flags in the access log (UH, UF, NR), and at the pods"
                    .to_owned()
            }
            _ if status.is_redirection() => {
                let to = header(header::LOCATION).unwrap_or("an address that it does not give");
                format!("It redirects to {to}: probe that, with ws:// or wss:// for http:// or https://")
            }
            _ if status.is_success() => {
                "The server did not upgrade: check the path, and that every proxy on the way allows upgrades (Envoy: \
                 upgrade_configs with upgrade_type websocket)"
                    .to_owned()
            }
            _ if status.is_server_error() => "Look at the server's log".to_owned(),
            _ => "Check the path, the headers and the subprotocol that the server expects".to_owned(),
        };
        Self::new(format!("the opening handshake was refused: HTTP {status}"), advice)
    }
}

fn certificate(wrong: &CertificateError) -> (String, &'static str) {
    use CertificateError as E;
    let advice = match wrong {
        E::UnknownIssuer => {
            "Give its authority with --ca-file, or --insecure to accept any certificate"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "Use a host name of the certificate, or --insecure to accept any"
        }
        E::Expired | E::ExpiredContext { .. } => {
            "Renew it, or give --insecure to accept any certificate"
        }
        E::NotValidYet | E::NotValidYetContext { .. } => "Check the clocks of both machines",
        _ => "Check it with openssl x509, or give --insecure to accept any certificate",
    };
    let cause = match wrong {
        E::UnknownIssuer => {
            "no authority that this machine trusts has signed the certificate (UnknownIssuer)"
                .to_owned()
        }
        E::Other(inner) => format!("the certificate is refused: {}", inner.0),
        _ => wrong.to_string(),
    };
    (cause, advice)
}
