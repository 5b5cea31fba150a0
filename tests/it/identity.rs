//! Who may come in, by token, ticket or as a page of an origin; how long he may stay; and how he is
//! sent away.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::clock::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::client::{Client, Opening, Refused};
use crate::harness::cluster::{Cluster, Kind, id, run, text, user};
use crate::harness::http::{Reply, Rest};
use crate::harness::raw::Raw;
use crate::harness::{scenarios, until};
use crate::own_redis::OwnRedis;

scenarios! {
    a_token_says_who_is_asking
        ["AUTH_MODE" = "jwt", "JWT_KEY" = "an HMAC secret of exactly 34 bytes"],
    a_socket_ends_with_its_token
        ["AUTH_MODE" = "jwt", "JWT_KEY" = "an HMAC secret of exactly 34 bytes"],
    another_token_prolongs_a_socket
        ["AUTH_MODE" = "jwt", "JWT_KEY" = "an HMAC secret of exactly 34 bytes"],
    without_tokens_there_is_nothing_to_refresh,
    a_ticket_opens_one_socket_on_any_node
        ["AUTH_MODE" = "jwt", "JWT_KEY" = "an HMAC secret of exactly 34 bytes"],
    a_ticket_serves_without_tokens_too,
    a_user_is_cut_off_on_all_nodes ["ADMIN_ADDR" = "127.0.0.1:0"],
    pages_of_listed_origins_may_call ["ALLOWED_ORIGINS" = "https://chat.example"],
    a_foreign_page_changes_nothing ["ADMIN_ADDR" = "127.0.0.1:0"],
    a_laptops_node_answers_to_its_own_name_only,
}

const SECRET: &str = "an HMAC secret of exactly 34 bytes";
const RSA: &str = include_str!("../keys/rsa.pem");
const EC: &str = include_str!("../keys/ec.pem");

/// Seconds from now, which may be past.
pub fn in_seconds(seconds: i64) -> i64 {
    Timestamp::now().millis() / 1_000 + seconds
}

pub fn token_until(user: Uuid, expires: i64) -> String {
    let claims = json!({ "sub": user, "exp": expires });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

pub fn token(user: Uuid) -> String {
    token_until(user, in_seconds(600))
}

/// With a token in the header, and another user's id beside it, which counts for nothing.
fn with_token(token: &str) -> Opening {
    let headers = vec![("authorization", format!("Bearer {token}"))];
    Opening { headers, ..Opening::new(user()) }
}

fn rest(cluster: &Cluster, at: usize, token: &str) -> Rest {
    Rest::new(cluster.addr(at), None).with("authorization", &format!("Bearer {token}"))
}

async fn open(cluster: &Cluster, at: usize, opening: Opening) -> Client {
    Client::open(cluster.addr(at), opening).await.expect("the socket opens")
}

async fn refused(cluster: &Cluster, at: usize, opening: Opening) -> Refused {
    let opened = Client::handshake(cluster.addr(at), opening).await;
    let refused = opened.err().expect("it is refused");
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(refused.problem["code"], "unauthenticated");
    refused
}

async fn a_token_says_who_is_asking(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let (at_alice, at_bob) = (token(alice), token(bob));
    let body = json!({ "kind": "group", "title": "Friends", "participants": [bob] });
    let pretended = rest(cluster, 0, &at_alice).with("x-user-id", &bob.to_string());
    let group = pretended.post("/api/v1/conversations", body).await.body(201);
    assert_eq!(group["created_by"], alice.to_string());
    let conversation = id(&group["id"]);

    // On a socket the header serves, and for pages an entry among the subprotocols.
    let mut by_header = open(cluster, 1, with_token(&at_bob)).await;
    assert_eq!(by_header.hello["user_id"], bob.to_string());
    assert_eq!(by_header.subprotocol.as_deref(), Some("tidings.v1.json"));
    let entries = format!("tidings.v1.json, bearer.{at_bob}");
    let opening = Opening {
        headers: vec![("sec-websocket-protocol", entries)],
        query: format!("?device_id=ignored&user_id={alice}"),
        ..Opening::new(alice)
    };
    let mut by_entry = open(cluster, 0, opening).await;
    assert_eq!(by_entry.hello["user_id"], bob.to_string());
    assert_eq!(by_entry.subprotocol.as_deref(), Some("tidings.v1.json"), "the token is not echoed");
    let sent = rest(cluster, 0, &at_alice).post("/api/v1/messages", text(conversation, "hi")).await;
    let sent = sent.body(201);
    assert_eq!(by_header.new_message().await, sent);
    assert_eq!(by_entry.new_message().await, sent);

    // Which check failed is said, and nothing of the token.
    let ended = token_until(alice, in_seconds(-60));
    let foreign = token(alice).rsplit_once('.').unwrap().0.to_owned() + ".AAAA";
    for (token, check) in [(&ended, "(exp)"), (&foreign, "signature"), (&"x".to_owned(), "")] {
        let reply = rest(cluster, 0, token).get("/api/v1/conversations").await;
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        let problem = reply.refused(401, "unauthenticated", None);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(check), "{detail}");
        assert!(token.len() < 9 || !problem.to_string().contains(token.as_str()), "{problem}");
        let problem = refused(cluster, 1, with_token(token)).await.problem;
        assert_eq!(problem["detail"], detail);
    }
    let nothing = cluster.rest(0, alice).get("/api/v1/conversations").await;
    assert_eq!(nothing.header("www-authenticate"), Some("Bearer"));
    nothing.refused(401, "unauthenticated", None);
    let by_query = Opening { query: format!("?user_id={alice}"), ..Opening::new(alice) };
    refused(cluster, 0, by_query).await;
    // What is for a laptop is not there.
    cluster.rest(0, alice).get("/").await.refused(404, "not_found", None);
    Rest::new(cluster.addr(0), None).get("/health").await.body(200);
}

