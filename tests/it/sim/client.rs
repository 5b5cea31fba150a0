//! A client: what it holds, and its session while it is connected.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use fastwebsockets::OpCode;
use futures_util::FutureExt;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use serde_json::Value;
use tidings::auth::Handshake;
use tidings::clock::Timestamp;
use tidings::ids::{ConversationId, DeviceId, MessageId, Seq, UserId};
use tidings::protocol::code::CloseCode;
use tidings::protocol::command::Ack;
use tidings::protocol::event;
use tidings::protocol::model::{Conversation, Message};
use tidings::protocol::sync::covered;
use tidings::ws::Node;
use tidings::ws::handle::{Opening, Session};
use tidings::ws::outbound::{Class, Item, Place};

use super::world::Stays;
use crate::fuzz::Random;
use crate::model::{Device, Held, Logs, info, read, said};

pub struct Client {
    name: DeviceId,
    /// Proves what it holds by `ack`.
    acks: bool,
    pub device: Device,
    pub socket: Option<Socket>,
    /// An event has left a gap, or it was told to read.
    pub lacks: bool,
}

pub struct Socket {
    pub session: Arc<Session>,
    /// Nothing more can be written to it.
    pub stalled: bool,
    /// It reads a frame from time to time.
    pub slow: bool,
    pub mute: bool,
    /// What is published is lost on its way here.
    pub deaf: bool,
    /// What is written and not yet read; lost with the connection.
    wire: VecDeque<(OpCode, Bytes)>,
    /// Messages that came, and are not said to have come yet.
    unproven: BTreeSet<MessageId>,
}

impl Client {
    pub fn new(user: UserId, number: usize) -> Self {
        let name = format!("device-{number}").parse().expect("a good name");
        let device = Device::new(user);
        Self { name, acks: number % 4 == 3, device, socket: None, lacks: false }
    }

    pub fn user(&self) -> UserId {
        self.device.user
    }

    /// As `ws::session` does it.
    pub async fn open(&mut self, node: &Node) {
        let user = HeaderValue::from_str(&self.user().to_string()).unwrap();
        let headers = HeaderMap::from_iter([("x-user-id".parse().unwrap(), user)]);
        let peer = std::net::Ipv4Addr::LOCALHOST.into();
        let identity = node.auth.identify(&headers, peer, Handshake::default()).await.unwrap();
        let opening = Opening {
            identity,
            device_id: Some(self.name.clone()),
            platform: None,
            app_version: None,
            classic: false,
            acks: self.acks,
        };
        let bounds = node.queue_bounds();
        let session = Arc::new(Session::new(opening, bounds, node.metrics.clone()));
        assert!(node.hub.insert(session.clone()).is_none());
        node.bus.subscribe(session.user_id).await.unwrap();
        let entry = session.entry(node.presence.node_id());
        node.presence.register(session.user_id, entry).await.unwrap();
        self.socket = Some(Socket {
            session,
            stalled: false,
            slow: false,
            mute: false,
            deaf: false,
            wire: VecDeque::new(),
            unproven: BTreeSet::new(),
        });
        self.device.after = None;
        self.lacks = true;
    }

    /// As `ws::session` does it.
    pub async fn leave(&mut self, node: &Node, code: CloseCode) {
        let Some(Socket { session, .. }) = self.socket.take() else { return };
        session.queue.end(code);
        node.hub.remove(&session);
        node.bus.unsubscribe(session.user_id);
        let code = session.queue.ended().unwrap_or(code);
        if code != CloseCode::Normal && code != CloseCode::Restart {
            node.write_path.hasten(session.user_id);
        }
        node.presence.remove(session.user_id, &session.device_id, session.id).await;
    }

    /// Writes what waits for it, as `ws::writer` does, and reads it; returns whether there was
    /// something. What it thereby proves to hold is added to `proven`.
    pub async fn pump(
        &mut self,
        node: &Node,
        logs: &Logs,
        stays: &Stays,
        proven: &mut BTreeSet<(UserId, MessageId)>,
    ) -> bool {
        let mut moved = false;
        while let Some(socket) = &mut self.socket {
            let session = &socket.session;
            if socket.stalled {
                if let Some(code) = session.queue.ended() {
                    self.leave(node, code).await;
                }
                break;
            }
            let Some(mut taken) = session.queue.take().now_or_never() else { break };
            moved = true;
            let asks = session.ask_for_proof(&mut taken.items);
            let written = taken.items.iter();
            socket.wire.extend(written.map(|item| (item.opcode, item.bytes.clone())));
            if asks {
                taken.items.pop_back();
            }
            session.release(session.queue.written(&taken.items));
            self.read_all(node, logs, stays, proven);
            if let Some(code) = taken.end {
                self.leave(node, code).await;
            }
        }
        moved | self.read_all(node, logs, stays, proven)
    }

    fn read_all(
        &mut self,
        node: &Node,
        logs: &Logs,
        stays: &Stays,
        proven: &mut BTreeSet<(UserId, MessageId)>,
    ) -> bool {
        let mut moved = false;
        while self.socket.as_ref().is_some_and(|socket| !socket.slow)
            && self.read(node, logs, stays, proven)
        {
            moved = true;
        }
        moved
    }

