//! TLS on the main listener: the same service, by certificates that are renewed while it runs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use uuid::Uuid;

use crate::check::check;
use crate::harness::certs::{Authority, Certificate};
use crate::harness::cluster::{Kind, id, on_ground, text, user};
use crate::harness::process::{Process, Signal};
use crate::harness::{PATIENCE, until, within};

/// Files that can be exchanged while a node reads them.
struct Files {
    folder: tempfile::TempDir,
    cert: String,
    key: String,
}

impl Files {
    fn new(certificate: &Certificate) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let files = Self { cert: at("tls.crt"), key: at("tls.key"), folder };
        files.put(&certificate.cert, "tls.crt");
        files.put(&certificate.key, "tls.key");
        files
    }

    /// At once, as renewals do it.
    fn put(&self, from: &Path, name: &str) {
        let new = self.folder.path().join("new");
        std::fs::copy(from, &new).unwrap();
        std::fs::rename(new, self.folder.path().join(name)).unwrap();
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [("TLS_CERT_FILE", &self.cert), ("TLS_KEY_FILE", &self.key)]
    }
}

/// TLS as `localhost`, trusting this authority alone.
async fn tls(addr: SocketAddr, authority: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").unwrap();
    within(PATIENCE, "a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream))
        .await
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn socket(addr: SocketAddr, authority: &Path, user: Uuid) -> Socket {
    let stream = tls(addr, authority).await.unwrap();
    let url = format!("wss://localhost:{}/ws?user_id={user}&device_id=d&platform=web", addr.port());
    let mut request = url.into_client_request().unwrap();
    let protocol = "tidings.v1.json".parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    assert_eq!(event(&mut socket).await["type"], "hello");
    socket
}

async fn event(socket: &mut Socket) -> Value {
    let next = async {
        loop {
            if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    };
    within(PATIENCE, "an event", next).await
}

/// A request by curl; the answer's body.
fn curl(addr: SocketAddr, authority: &Path, user: Uuid, path: &str, body: Option<&Value>) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail-with-body", "--max-time", "10", "--cacert"]).arg(authority);
    curl.args(["-H", &format!("X-User-ID: {user}")]);
    if let Some(body) = body {
        curl.args(["-d", &body.to_string()]);
    }
    curl.arg(format!("https://localhost:{}{path}", addr.port()));
    let done = curl.output().expect("curl is installed");
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text} {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// The next but the group's creation, which may be told late.
async fn next(socket: &mut Socket) -> Value {
    loop {
        let event = event(socket).await;
        if event["type"] != "conversation_updated" {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_the_same_behind_tls() {
    let authority = Authority::new();
    let files = Files::new(&authority.issue("server", "DNS:localhost"));
    let ca = authority.file();
    on_ground(Kind::Embedded, &[], async |ground| {
        let (mut node, addr) = Process::node(&ground.settings_with("0", &files.settings())).await;
        assert!(node.output().contains("at https://"), "{}", node.output());
        let (ann, ben) = (user(), user());
        let group = json!({ "kind": "group", "participants": [ben] });
        let group = id(&curl(addr, &ca, ann, "/api/v1/conversations", Some(&group))["id"]);
        let mut by_ann = socket(addr, &ca, ann).await;
        let mut by_ben = socket(addr, &ca, ben).await;
        // Larger than a record and than what the kernel takes at once, while nobody reads.
        let long = "x".repeat(16_000);
        for at in 0..60 {
            let mut payload = text(group, &format!("{at} {long}"));
            payload["client_message_id"] = format!("{at}").into();
            let command = json!({ "type": "send_message", "ref": "r", "payload": payload });
            by_ann.send(Message::text(command.to_string())).await.unwrap();
            let answer = next(&mut by_ann).await;
            assert_eq!(answer["type"], "ok", "{answer}");
        }
        for at in 0..60 {
            let event = next(&mut by_ben).await;
            let content = event["payload"]["message"]["content"].as_str().unwrap();
            assert!(content.starts_with(&format!("{at} ")), "in order and whole");
            assert_eq!(content.len(), long.len() + 1 + at.to_string().len());
        }
        // His pong proves them, on this way as on the other.
        let proven = async {
            loop {
                let event = event(&mut by_ann).await;
                if event["type"] == "message_delivered" && event["payload"]["up_to_seq"] == 61 {
                    return;
                }
            }
        };
        let answering = async {
            while let Some(Ok(message)) = by_ben.next().await {
                assert!(!message.is_text(), "nothing more is said to him: {message}");
            }
        };
        tokio::select! {
            () = proven => {}
            () = answering => panic!("he is cut off"),
        }
        curl(addr, &ca, ben, "/api/v1/conversations", None);
        // In the clear nothing is answered.
        let mut plain = TcpStream::connect(addr).await.unwrap();
        plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = within(PATIENCE, "its end", plain.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
        // Goodbyes: a client's, and the node's.
        by_ann.close(None).await.unwrap();
        while let Some(Ok(_)) = within(PATIENCE, "its end", by_ann.next()).await {}
        node.signal(Signal::TERM);
        let closed = async {
            loop {
                if let Message::Close(frame) = by_ben.next().await.unwrap().unwrap() {
                    return frame.unwrap();
                }
            }
        };
        assert_eq!(u16::from(within(PATIENCE, "a close", closed).await.code), 1012);
        assert!(node.exit().await.success(), "{}", node.errors());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_the_node_runs() {
    let (first, second) = (Authority::new(), Authority::new());
    let files = Files::new(&first.issue("server", "DNS:localhost"));
    on_ground(Kind::Embedded, &[], async |ground| {
        let (node, addr) = Process::node(&ground.settings_with("0", &files.settings())).await;
        let (ann, ben) = (user(), user());
        let mut before = socket(addr, &first.file(), ann).await;
        let renewed = second.issue("server", "DNS:localhost");
        // For a moment the key is of the new one and the certificate of the old.
        files.put(&renewed.key, "tls.key");
        until("it notices", async || {
            node.errors().contains("the certificate stays as it is").then_some(())
        })
        .await;
        tls(addr, &first.file()).await.expect("the old one is still in use");
        files.put(&renewed.cert, "tls.crt");
        until("the new one is in use", async || tls(addr, &second.file()).await.ok()).await;
        tls(addr, &first.file()).await.expect_err("the old one is not shown any more");
        // Whoever came by the old one stays.
        let group = json!({ "kind": "group", "participants": [ann] });
        curl(addr, &second.file(), ben, "/api/v1/conversations", Some(&group));
        assert_eq!(event(&mut before).await["type"], "conversation_updated");
    })
    .await;
}

#[tokio::test]
async fn who_does_not_finish_the_handshake_is_let_go() {
    let authority = Authority::new();
    let files = Files::new(&authority.issue("server", "DNS:localhost"));
    on_ground(Kind::Embedded, &[], async |ground| {
        let (_node, addr) = Process::node(&ground.settings_with("0", &files.settings())).await;
        let mut silent = TcpStream::connect(addr).await.unwrap();
        // The head of a record that never comes.
        silent.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
        let mut rest = Vec::new();
        let ended = within(Duration::from_secs(10), "its end", silent.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.is_empty());
        tls(addr, &authority.file()).await.expect("others come in");
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let authority = Authority::new();
    let (one, another) = (authority.issue("a", "DNS:a"), authority.issue("b", "DNS:b"));
    on_ground(Kind::Embedded, &[], async |ground| {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (cert, key) = (text(&one.cert), text(&one.key));
        let settings = [("TLS_CERT_FILE", cert.as_str()), ("TLS_KEY_FILE", key.as_str())];
        let told = check(&ground.settings_with("0", &settings)).await;
        told.expect("host", "certificate", "ok", "go together");
        for (code, cert, key, named) in [
            (64, cert.as_str(), "", "TLS_KEY_FILE"),
            (64, "", key.as_str(), "TLS_CERT_FILE"),
            (64, "/no/such", key.as_str(), "TLS_CERT_FILE"),
            (64, key.as_str(), key.as_str(), "TLS_CERT_FILE"),
            (1, cert.as_str(), text(&another.key).as_str(), "TLS_KEY_FILE"),
            (1, cert.as_str(), cert.as_str(), "TLS_KEY_FILE"),
        ] {
            let settings = [("TLS_CERT_FILE", cert), ("TLS_KEY_FILE", key)];
            if code == 1 {
                let told = check(&ground.settings_with("0", &settings)).await;
                told.expect("host", "certificate", "problem", named);
            }
            let mut node = Process::start(&[], &ground.settings_with("0", &settings));
            assert_eq!(node.exit().await.code(), Some(code), "{settings:?}: {}", node.errors());
            assert!(node.errors().contains(named), "{settings:?}: {}", node.errors());
        }
    })
    .await;
}