async fn a_socket_ends_with_its_token(cluster: &Cluster) {
    let alice = user();
    // Within what clocks may differ by: good for some seconds.
    let mut silent = open(cluster, 0, with_token(&token_until(alice, in_seconds(-2)))).await;
    let mut lasting = open(cluster, 0, with_token(&token(alice))).await;
    let (code, reason) = silent.closed().await;
    assert_eq!(code, 4401);
    assert_eq!(reason, r#"{"reason":"token_expired"}"#);
    lasting.drain().await;
    until("presence forgets the device", async || {
        let entries = cluster.node(0).presence.status(&[tidings::ids::UserId(alice)]).await;
        matches!(&entries[0], tidings::presence::Status::Online(devices) if devices.len() == 1)
            .then_some(())
    })
    .await;
}

async fn another_token_prolongs_a_socket(cluster: &Cluster) {
    let alice = user();
    let soon = in_seconds(-1);
    let mut prolonged = open(cluster, 0, with_token(&token_until(alice, soon))).await;
    let mut left = open(cluster, 0, with_token(&token_until(alice, soon))).await;
    for (token, status, code, field) in [
        (json!(token(user())), 403, "forbidden", None),
        (json!(token_until(alice, in_seconds(-60))), 401, "unauthenticated", None),
        (json!("x"), 401, "unauthenticated", None),
        (json!(7), 400, "malformed", Some("token")),
        (Value::Null, 400, "malformed", Some("token")),
    ] {
        let payload = json!({ "token": token });
        left.command("refresh_token", payload).await.refused(status, code, field);
    }
    let later = in_seconds(600);
    let payload = json!({ "token": token_until(alice, later) });
    let answer = prolonged.command("refresh_token", payload).await.ok();
    let expires_at = Timestamp::from_millis(later * 1_000);
    assert_eq!(answer, json!({ "expires_at": expires_at }));
    // One that ends sooner takes nothing away.
    let payload = json!({ "token": token_until(alice, in_seconds(60)) });
    let answer = prolonged.command("refresh_token", payload).await.ok();
    assert_eq!(answer, json!({ "expires_at": expires_at }));
    // What was refused has changed nothing.
    assert_eq!(left.closed().await.0, 4401);
    prolonged.drain().await;
}

async fn without_tokens_there_is_nothing_to_refresh(cluster: &Cluster) {
    let alice = user();
    let mut socket = cluster.connect(0, alice).await;
    let payload = json!({ "token": token(alice) });
    socket.command("refresh_token", payload).await.refused(422, "invalid", Some("token"));
    socket.drain().await;
    let reply = Rest::new(cluster.addr(0), None).get("/api/v1/conversations").await;
    assert_eq!(reply.header("www-authenticate"), None);
    reply.refused(401, "unauthenticated", None);
}

async fn ticket(rest: &Rest) -> String {
    let answer = rest.post("/api/v1/ws-tickets", json!({})).await.body(201);
    assert_eq!(answer["expires_in"], 30);
    answer["ticket"].as_str().unwrap().to_owned()
}

/// As a page opens a socket: without headers of its own.
fn with_ticket(ticket: &str) -> Opening {
    Opening { query: format!("?ticket={ticket}"), ..Opening::new(user()) }
}

async fn a_ticket_opens_one_socket_on_any_node(cluster: &Cluster) {
    let alice = user();
    let made = ticket(&rest(cluster, 0, &token_until(alice, in_seconds(-2)))).await;
    let mut socket = open(cluster, 1, with_ticket(&made)).await;
    assert_eq!(socket.hello["user_id"], alice.to_string());
    for at in 0..2 {
        refused(cluster, at, with_ticket(&made)).await;
    }
    // A ticket that is none is not made good by a token beside it.
    let beside = Opening { query: "?ticket=".into(), ..with_token(&token(alice)) };
    refused(cluster, 0, beside).await;
    assert_eq!(socket.closed().await.0, 4401, "it ends with the token that made the ticket");
    // A request that cannot be served uses none up.
    let made = ticket(&rest(cluster, 1, &token(alice))).await;
    let mut opening = with_ticket(&made);
    opening.headers.push(("x-platform", "x".repeat(99)));
    let wrong = Client::handshake(cluster.addr(0), opening).await.err().expect("it is refused");
    assert_eq!(wrong.status, 422);
    open(cluster, 0, with_ticket(&made)).await;
    let nobody = Rest::new(cluster.addr(0), None).post("/api/v1/ws-tickets", json!({})).await;
    nobody.refused(401, "unauthenticated", None);
}

async fn a_ticket_serves_without_tokens_too(cluster: &Cluster) {
    let alice = user();
    let made = ticket(&cluster.rest(1, alice)).await;
    let socket = open(cluster, 0, with_ticket(&made)).await;
    assert_eq!(socket.hello["user_id"], alice.to_string(), "not the header's");
    refused(cluster, 1, with_ticket(&made)).await;
}

async fn a_user_is_cut_off_on_all_nodes(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let admin = |at: usize| Rest::new(cluster.admin_addr(at).expect("an admin door"), None);
    let disconnect =
        async |at: usize, body: Value| admin(at).post("/admin/v1/disconnect", body).await;
    let mut phone = cluster.connect(1, alice).await;
    let mut laptop = cluster.connect(0, alice).await;
    let mut classic = cluster.connect_classic(1, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let one = json!({ "user_id": alice, "device_id": phone.device });
    assert_eq!(disconnect(0, one).await.status, 204);
    assert_eq!(phone.closed().await, (4403, r#"{"reason":"forbidden"}"#.into()));
    laptop.drain().await;
    classic.drain().await;
    let all = json!({ "user_id": alice, "device_id": null });
    until("all nodes are told", async || {
        (disconnect(0, all.clone()).await.status == 204).then_some(())
    })
    .await;
    assert_eq!(laptop.closed().await.0, 4403);
    assert_eq!(classic.closed().await.0, 4403);
    at_bob.drain().await;
    until("presence forgets him", async || {
        let status = cluster.node(0).presence.status(&[tidings::ids::UserId(alice)]).await;
        (!matches!(status[0], tidings::presence::Status::Online(_))).then_some(())
    })
    .await;
    // Nobody is there: that is as good. He may come back.
    assert_eq!(disconnect(1, json!({ "user_id": user() })).await.status, 204);
    cluster.connect(1, alice).await.drain().await;

    disconnect(0, json!({})).await.refused(400, "malformed", Some("user_id"));
    let wrong = json!({ "user_id": bob, "device_id": "" });
    disconnect(0, wrong).await.refused(422, "invalid", Some("device_id"));
    admin(0).get("/admin/v1/disconnect").await.refused(405, "method_not_allowed", None);
    let main = cluster.rest(0, bob).post("/admin/v1/disconnect", json!({ "user_id": bob })).await;
    main.refused(404, "not_found", None);
    at_bob.drain().await;
}

fn cors(reply: &Reply) -> Option<&str> {
    assert_eq!(reply.header("vary"), Some("origin"));
    let origin = reply.header("access-control-allow-origin");
    let exposed = reply.header("access-control-expose-headers");
    assert_eq!(exposed, origin.map(|_| "retry-after, x-request-id"));
    assert_eq!(reply.header("access-control-allow-credentials"), None);
    origin
}

async fn pages_of_listed_origins_may_call(cluster: &Cluster) {
    let alice = user();
    let listed = "https://chat.example";
    let own = format!("http://{}", cluster.addr(0));
    let path = "/api/v1/conversations";
    for origin in [listed, &own] {
        let page = cluster.rest(0, alice).with("origin", origin);
        let body = json!({ "kind": "group", "participants": [] });
        let made = page.post(path, body).await;
        assert_eq!((made.status, cors(&made)), (201, Some(origin)));
        let wrong = page.post(path, json!({})).await;
        assert_eq!((wrong.status, cors(&wrong)), (400, Some(origin)), "problems can be read, too");
        let nothing = page.get("/nothing").await;
        assert_eq!((nothing.status, cors(&nothing)), (404, Some(origin)));
    }
    // The question before the call: without any identity.
    let ask = async |origin: &str, path: &str| {
        let browser = Rest::new(cluster.addr(0), None).with("origin", origin);
        let browser = browser.with("access-control-request-method", "PATCH");
        browser.with("access-control-request-headers", "x-user-id").call("OPTIONS", path, "").await
    };
    let one = format!("{path}/{alice}");
    for (path, methods) in [(path, "GET, POST"), (&one, "GET, PATCH"), ("/api/v1/messages", "POST")]
    {
        let reply = ask(listed, path).await;
        assert_eq!((reply.status, cors(&reply)), (204, Some(listed)));
        assert_eq!(reply.header("access-control-allow-methods"), Some(methods));
        assert_eq!(reply.header("access-control-max-age"), Some("3600"));
        let allowed = reply.header("access-control-allow-headers").unwrap();
        for name in [
            "authorization",
            "content-type",
            "x-user-id",
            "x-device-id",
            "idempotency-key",
            "x-request-id",
        ] {
            assert!(allowed.split(", ").any(|allowed| allowed == name), "{name}: {allowed}");
        }
    }
    ask(listed, "/nothing").await.refused(404, "not_found", None);
    for origin in ["https://evil.example", "https://chat.example.evil.example", "null"] {
        let reply = ask(origin, path).await;
        assert_eq!(cors(&reply), None);
        assert_eq!(reply.header("access-control-allow-methods"), None);
        reply.refused(403, "foreign_origin", None);
    }
    // No question of a page: as any method that is not there.
    cluster.rest(0, alice).call("OPTIONS", path, "").await.refused(405, "method_not_allowed", None);
}

async fn a_foreign_page_changes_nothing(cluster: &Cluster) {
    let alice = user();
    let mut socket = cluster.connect(0, alice).await;
    for origin in ["https://evil.example", "http://localhost:1", "null", ""] {
        let page = cluster.rest(0, alice).with("origin", origin);
        // As a form can send it, without a question before.
        let page = page.with("content-type", "text/plain");
        let reply = page
            .post("/api/v1/conversations", json!({ "kind": "group", "participants": [] }))
            .await;
        assert_eq!(cors(&reply), None);
        reply.refused(403, "foreign_origin", None);
        page.post("/api/v1/ws-tickets", json!({})).await.refused(403, "foreign_origin", None);
        // What it reads it is not shown.
        let read = page.get("/api/v1/conversations").await;
        assert_eq!(cors(&read), None);
        assert_eq!(read.body(200)["conversations"], json!([]), "nothing was made");
    }
    // The admin listener has no pages, so not even its own origin is one.
    let admin = cluster.admin_addr(0).expect("an admin door");
    let page = Rest::new(admin, None).with("origin", &format!("http://{admin}"));
    let reply = page.post("/admin/v1/disconnect", json!({ "user_id": alice })).await;
    reply.refused(403, "foreign_origin", None);
    socket.drain().await;
}

/// DNS rebinding: a page's own name suddenly means this machine, so to the browser this node is of
/// the page's origin.
async fn a_laptops_node_answers_to_its_own_name_only(cluster: &Cluster) {
    let addr = cluster.addr(0);
    let ask = async |path: &str, headers: &str| {
        let mut raw = Raw::connect(addr).await;
        let user = user();
        let request = format!("GET {path} HTTP/1.1\r\n{headers}X-User-ID: {user}\r\n\r\n");
        raw.send(request.as_bytes()).await;
        raw.head().await.split(' ').nth(1).unwrap().to_owned()
    };
    for path in ["/", "/api/v1/conversations", "/metrics", "/health"] {
        for host in [addr.to_string(), format!("localhost:{}", addr.port()), "[::1]".into()] {
            assert_eq!(ask(path, &format!("Host: {host}\r\n")).await, "200", "{host} {path}");
        }
        let rebound = "Host: evil.example:8083\r\nOrigin: http://evil.example:8083\r\n";
        assert_eq!(ask(path, rebound).await, "403", "{path}");
        assert_eq!(ask(path, "Host: evil.example:8083\r\n").await, "403", "{path}");
    }
    let upgrade = "Host: evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(ask("/ws", upgrade).await, "403");
}

/// A small issuer: a real server that publishes a key set.
struct Issuer {
    addr: SocketAddr,
    /// What it answers.
    set: Arc<Mutex<(StatusCode, String)>>,
    fetched: Arc<AtomicUsize>,
    stop: CancellationToken,
    started: Instant,
}

impl Issuer {
    async fn start(keys: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Self {
            addr: listener.local_addr().unwrap(),
            set: Arc::default(),
            fetched: Arc::default(),
            stop: CancellationToken::new(),
            started: Instant::now(),
        };
        issuer.publish(keys);
        let (set, fetched) = (issuer.set.clone(), issuer.fetched.clone());
        let serve = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|_| {
                    fetched.fetch_add(1, Ordering::SeqCst);
                    let (status, body) = set.lock().unwrap().clone();
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    async { Ok::<_, Infallible>(response) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
        };
        let stop = issuer.stop.clone();
        tokio_util::task::TaskTracker::new()
            .spawn(async move { stop.run_until_cancelled(serve).await });
        issuer
    }

    fn publish(&self, keys: &[&str]) {
        let keys: Vec<Value> = keys.iter().map(|id| jwk(id)).collect();
        self.answer(StatusCode::OK, &json!({ "keys": keys }).to_string());
    }

    fn answer(&self, status: StatusCode, body: &str) {
        *self.set.lock().unwrap() = (status, body.to_owned());
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("http://{}/keys", self.addr)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn signer(id: &str) -> (Algorithm, EncodingKey) {
    match id {
        "rsa" => (Algorithm::RS256, EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap()),
        _ => (Algorithm::ES256, EncodingKey::from_ec_pem(EC.as_bytes()).unwrap()),
    }
}

fn jwk(id: &str) -> Value {
    let (algorithm, key) = signer(id);
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
    jwk["kid"] = json!(id);
    jwk
}

fn signed_by(id: &str, named: Option<&str>, user: Uuid) -> String {
    let (algorithm, key) = signer(id);
    let header = Header { kid: named.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, &json!({ "sub": user, "exp": in_seconds(600) }), &key).unwrap()
}

async fn rotation(kind: Kind) {
    let issuer = Issuer::start(&["rsa"]).await;
    let url = issuer.url();
    let settings = [("AUTH_MODE", "jwt"), ("JWT_JWKS_URL", url.as_str())];
    run(kind, &settings, async |cluster| {
        let nodes = issuer.fetched();
        let alice = user();
        let ask = async |token: &str| rest(cluster, 1, token).get("/api/v1/conversations").await;
        let old = signed_by("rsa", Some("rsa"), alice);
        assert_eq!(ask(&old).await.status, 200);
        assert_eq!(ask(&signed_by("rsa", None, alice)).await.status, 200, "the only one");
        // Named as another key, or signed by a key under a name that is another's.
        ask(&signed_by("rsa", Some("ec"), alice)).await.refused(401, "unauthenticated", None);
        let confused = ask(&signed_by("ec", Some("rsa"), alice)).await;
        let problem = confused.refused(401, "unauthenticated", None);
        assert!(problem["detail"].as_str().unwrap().contains("(alg)"), "{problem}");

        // The keys change: the new one is good soon, the old one is not any more.
        issuer.publish(&["ec"]);
        let new = signed_by("ec", Some("ec"), alice);
        until("the new key is known", async || (ask(&new).await.status == 200).then_some(())).await;
        ask(&old).await.refused(401, "unauthenticated", None);

        // Whatever is asked for, the issuer is not.
        for number in 0..50 {
            let named = format!("no-{number}");
            ask(&signed_by("ec", Some(&named), alice)).await.refused(401, "unauthenticated", None);
        }
        let most = nodes * (1 + issuer.started.elapsed().as_secs() as usize / 3);
        assert!(issuer.fetched() <= most, "{} of {most}", issuer.fetched());

        // The issuer goes mad, and away: the keys there are stay good; of others nothing is known.
        for (status, body) in [
            (StatusCode::OK, r#"{"keys":[]}"#.to_owned()),
            (StatusCode::BAD_GATEWAY, json!({ "keys": [jwk("rsa")] }).to_string()),
            (
                StatusCode::OK,
                format!(r#"{{"keys":[{}],"x":"{}"}}"#, jwk("rsa"), "x".repeat(300_000)),
            ),
        ] {
            issuer.answer(status, &body);
            until("the issuer's fault is seen", async || {
                (ask(&old).await.status == 503).then_some(())
            })
            .await;
            assert_eq!(ask(&new).await.status, 200);
            ask(&old).await.refused(503, "unavailable", None);
            issuer.publish(&["ec"]);
            until("the issuer is back", async || (ask(&old).await.status == 401).then_some(()))
                .await;
        }
        issuer.stop.cancel();
        until("nobody is there", async || (ask(&old).await.status == 503).then_some(())).await;
        assert_eq!(ask(&new).await.status, 200);
        let mut socket = open(cluster, 1, with_token(&new)).await;
        assert_eq!(socket.hello["user_id"], alice.to_string());
        socket.drain().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_anew_when_they_change_embedded() {
    rotation(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_anew_when_they_change_cluster() {
    rotation(Kind::Cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_there_are_no_tickets_and_nobody_is_said_to_be_cut_off() {
    let Some(mut redis) = OwnRedis::start().await else { return };
    let url = redis.config().url;
    let settings = [("REDIS_URL", url.as_str()), ("ADMIN_ADDR", "127.0.0.1:0")];
    run(Kind::Cluster, &settings, async |cluster| {
        let alice = user();
        let made = ticket(&cluster.rest(0, alice)).await;
        // Who reads Redis's memory holds no ticket.
        let keys: Vec<String> = redis.command(&["KEYS", "*:ticket:*"]).await;
        assert_eq!(keys.len(), 1);
        assert!(keys[0].starts_with(cluster.ground.setting("REDIS_PREFIX")), "{keys:?}");
        assert!(!keys[0].contains(&made));
        let life: i64 = redis.command(&["PTTL", &keys[0]]).await;
        assert!((1..=30_000).contains(&life), "{life} ms");
        redis.kill();
        let refused = cluster.rest(0, alice).post("/api/v1/ws-tickets", json!({})).await;
        assert!(refused.header("retry-after").is_some());
        refused.refused(503, "unavailable", None);
        let opening = with_ticket(&made);
        let refused = Client::handshake(cluster.addr(1), opening).await.err().expect("refused");
        assert_eq!((refused.status, &refused.problem["code"]), (503, &json!("unavailable")));
        let admin = Rest::new(cluster.admin_addr(0).expect("an admin door"), None);
        let refused = admin.post("/admin/v1/disconnect", json!({ "user_id": alice })).await;
        refused.refused(503, "unavailable", None);
        redis.start_again().await;
        let back = until("there are tickets again", async || {
            let made = cluster.rest(0, alice).post("/api/v1/ws-tickets", json!({})).await;
            (made.status == 201).then(|| made.json()["ticket"].as_str().unwrap().to_owned())
        })
        .await;
        until("sockets open again", async || cluster.node(1).bus.is_whole().then_some(())).await;
        open(cluster, 1, with_ticket(&back)).await;
    })
    .await;
}