    /// Reads a frame, if there is one.
    pub fn read(
        &mut self,
        node: &Node,
        logs: &Logs,
        stays: &Stays,
        proven: &mut BTreeSet<(UserId, MessageId)>,
    ) -> bool {
        let next = self.socket.as_mut().and_then(|socket| socket.wire.pop_front());
        let Some((opcode, bytes)) = next else { return false };
        if opcode == OpCode::Text {
            self.on_event(&bytes, logs, stays);
        }
        let socket = self.socket.as_mut().expect("it is open");
        if socket.mute || opcode == OpCode::Text && !self.acks {
            return true;
        }
        let (session, user) = (socket.session.clone(), self.device.user);
        session.hear();
        proven.extend(std::mem::take(&mut socket.unproven).into_iter().map(|id| (user, id)));
        if opcode == OpCode::Ping {
            session.on_pong(&bytes, &node.write_path.proofs);
        }
        if self.acks {
            let held = self.device.copies.values().flat_map(|copy| copy.messages.keys());
            proven.extend(held.map(|id| (user, *id)));
            self.ack(&session, node);
        }
        true
    }

    fn ack(&self, session: &Session, node: &Node) {
        let held = self.device.copies.iter().filter(|(_, copy)| copy.cursor > 0);
        let conversations = held.map(|(id, copy)| (*id, copy.cursor)).collect();
        session.on_ack(&Ack { conversations }, &node.write_path.proofs);
    }

    fn on_event(&mut self, text: &[u8], logs: &Logs, stays: &Stays) {
        let mut frame: Value = serde_json::from_slice(text).expect("a frame is JSON");
        let kind = frame["type"].take();
        let mut payload = frame["payload"].take();
        let seq = payload["seq"].as_i64();
        match kind.as_str().expect("a frame has a type") {
            "new_message" | "message_updated" | "message_deleted" => {
                let message: Message = serde_json::from_value(payload["message"].take()).unwrap();
                self.on_message(&message, seq.unwrap(), logs, stays);
            }
            "conversation_updated" => {
                let updated = serde_json::from_value(payload["conversation"].take()).unwrap();
                self.on_conversation(&updated, seq.unwrap(), stays);
            }
            "resync" => self.lacks = true,
            // Of a page, those that it brought.
            "ok" => {
                let brought: Vec<MessageId> = serde_json::from_value(payload).unwrap();
                self.socket.as_mut().expect("it is open").unproven.extend(brought);
            }
            _ => {}
        }
    }

    pub fn on_message(&mut self, message: &Message, seq: Seq, logs: &Logs, stays: &Stays) {
        let (id, user) = (message.conversation_id, self.user());
        let seen = stays.of(id, user).iter().any(|stay| stay.sees(seq, message.seq));
        assert!(seen, "{user} gets {seq} of {id}, which is not his to see: {message:?}");
        let there = &logs[&id].messages[&message.id];
        if there.change_seq == message.change_seq {
            assert_eq!(said(message), *there);
        }
        self.socket.as_mut().expect("it is open").unproven.insert(message.id);
        let Some(copy) = self.at(id, seq) else { return };
        copy.proven.insert(message.seq);
        let newer = |held: &crate::model::Said| held.change_seq < message.change_seq;
        if message.seq >= copy.history_from && copy.messages.get(&message.id).is_none_or(newer) {
            copy.messages.insert(message.id, said(message));
        }
    }

    fn on_conversation(&mut self, conversation: &Conversation, seq: Seq, stays: &Stays) {
        let (id, user) = (conversation.id, self.user());
        let seen = stays.of(id, user).iter().any(|stay| stay.sees(seq, seq));
        assert!(seen, "{user} gets {seq} of {id}, which is not his to see");
        let told = info(conversation);
        let cursor = self.device.copies.get(&id).map_or(0, |copy| copy.cursor);
        if !told.1.contains_key(&user) {
            // Perhaps it is late, and he has come back since.
            if seq > cursor {
                self.device.copies.remove(&id);
                self.lacks = true;
            }
            return;
        }
        if let Some(copy) = self.at(id, seq).filter(|copy| copy.cursor == seq && cursor < seq) {
            copy.info = Some(told);
        }
    }

    /// The copy in which an event of this place belongs, moved on if it follows.
    fn at(&mut self, id: ConversationId, seq: Seq) -> Option<&mut Held> {
        let copy = self.device.copies.get_mut(&id).filter(|copy| copy.cursor > 0);
        let Some(copy) = copy else {
            self.lacks = true;
            return None;
        };
        if seq == copy.cursor + 1 {
            copy.cursor = seq;
        } else if seq > copy.cursor {
            self.lacks = true;
        }
        Some(copy)
    }

    /// A page of what it missed, by its socket if it has one. True if there is more to read.
    pub async fn sync(&mut self, node: &Node, logs: &Logs, random: &mut Random) -> bool {
        let (asked, bytes) = self.device.ask(random);
        let answer = read(&node.syncs, self.user(), asked.clone(), bytes).await;
        if let Some(socket) = &mut self.socket {
            let sent_at = Timestamp::now();
            let places = covered(&answer).into_iter();
            let places =
                places.map(|(conversation_id, lo, hi)| Place { conversation_id, lo, hi, sent_at });
            let messages = answer.conversations.iter().flat_map(|entry| &entry.messages);
            let frame = event::ok("sync", messages.map(|message| message.id).collect::<Vec<_>>());
            socket.session.push(Item::text(frame, Class::Page(places.collect())));
        }
        let goes_on = self.device.take(&asked, answer, logs);
        self.lacks = goes_on || self.device.copies.values().any(|copy| copy.cursor == 0);
        self.lacks
    }
}
