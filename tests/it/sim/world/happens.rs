//! What happens, to the node and to the model.

use std::sync::Arc;

use sqlx::SqliteConnection;
use tidings::clock::Timestamp;
use tidings::ids::{ConversationId, MessageId, OutboxId, Seq, UserId};
use tidings::protocol::code::{CloseCode, Code};
use tidings::protocol::command::EditMessage;
use tidings::protocol::model::{Kind, Message, MessageType, ReceiptKind};
use tidings::store::types::{
    Amendment, Change, NewMessage, OutboxLease, Receipt, SendOutcome, Stored,
};
use tidings::telemetry::traces::Trace;
use tidings::write_path::Sent;
use tidings::ws::Node;
use tokio::sync::oneshot;

use super::{CLIENTS, PEOPLE, SLICE, Send, World, submit};
use crate::model::{Log, Said, said};
use crate::sim::What;
use crate::sim::client::Client;

const GROUPS: usize = 4;

impl World {
    pub(super) async fn happens(
        &mut self,
        node: &Arc<Node>,
        sql: &mut SqliteConnection,
        what: What,
        a: usize,
        b: usize,
    ) {
        let owner = self.people[0];
        let id = self.logs.keys().nth(a % self.logs.len().max(1)).copied();
        let person = self.people[b % PEOPLE];
        match (what, id) {
            (What::Group, _) => self.group(node, a).await,
            (What::Say, Some(id)) => {
                let writers = self.logs[&id].writers();
                let by = writers[b % writers.len()];
                let send = self.new_send(id, by);
                self.say(node, send, !b.is_multiple_of(3)).await;
            }
            (What::Again, _) => self.again(node, a, b.is_multiple_of(3)).await,
            (What::Edit | What::Delete, Some(id)) => {
                let deletes = matches!(what, What::Delete);
                let own = self.logs[&id].own(deletes);
                if !own.is_empty() {
                    let (message, by) = own[b % own.len()];
                    self.amend(node, id, message, by, deletes).await;
                }
            }
            (What::Join, Some(id)) if self.logs[&id].member(person).is_none() => {
                let (user_ids, with_history) = (vec![person], a.is_multiple_of(2));
                let change = Change::AddMembers { by: owner, user_ids, with_history };
                let seq = self.change(node, id, change).await;
                let log = self.logs.get_mut(&id).expect("it is one of them");
                log.join(person, seq, with_history);
                self.stays.begin(id, person, seq, log.members[&person].history_from);
                self.reads.insert((id, person), seq);
            }
            (What::Leave, Some(id))
                if person != owner && self.logs[&id].member(person).is_some() =>
            {
                let by = if a.is_multiple_of(2) { owner } else { person };
                let seq = self.change(node, id, Change::RemoveMember { by, user_id: person }).await;
                self.logs.get_mut(&id).expect("it is one of them").leave(person, seq);
                let stays = self.stays.0.get_mut(&(id, person)).expect("he stayed");
                stays.last_mut().expect("he stayed").left = Some(seq);
            }
            (What::Title, Some(id)) => {
                let title = Some(self.text());
                let change = Change::SetTitle { by: owner, title: title.clone() };
                let seq = self.change(node, id, change).await;
                let log = self.logs.get_mut(&id).expect("it is one of them");
                log.take_info(seq);
                log.title = title;
            }
            (What::Rights, Some(id))
                if person != owner && self.logs[&id].member(person).is_some() =>
            {
                let can_send = !self.logs[&id].members[&person].can_send;
                let change = Change::SetMember {
                    by: owner,
                    user_id: person,
                    role: None,
                    can_send_messages: Some(can_send),
                    muted_until: None,
                };
                let seq = self.change(node, id, change).await;
                let log = self.logs.get_mut(&id).expect("it is one of them");
                log.take_info(seq);
                log.members.get_mut(&person).expect("he is one").can_send = can_send;
            }
            (What::Read, Some(id)) => self.receive(node, id, person, ReceiptKind::Read).await,
            (What::Delivered, Some(id)) => {
                self.receive(node, id, person, ReceiptKind::Delivered).await;
            }
            (What::Orphan, Some(id)) => self.orphan(node, id, 1 + b % 3).await,
            (What::Pass, _) => {
                let time = [SLICE, SLICE * 3, SLICE * 12, SLICE * 60][a % 4];
                self.pass(node, sql, time).await;
                self.check(node, sql).await;
            }
            (what, _) => self.client(node, what, a, b).await,
        }
        self.calm(node).await;
    }

    /// What one client does, or what happens to it.
    async fn client(&mut self, node: &Arc<Node>, what: What, a: usize, b: usize) {
        let client = &mut self.clients[a % CLIENTS];
        match (what, &mut client.socket) {
            (What::Open, None) => {
                client.open(node).await;
                // Some read at once, others as it happens.
                while b.is_multiple_of(3) && client.sync(node, &self.logs, &mut self.random).await {
                }
            }
            (What::Close, Some(_)) => {
                let code = if b.is_multiple_of(2) { CloseCode::Normal } else { CloseCode::Lost };
                client.leave(node, code).await;
            }
            (What::Stall, Some(socket)) => socket.stalled = !socket.stalled,
            (What::Slow, Some(socket)) => socket.slow = !socket.slow,
            (What::Mute, Some(socket)) => socket.mute = !socket.mute,
            (What::Lose, Some(socket)) => {
                socket.deaf = !socket.deaf;
                match socket.deaf {
                    true => node.hub.remove(&socket.session),
                    false => drop(node.hub.insert(socket.session.clone())),
                }
            }
            (What::Sync, socket) if socket.as_ref().is_none_or(|socket| !socket.stalled) => {
                client.sync(node, &self.logs, &mut self.random).await;
            }
            _ => {}
        }
    }

