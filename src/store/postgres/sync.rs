//! What many users missed, read together.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::conversations::MineRow;
use super::messages::MessageRow;
use super::{Postgres, sql, uuids};
use crate::ids::{ConversationId, UserId};
use crate::protocol::model::{Conversation, Message};
use crate::store::types::{Head, Heads, LogPage, LogPart, PageWanted, Span};
use crate::store::{HEADS, MEMBERS_SHOWN, Result};

#[derive(FromRow)]
struct HeadRow {
    /// Its span's place, from 1.
    ord: i64,
    conversation_id: Uuid,
    last_seq: i64,
    left_seq: Option<i64>,
    history_from_seq: i64,
    member_count: i32,
}

/// A message of a page, or that there is none.
struct PageRow {
    /// The page's place, from 1.
    ord: i64,
    left_seq: Option<i64>,
    part: LogPart,
    message: Option<MessageRow>,
}

impl<'r> FromRow<'r, PgRow> for PageRow {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        let message: Option<Uuid> = row.try_get("id")?;
        let pending: Option<Vec<i64>> = row.try_get("pending")?;
        Ok(Self {
            ord: row.try_get("ord")?,
            left_seq: row.try_get("left_seq")?,
            part: LogPart {
                last_seq: row.try_get("last_seq")?,
                history_from_seq: row.try_get("history_from_seq")?,
                info_head: row.try_get("info_head")?,
                messages: Vec::new(),
                next_seq: row.try_get("upto")?,
                pending: pending.unwrap_or_default(),
            },
            message: message.map(|_| MessageRow::from_row(row)).transpose()?,
        })
    }
}

#[derive(FromRow)]
struct NamedRow {
    user_id: Uuid,
    #[sqlx(flatten)]
    mine: MineRow,
}

/// The place in a list that `with ordinality` counts from 1.
fn place(ord: i64) -> usize {
    usize::try_from(ord - 1).unwrap_or(usize::MAX)
}

impl Postgres {
    pub async fn sync_heads(&self, spans: &[Span]) -> Result<Vec<Heads>> {
        let ends = |id: fn(&Span) -> Option<ConversationId>, none: Uuid| {
            spans.iter().map(|span| id(span).map_or(none, |id| id.0)).collect::<Vec<_>>()
        };
        let query = sqlx::query_as(sql::SYNC_HEADS)
            .bind(uuids(spans, |span| span.user_id.0))
            .bind(ends(|span| span.after, Uuid::nil()))
            .bind(ends(|span| span.to, Uuid::max()))
            .bind(HEADS as i64 + 1);
        let rows: Vec<HeadRow> = self.rows(query).await?;
        let mut all = vec![Heads { heads: Vec::new(), up_to: None }; spans.len()];
        for row in rows {
            let Some(heads) = all.get_mut(place(row.ord)) else { continue };
            if heads.heads.len() == HEADS {
                heads.up_to = heads.heads.last().map(|head| head.conversation_id);
                continue;
            }
            heads.heads.push(Head {
                conversation_id: ConversationId(row.conversation_id),
                last_seq: row.last_seq,
                left_seq: row.left_seq,
                history_from_seq: row.history_from_seq,
                member_count: row.member_count,
            });
        }
        Ok(all)
    }

    pub async fn sync_pages(&self, wanted: &[PageWanted]) -> Result<Vec<LogPage>> {
        let query = sqlx::query_as(sql::SYNC_PAGES)
            .bind(uuids(wanted, |page| page.user_id.0))
            .bind(uuids(wanted, |page| page.conversation_id.0))
            .bind(wanted.iter().map(|page| page.since).collect::<Vec<_>>())
            .bind(wanted.iter().map(|page| i64::from(page.room)).collect::<Vec<_>>());
        let rows: Vec<PageRow> = self.rows(query).await?;
        let mut pages = vec![LogPage::Gone { left_seq: None }; wanted.len()];
        for row in rows {
            let Some(page) = pages.get_mut(place(row.ord)) else { continue };
            if row.left_seq.is_some() {
                *page = LogPage::Gone { left_seq: row.left_seq };
                continue;
            }
            if let LogPage::Gone { .. } = page {
                *page = LogPage::Part(row.part);
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
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as(sql::CONVERSATIONS_NAMED)
            .bind(uuids(wanted, |(user, _)| user.0))
            .bind(uuids(wanted, |(_, conversation)| conversation.0))
            .bind(MEMBERS_SHOWN as i32);
        let rows: Vec<NamedRow> = self.rows(query).await?;
        let (users, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|row| (UserId(row.user_id), row.mine)).unzip();
        let mut shown: std::collections::HashMap<_, _> = users
            .into_iter()
            .zip(self.shown(rows).await?)
            .map(|(user, conversation)| ((user, conversation.id), conversation))
            .collect();
        Ok(wanted.iter().map(|key| shown.remove(key)).collect())
    }
}
