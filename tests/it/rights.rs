//! Who may do what: every operation, by everyone, in one table. Over REST, and by the command of the
//! same meaning where there is one.

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client::{Answer, Client, Opening};
use crate::harness::cluster::{Cluster, id, text, user};
use crate::harness::http::Rest;
use crate::harness::scenarios;
use crate::identity::{in_seconds, token, token_until};

scenarios! {
    everyone_gets_the_answer_of_the_table
        ["AUTH_MODE" = "jwt", "JWT_KEY" = "an HMAC secret of exactly 34 bytes"],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Owner,
    Admin,
    Member,
    /// A member without `can_send_messages`.
    Muted,
    Former,
    Stranger,
    Anonymous,
    /// The owner, with a token that has ended.
    Expired,
}

const ROLES: [Role; 8] = [
    Role::Owner,
    Role::Admin,
    Role::Member,
    Role::Muted,
    Role::Former,
    Role::Stranger,
    Role::Anonymous,
    Role::Expired,
];

/// The statuses, in the order of the roles.
type Row = [u16; 8];

const ALL: Row = [200, 200, 200, 200, 200, 200, 401, 401];
const CREATED: Row = [201, 201, 201, 201, 201, 201, 401, 401];
const MEMBERS: Row = [200, 200, 200, 200, 404, 404, 401, 401];
const MEMBERS_SILENT: Row = [204, 204, 204, 204, 404, 404, 401, 401];
const CHIEFS: Row = [200, 200, 403, 403, 404, 404, 401, 401];
const CHIEFS_SILENT: Row = [204, 204, 403, 403, 404, 404, 401, 401];
const OWNER: Row = [200, 403, 403, 403, 404, 404, 401, 401];
const OWNER_SILENT: Row = [204, 403, 403, 403, 404, 404, 401, 401];
const NOBODY: Row = [403, 403, 403, 403, 404, 404, 401, 401];

/// In paths, bodies and payloads: `{c}` the conversation, `{m}` a message of another member, `{v}`
/// that member, `{o}` the owner, `{me}` oneself, `{n}` somebody new.
struct Operation {
    call: &'static str,
    body: &'static str,
    expected: Row,
    /// The command of the same meaning; its payload is the body if it has none of its own.
    command: Option<(&'static str, &'static str)>,
}

fn operation(call: &'static str, body: &'static str, expected: Row) -> Operation {
    Operation { call, body, expected, command: None }
}

impl Operation {
    fn or(self, command: &'static str, payload: &'static str) -> Self {
        Self { command: Some((command, payload)), ..self }
    }
}

