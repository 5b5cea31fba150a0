//! What many users missed.

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::messages::MessageRow;
use super::sql::{self, hex, json};
use super::{Sqlite, error};
use crate::ids::{ConversationId, Seq, UserId};
use crate::protocol::model::{Conversation, Message};
use crate::store::types::{Head, Heads, LogPage, LogPart, PageWanted, Span};
use crate::store::{HEADS, Result, StoreError};

#[derive(FromRow)]
struct HeadRow {
    conversation_id: Uuid,
    last_seq: Seq,
    left_seq: Option<Seq>,
    history_from_seq: Seq,
    member_count: i32,
}

/// A message of a page, or that there is none.
struct PageRow {
    ord: i64,
    left_seq: Option<Seq>,
    pending: Option<String>,
    part: LogPart,
    message: Option<MessageRow>,
}

impl<'r> FromRow<'r, SqliteRow> for PageRow {
    fn from_row(row: &'r SqliteRow) -> sqlx::Result<Self> {
        let message: Option<Uuid> = row.try_get("id")?;
        Ok(Self {
            ord: row.try_get("ord")?,
            left_seq: row.try_get("left_seq")?,
            pending: row.try_get("pending")?,
            part: LogPart {
                last_seq: row.try_get("last_seq")?,
                history_from_seq: row.try_get("history_from_seq")?,
                info_head: row.try_get("info_head")?,
                messages: Vec::new(),
                next_seq: row.try_get("upto")?,
                pending: Vec::new(),
            },
            message: message.map(|_| MessageRow::from_row(row)).transpose()?,
        })
    }
}

impl Sqlite {
    /// A statement for each span: they cost no round trip here.
    pub async fn sync_heads(&self, spans: &[Span]) -> Result<Vec<Heads>> {
        let mut tx = self.snapshot().await?;
        let mut all = Vec::with_capacity(spans.len());
        for span in spans {
            let rows: Vec<HeadRow> = sqlx::query_as(sql::SYNC_HEADS)
                .bind(span.user_id.0)
                .bind(span.after.map_or(Uuid::nil(), |id| id.0))
                .bind(span.to.map_or(Uuid::max(), |id| id.0))
                .bind(HEADS as i64 + 1)
                .fetch_all(&mut *tx)
                .await
                .map_err(error::of)?;
            let goes_on = rows.len() > HEADS;
            let heads = rows.into_iter().take(HEADS).map(|row| Head {
                conversation_id: ConversationId(row.conversation_id),
                last_seq: row.last_seq,
                left_seq: row.left_seq,
                history_from_seq: row.history_from_seq,
                member_count: row.member_count,
            });
            let heads: Vec<_> = heads.collect();
            let last = heads.last().map(|head| head.conversation_id);
            all.push(Heads { heads, up_to: last.filter(|_| goes_on) });
        }
        Ok(all)
    }

    pub async fn sync_pages(&self, wanted: &[PageWanted]) -> Result<Vec<LogPage>> {
        let room = wanted.iter().map(|page| page.room).max().unwrap_or_default();
        let questions = wanted
            .iter()
            .map(|page| (hex(page.user_id.0), hex(page.conversation_id.0), page.since));
        // One statement is one snapshot.
        let rows: Vec<PageRow> = sqlx::query_as(sql::SYNC_PAGES)
            .bind(json(questions))
            .bind(room)
            .fetch_all(&self.readers)
            .await
            .map_err(error::of)?;
        let mut pages = vec![LogPage::Gone { left_seq: None }; wanted.len()];
        for row in rows {
            let place = usize::try_from(row.ord).unwrap_or(usize::MAX);
            let Some(page) = pages.get_mut(place) else { continue };
            if row.left_seq.is_some() {
                *page = LogPage::Gone { left_seq: row.left_seq };
                continue;
            }
            if let LogPage::Gone { .. } = page {
                let pending = row.pending.as_deref().map(serde_json::from_str).transpose();
                let pending = pending.map_err(|_| {
                    let id = wanted[place].conversation_id.to_string();
                    StoreError::Corrupt { table: "messages", column: "seq", id }
                })?;
                *page = LogPage::Part(LogPart { pending: pending.unwrap_or_default(), ..row.part });
            }
            if let (LogPage::Part(part), Some(message)) = (page, row.message) {
                part.messages.push(Message::try_from(message)?);
            }
        }
        for (page, wanted) in pages.iter_mut().zip(wanted) {
            if let LogPage::Part(part) = page
                && part.messages.len() > wanted.room as usize
            {
                part.cut(wanted.since, wanted.room as usize);
            }
        }
        Ok(pages)
    }

    pub async fn sync_conversations(
        &self,
        wanted: &[(UserId, ConversationId)],
    ) -> Result<Vec<Option<Conversation>>> {
        let mut tx = self.snapshot().await?;
        let mut shown = Vec::with_capacity(wanted.len());
        for (user, id) in wanted {
            shown.push(super::conversations::of_member(&mut tx, *user, *id).await?);
        }
        Ok(shown)
    }
}