    async fn group(&mut self, node: &Node, which: usize) {
        if self.logs.len() == GROUPS {
            return;
        }
        let owner = self.people[0];
        let others = (1..PEOPLE).filter(|n| which >> (n - 1) & 1 == 1);
        let others: Vec<_> = others.map(|n| self.people[n]).collect();
        let members = others.clone();
        let change = Change::Create { kind: Kind::Group, title: None, created_by: owner, members };
        let id = ConversationId::random();
        node.write_path.change(id, change).await.expect("it is made");
        for user in others.iter().chain([&owner]) {
            self.stays.begin(id, *user, 1, 1);
            self.reads.insert((id, *user), 1);
        }
        self.logs.insert(id, Log::new(owner, &others));
    }

    async fn change(&mut self, node: &Node, id: ConversationId, change: Change) -> Seq {
        node.write_path.change(id, change).await.expect("it is allowed");
        self.logs[&id].last_seq + 1
    }

    async fn say(&mut self, node: &Node, send: Send, by_socket: bool) {
        let open = |client: &&mut Client| client.user() == send.by && client.socket.is_some();
        let client = self.clients.iter_mut().find(open).filter(|_| by_socket);
        let session = client.as_ref().and_then(|client| client.socket.as_ref());
        let origin = session.map(|socket| socket.session.id);
        let sent = submit(node, &send, origin).await.unwrap().expect("he may write");
        let Sent::Created(message) = sent else { panic!("it is new: {sent:?}") };
        let log = self.logs.get_mut(&send.conversation_id).expect("it is one of them");
        log.take(message.seq);
        log.messages.insert(message.id, said(&message));
        if let Some(client) = client {
            client.on_message(&message, message.seq, &self.logs, &self.stays);
        }
        self.sent.push((send, message.id));
    }

    /// Whatever became of the message, and of its sender's rights.
    async fn again(&mut self, node: &Node, which: usize, changed: bool) {
        let Some((send, id)) = self.sent.get(which % self.sent.len().max(1)) else { return };
        let content = if changed { "another body".into() } else { send.content.clone() };
        let send = Send { content, ..send.clone() };
        match submit(node, &send, None).await.unwrap() {
            Ok(Sent::Repeated(message)) if !changed => assert_eq!(message.id, *id),
            Err(problem) if changed => assert_eq!(problem.code, Code::IdempotencyMismatch),
            other => panic!("sent again, changed: {changed}: {other:?}"),
        }
    }

    async fn amend(
        &mut self,
        node: &Node,
        id: ConversationId,
        message_id: MessageId,
        by: UserId,
        deletes: bool,
    ) {
        let content = (!deletes).then(|| self.text());
        let edit = |content| EditMessage { content, mentions: None, metadata: None };
        let amendment = Amendment { by, message_id, edit: content.clone().map(edit) };
        let (reply, outcome) = oneshot::channel();
        let answer = Box::new(|result| drop(reply.send(result)));
        node.write_path.amend(amendment, None, &Trace::default(), answer);
        let message: Arc<Message> = outcome.await.unwrap().expect("it is his");
        let log = self.logs.get_mut(&id).expect("it is one of them");
        log.amend(message_id, message.change_seq, content);
    }

    async fn receive(
        &mut self,
        node: &Node,
        id: ConversationId,
        user_id: UserId,
        kind: ReceiptKind,
    ) {
        let messages: Vec<_> =
            self.logs[&id].messages.iter().map(|(id, said)| (*id, said.seq)).collect();
        let Some((message_id, seq)) = self.random.one(&messages) else { return };
        let (reply, outcome) = oneshot::channel();
        let receipt = Receipt { user_id, message_id, kind };
        node.write_path.receive(receipt, None, Box::new(|result| drop(reply.send(result))));
        let told = outcome.await.unwrap();
        let log = &self.logs[&id];
        let sees = log.member(user_id).is_some_and(|member| member.history_from <= seq);
        assert_eq!(told.map_err(|problem| problem.code), sees.then_some(()).ok_or(Code::NotFound));
        if !sees {
            return;
        }
        let before = log.messages.iter().filter(|(_, said)| said.seq <= seq);
        self.proven.extend(before.map(|(id, _)| (user_id, *id)));
        if kind == ReceiptKind::Read {
            let read = self.reads.get_mut(&(id, user_id)).expect("he is a member");
            *read = seq.max(*read);
        }
    }

    async fn orphan(&mut self, node: &Node, conversation_id: ConversationId, count: usize) {
        let by = self.random.one(&self.logs[&conversation_id].writers()).expect("the owner may");
        let batch: Vec<_> = (0..count)
            .map(|_| NewMessage {
                id: MessageId::new(conversation_id, Timestamp::now()),
                conversation_id,
                sender_id: by,
                client_message_id: None,
                body_hash: [7; 32],
                message_type: MessageType::Text,
                content: self.text(),
                parent_message_id: None,
                mentions: None,
                metadata: None,
            })
            .collect();
        let lease = OutboxLease { id: OutboxId::random(), lease: SLICE };
        let outcomes = node.store.writer().send(&batch, lease).await.unwrap();
        let log = self.logs.get_mut(&conversation_id).expect("it is one of them");
        for (message, outcome) in batch.into_iter().zip(outcomes) {
            let SendOutcome::Stored(Stored { seq, .. }) = outcome else { panic!("{outcome:?}") };
            log.take(seq);
            let content = Some(message.content);
            log.messages.insert(message.id, Said { sender: by, seq, change_seq: seq, content });
        }
    }
}