fn table() -> Vec<Operation> {
    const WRITERS: Row = [201, 201, 201, 403, 404, 404, 401, 401];
    const WRITERS_SILENT: Row = [204, 204, 204, 403, 404, 404, 401, 401];
    const SEND: &str = r#"{"conversation_id":"{c}","message_type":"text","content":"x"}"#;
    const MESSAGE: &str = r#"{"message_id":"{m}"}"#;
    vec![
        operation("POST /api/v1/conversations", r#"{"kind":"group","participants":[]}"#, CREATED),
        operation("GET /api/v1/conversations", "", ALL),
        operation("GET /api/v1/conversations/{c}", "", MEMBERS),
        operation("PATCH /api/v1/conversations/{c}", r#"{"title":"New"}"#, CHIEFS),
        operation("GET /api/v1/conversations/{c}/participants", "", MEMBERS),
        operation("POST /api/v1/conversations/{c}/participants", r#"{"user_ids":["{n}"]}"#, CHIEFS),
        operation("PATCH /api/v1/conversations/{c}/participants/{v}", r#"{"role":"admin"}"#, OWNER),
        operation(
            "PATCH /api/v1/conversations/{c}/participants/{v}",
            r#"{"can_send_messages":false}"#,
            CHIEFS,
        ),
        operation(
            "PATCH /api/v1/conversations/{c}/participants/{o}",
            r#"{"can_send_messages":false}"#,
            OWNER,
        ),
        operation(
            "PATCH /api/v1/conversations/{c}/participants/{v}",
            r#"{"muted_until":"2099-01-01T00:00:00Z"}"#,
            NOBODY,
        ),
        operation(
            "PATCH /api/v1/conversations/{c}/participants/{me}",
            r#"{"muted_until":"2099-01-01T00:00:00Z"}"#,
            MEMBERS,
        ),
        operation("DELETE /api/v1/conversations/{c}/participants/{v}", "", CHIEFS_SILENT),
        operation("DELETE /api/v1/conversations/{c}/participants/{o}", "", OWNER_SILENT),
        operation("DELETE /api/v1/conversations/{c}/participants/{me}", "", MEMBERS_SILENT),
        operation("POST /api/v1/messages", SEND, WRITERS).or("send_message", ""),
        operation("GET /api/v1/conversations/{c}/messages", "", MEMBERS),
        operation("GET /api/v1/messages/{m}", "", MEMBERS),
        operation("GET /api/v1/messages/{m}/edits", "", MEMBERS),
        operation("GET /api/v1/messages/{m}/receipts", "", MEMBERS),
        operation("PUT /api/v1/messages/{m}", r#"{"content":"y"}"#, NOBODY)
            .or("edit_message", r#"{"message_id":"{m}","content":"y"}"#),
        operation("DELETE /api/v1/messages/{m}", "", NOBODY).or("delete_message", MESSAGE),
        operation("POST /api/v1/messages/{m}/read", "", MEMBERS_SILENT).or("read_receipt", MESSAGE),
        operation("POST /api/v1/messages/{m}/delivered", "", MEMBERS_SILENT),
        operation("POST /api/v1/conversations/{c}/typing", r#"{"is_typing":true}"#, WRITERS_SILENT)
            .or("typing", r#"{"conversation_id":"{c}","is_typing":true}"#),
        // What is not one's own is left out, or gone.
        operation("POST /api/v1/sync", r#"{"conversations":{"{c}":1}}"#, ALL).or("sync", ""),
        operation("GET /api/v1/presence?user_ids={v}", "", ALL)
            .or("watch_presence", r#"{"user_ids":["{v}"]}"#),
        operation("POST /api/v1/ws-tickets", "", CREATED),
        operation("POST /admin/v1/disconnect", r#"{"user_id":"{v}"}"#, [404; 8]),
        operation("GET /health", "", [200; 8]),
        operation("GET /openapi.json", "", [200; 8]),
    ]
}

/// A conversation with one of each.
struct Stage {
    conversation: Uuid,
    message: Uuid,
    owner: Uuid,
    /// Who wrote the message.
    author: Uuid,
    people: [Uuid; 8],
}

fn rest(cluster: &Cluster, at: usize, bearer: &str) -> Rest {
    Rest::new(cluster.addr(at), None).with("authorization", &format!("Bearer {bearer}"))
}

impl Stage {
    async fn new(cluster: &Cluster) -> Self {
        let [owner, admin, member, muted, former, stranger, author] =
            std::array::from_fn(|_| user());
        let by_owner = rest(cluster, 0, &token(owner));
        let body =
            json!({ "kind": "group", "participants": [admin, member, muted, former, author] });
        let conversation = by_owner.post("/api/v1/conversations", body).await.body(201);
        let conversation = id(&conversation["id"]);
        let participant =
            |who: Uuid| format!("/api/v1/conversations/{conversation}/participants/{who}");
        by_owner.patch(&participant(admin), json!({ "role": "admin" })).await.body(200);
        let body = json!({ "can_send_messages": false });
        by_owner.patch(&participant(muted), body).await.body(200);
        assert_eq!(by_owner.delete(&participant(former)).await.status, 204);
        let sent = rest(cluster, 1, &token(author))
            .post("/api/v1/messages", text(conversation, "hello"))
            .await
            .body(201);
        let people = [owner, admin, member, muted, former, stranger, owner, owner];
        Self { conversation, message: id(&sent["id"]), owner, author, people }
    }

    fn fill(&self, template: &str, me: Uuid) -> String {
        let new = user();
        let names = [
            ("{c}", self.conversation),
            ("{m}", self.message),
            ("{v}", self.author),
            ("{o}", self.owner),
            ("{me}", me),
            ("{n}", new),
        ];
        names
            .iter()
            .fold(template.to_owned(), |text, (name, id)| text.replace(name, &id.to_string()))
    }
}

async fn everyone_gets_the_answer_of_the_table(cluster: &Cluster) {
    for operation in table() {
        let asked = ROLES.iter().enumerate().map(|(at, role)| ask(cluster, &operation, at, *role));
        let wrong: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", operation.call);
    }
}

/// Asks on a stage of its own, so that nobody's doing changes what another gets; returns what is not
/// as the table says.
async fn ask(cluster: &Cluster, operation: &Operation, at: usize, role: Role) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = operation.expected[at];
    let stage = Stage::new(cluster).await;
    let me = stage.people[at];
    let caller = match role {
        Role::Anonymous => Rest::new(cluster.addr(1), None),
        Role::Expired => rest(cluster, 1, &token_until(me, in_seconds(-60))),
        _ => rest(cluster, 1, &token(me)),
    };
    let (method, path) = operation.call.split_once(' ').unwrap();
    let body = stage.fill(operation.body, me);
    let reply = caller.call(method, &stage.fill(path, me), &body).await;
    if reply.status != expected {
        wrong.push(format!("{role:?}: {} instead of {expected}: {}", reply.status, reply.text));
    }
    if [Role::Anonymous, Role::Expired].contains(&role) {
        return wrong;
    }
    let Some((command, payload)) = operation.command else { return wrong };
    let stage = Stage::new(cluster).await;
    let me = stage.people[at];
    let headers = vec![("authorization", format!("Bearer {}", token(me)))];
    let opening = Opening { headers, ..Opening::new(me) };
    let mut socket = Client::open(cluster.addr(1), opening).await.expect("the socket opens");
    let payload = if payload.is_empty() { operation.body } else { payload };
    let payload: Value = serde_json::from_str(&stage.fill(payload, me)).unwrap();
    let status = match socket.command(command, payload).await {
        Answer::Ok(_) => 200,
        Answer::Error(problem) => problem["status"].as_u64().unwrap() as u16,
    };
    // The commands' successes have one form.
    let expected = if expected < 300 { 200 } else { expected };
    if status != expected {
        wrong.push(format!("{role:?} by {command}: {status} instead of {expected}"));
    }
    wrong
}
