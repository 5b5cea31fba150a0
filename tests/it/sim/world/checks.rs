//! What must hold, at any time and at rest.

use std::time::Duration;

use serde_json::Value;
use sqlx::SqliteConnection;
use tidings::ids::{ConversationId, Seq, UserId};
use tidings::protocol::model::Message;
use tidings::ws::Node;
use uuid::Uuid;

use super::{Life, SLICE, World};

/// Beyond all graces, leases and back-offs.
const REST: Duration = Duration::from_secs(300);

impl World {
    /// What must hold at any time.
    pub(super) async fn check(&mut self, node: &Node, sql: &mut SqliteConnection) {
        type Row = (Uuid, Uuid, Seq, Seq, Seq, Seq);
        let rows: Vec<Row> = sqlx::query_as(
            "select conversation_id, user_id, joined_seq, delivered_seq, read_seq, settled_seq \
             from participants where left_seq is null",
        )
        .fetch_all(sql)
        .await
        .unwrap();
        self.read_offline();
        for (id, user, joined, delivered, read, settled) in rows {
            let (id, user) = (ConversationId(id), UserId(user));
            let up_to = settled.max(delivered);
            assert_eq!(self.missed(id, user, joined, up_to), None, "{user} in {id}, up to {up_to}");
            assert_eq!(read, self.reads[&(id, user)], "{user} has read up to there in {id}");
            assert!(read <= delivered && up_to <= self.logs[&id].last_seq);
            let from =
                self.logs[&id].member(user).expect("a present member").history_from.max(read + 1);
            let unread = self.logs[&id]
                .messages
                .values()
                .filter(|said| said.seq >= from && said.sender != user && said.content.is_some());
            let unread = unread.count().min(100) as i64;
            let shown = node.store.conversation(user, id).await.unwrap().expect("he is a member");
            assert_eq!(shown.unread_count, Some(unread), "unread by {user} in {id}");
        }
    }

    /// The first message up to there that is no device's, nor handed over.
    fn missed(&self, id: ConversationId, user: UserId, joined: Seq, up_to: Seq) -> Option<Seq> {
        let owed = self.logs[&id].messages.iter().filter(|(_, said)| {
            said.sender != user && said.content.is_some() && joined < said.seq && said.seq <= up_to
        });
        let missed = owed.filter(|(message, _)| {
            let of = (user, **message);
            !self.proven.contains(&of) && !self.offline.0.contains(&of)
        });
        missed.map(|(_, said)| said.seq).min()
    }

    /// What has come since; each record is of those who may see it.
    fn read_offline(&mut self) {
        let text = std::fs::read(self.folder.path().join("offline.jsonl")).unwrap();
        let whole = text[self.offline.1..].split_inclusive(|byte| *byte == b'\n');
        for line in whole.filter(|line| line.ends_with(b"\n")) {
            self.offline.1 += line.len();
            let record: Value = serde_json::from_slice(line).unwrap();
            let value = &record["value"];
            let message: Message = serde_json::from_value(value["message"].clone()).unwrap();
            let seq = value["change_seq"].as_i64().unwrap();
            for recipient in value["recipients"].as_array().unwrap() {
                let user = serde_json::from_value(recipient["user_id"].clone()).unwrap();
                let stays = self.stays.of(message.conversation_id, user);
                let seen = stays.iter().any(|stay| stay.sees(seq, message.seq));
                assert!(seen && user != message.sender_id, "not for {user}: {record}");
                self.offline.0.insert((user, message.id));
            }
        }
    }

    /// Time passes until nothing is owed any more; then all read what they missed.
    pub fn end(mut self) {
        let mut life = self.life.take().expect("it lives");
        let Life { runtime, node, sql, .. } = &mut life;
        runtime.block_on(async {
            let mut waited = Duration::ZERO;
            loop {
                self.pass(node, sql, SLICE * 4).await;
                let (outbox, _) = node.store.outbox_state().await.unwrap();
                let (laggards, _) = node.store.laggards_state().await.unwrap();
                if (outbox, laggards) == (0, 0) && node.write_path.proofs.is_empty() {
                    break;
                }
                waited += SLICE * 4;
                assert!(waited < REST, "not at rest: {outbox} in the outbox, {laggards} laggards");
            }
            self.check(node, sql).await;
            for (id, log) in &self.logs {
                for user in log.present() {
                    let joined = self.stays.of(*id, user).last().expect("he stays").joined;
                    let missed = self.missed(*id, user, joined, log.last_seq);
                    assert_eq!(missed, None, "{user} was not told in {id}");
                }
            }
            for client in &mut self.clients {
                client.device.catch_up(&node.syncs, &self.logs, &mut self.random).await;
            }
            let broken = node.store.verify(Duration::ZERO).await.unwrap();
            assert!(broken.iter().all(|verdict| verdict.broken.is_empty()), "{broken:?}");
        });
        self.stop(life);
    }
}
