//! Commands about what is told and not stored.

use std::sync::Arc;

use serde_json::json;

use super::Node;
use super::commands::finish;
use super::handle::Session;
use crate::protocol::answer::PresenceList;
use crate::protocol::code::Code;
use crate::protocol::command::{Typing, WatchPresence};
use crate::protocol::problem::Problem;

pub async fn typing(
    command: Typing,
    reference: Option<String>,
    size: usize,
    session: &Arc<Session>,
    node: &Arc<Node>,
) {
    let reserved = session.reserve(size).await;
    let answered = session.clone();
    let reply = Box::new(move |result: Result<(), Problem>| {
        finish(&answered, reserved, reference.as_deref(), result.as_ref().map(|()| json!({})));
    });
    node.typing.tell(session.user_id, command, reply);
}

pub async fn watch(
    command: WatchPresence,
    reference: Option<String>,
    size: usize,
    session: &Arc<Session>,
    node: &Arc<Node>,
) {
    // What is known of them is larger than their names: each with his devices.
    let reserved = session.reserve(size * 4).await;
    if session.classic {
        let detail = "only sockets that offered tidings.v1.json are told who comes and goes";
        let problem = Problem::new(Code::Forbidden, detail);
        return finish(session, reserved, reference.as_deref(), Err::<(), _>(&problem));
    }
    let answered = session.clone();
    let reply = Box::new(move |result: Result<Vec<_>, Problem>| {
        let payload = result.map(|presence| PresenceList { presence });
        finish(&answered, reserved, reference.as_deref(), payload.as_ref());
    });
    node.watch.replace(session, command.user_ids, reply);
}
