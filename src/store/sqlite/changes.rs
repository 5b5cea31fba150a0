//! Changes of a conversation and of its members: each one transaction and one seq.

use std::collections::BTreeSet;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::conversations::{kind, role};
use super::sql::{self, hex, json};
use super::{SqliteWriter, commit, error, outbox};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, Seq, UserId};
use crate::protocol::model::ChangeKind;
use crate::protocol::model::{Kind, Role};
use crate::store::Result;
use crate::store::types::{Change, ChangeOutcome, Changed, OutboxEntry, OutboxLease};

/// A change before its commit: what it took, or why there is none.
type Step = std::result::Result<Advance, ChangeOutcome>;

/// The place that a change takes in the conversation's log.
#[derive(FromRow)]
pub(super) struct Advance {
    pub(super) last_seq: Seq,
    pub(super) members_version: i64,
    /// The database's clock.
    pub(super) now: i64,
}

/// A conversation as the asking member finds it.
struct Found {
    kind: Kind,
    title: Option<String>,
    member_count: i64,
    my_role: Role,
}

/// A member's own state, as far as it is changed.
#[derive(Clone, Copy, PartialEq)]
struct MemberNow {
    role: Role,
    can_send: bool,
    muted_until: Option<Timestamp>,
}

impl SqliteWriter {
    pub async fn change(
        &mut self,
        id: ConversationId,
        change: &Change,
        max_group_size: usize,
        outbox: OutboxLease,
    ) -> Result<ChangeOutcome> {
        let mut tx = self.store.begin().await?;
        let step = match change {
            Change::Create { kind, title, created_by, members } => {
                let title = title.as_deref();
                create(&mut tx, id, *kind, title, *created_by, members, max_group_size).await?
            }
            Change::AddMembers { by, user_ids, with_history } => {
                add(&mut tx, id, *by, user_ids, *with_history, max_group_size).await?
            }
            Change::RemoveMember { by, user_id } => remove(&mut tx, id, *by, *user_id).await?,
            Change::SetMember { by, user_id, .. } => {
                set_member(&mut tx, id, *by, *user_id, change).await?
            }
            Change::SetTitle { by, title } => set_title(&mut tx, id, *by, title.as_deref()).await?,
        };
        let advance = match step {
            Ok(advance) => advance,
            Err(outcome) => return Ok(outcome),
        };
        let entry = OutboxEntry {
            conversation_id: id,
            message_id: None,
            seq: advance.last_seq,
            kind: ChangeKind::ConversationUpdated,
        };
        outbox::insert(&mut tx, outbox, advance.now, &[entry]).await?;
        commit(tx).await?;
        Ok(ChangeOutcome::Changed(Changed {
            conversation_id: id,
            seq: advance.last_seq,
            at: Timestamp::from_millis(advance.now),
            members_version: advance.members_version,
        }))
    }
}

async fn create(
    tx: &mut SqliteConnection,
    id: ConversationId,
    kind: Kind,
    title: Option<&str>,
    created_by: UserId,
    members: &[UserId],
    max_group_size: usize,
) -> Result<Step> {
    let others: BTreeSet<UserId> =
        members.iter().copied().filter(|member| *member != created_by).collect();
    if kind == Kind::Group && others.len() + 1 > max_group_size {
        return Ok(Err(ChangeOutcome::TooLarge));
    }
    let direct_key = (kind == Kind::Direct).then(|| direct_key(created_by, &others));
    let existing: Option<Uuid> = sqlx::query_scalar(sql::CONVERSATION_FIND)
        .bind(id.0)
        .bind(&direct_key)
        .bind(created_by.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(error::of)?;
    if let Some(existing) = existing {
        return Ok(Err(ChangeOutcome::Unchanged(ConversationId(existing))));
    }
    let advance: Advance = sqlx::query_as(sql::CONVERSATION_CREATE)
        .bind(id.0)
        .bind(kind.code())
        .bind(title)
        .bind(&direct_key)
        .bind(created_by.0)
        .bind(others.len() as i64 + 1)
        .fetch_one(&mut *tx)
        .await
        .map_err(error::of)?;
    let joining: Vec<(UserId, Role)> = std::iter::once((created_by, Role::Owner))
        .chain(others.into_iter().map(|other| (other, Role::Member)))
        .collect();
    join(tx, id, &joining, &advance, advance.last_seq).await?;
    Ok(Ok(advance))
}

async fn add(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
    user_ids: &[UserId],
    with_history: bool,
    max_group_size: usize,
) -> Result<Step> {
    let found = match group_of(tx, id, by, Role::Admin).await? {
        Ok(found) => found,
        Err(outcome) => return Ok(Err(outcome)),
    };
    let absent: Vec<Uuid> = sqlx::query_scalar(sql::MEMBERS_ABSENT)
        .bind(id.0)
        .bind(json(user_ids.iter().map(|user| hex(user.0))))
        .fetch_all(&mut *tx)
        .await
        .map_err(error::of)?;
    if absent.is_empty() {
        return Ok(Err(ChangeOutcome::Unchanged(id)));
    }
    if found.member_count as usize + absent.len() > max_group_size {
        return Ok(Err(ChangeOutcome::TooLarge));
    }
    let advance = advance(tx, id, absent.len() as i64, true).await?;
    let joining: Vec<(UserId, Role)> =
        absent.into_iter().map(|user| (UserId(user), Role::Member)).collect();
    let history_from = if with_history { 1 } else { advance.last_seq };
    join(tx, id, &joining, &advance, history_from).await?;
    Ok(Ok(advance))
}

async fn remove(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
    user_id: UserId,
) -> Result<Step> {
    let leaves = by == user_id;
    let least = if leaves { Role::Member } else { Role::Admin };
    let found = match group_of(tx, id, by, least).await? {
        Ok(found) => found,
        Err(outcome) => return Ok(Err(outcome)),
    };
    let Some(MemberNow { role: target_role, .. }) = member_state(tx, id, user_id).await? else {
        return Ok(Err(ChangeOutcome::MemberNotFound));
    };
    if !leaves && found.my_role == Role::Admin && target_role > Role::Member {
        return Ok(Err(ChangeOutcome::Forbidden));
    }
    let advance = advance(tx, id, -1, true).await?;
    sqlx::query(sql::MEMBER_LEAVE)
        .bind(id.0)
        .bind(user_id.0)
        .bind(advance.last_seq)
        .bind(advance.now)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    sqlx::query(sql::MEMBER_FREE)
        .bind(id.0)
        .bind(user_id.0)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    if target_role == Role::Owner {
        inherit(tx, id, &advance).await?;
    }
    Ok(Ok(advance))
}

/// An owner has left: if he was the last one, the oldest of the most powerful takes his place.
async fn inherit(tx: &mut SqliteConnection, id: ConversationId, advance: &Advance) -> Result<()> {
    let Some((heir, role)) = heir(tx, id).await? else {
        return Ok(());
    };
    if role == Role::Owner {
        return Ok(());
    }
    let Some(now) = member_state(tx, id, heir).await? else {
        return Ok(());
    };
    write_member(tx, id, heir, MemberNow { role: Role::Owner, ..now }, advance).await
}

/// The most powerful member, and the oldest of several; None if nobody is left.
async fn heir(tx: &mut SqliteConnection, id: ConversationId) -> Result<Option<(UserId, Role)>> {
    let row: Option<(Uuid, i16)> = sqlx::query_as(sql::MEMBER_HEIR)
        .bind(id.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(error::of)?;
    row.map(|(user, code)| Ok((UserId(user), role(code, id.0)?))).transpose()
}

async fn set_member(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
    user_id: UserId,
    change: &Change,
) -> Result<Step> {
    let Change::SetMember { role: new_role, can_send_messages, muted_until, .. } = change else {
        unreachable!("called for this change only")
    };
    let own_affair = change.is_own_affair();
    let found = match of_member(tx, id, by).await? {
        Some(found) if own_affair => found,
        _ => match group_of(tx, id, by, Role::Admin).await? {
            Ok(found) => found,
            Err(outcome) => return Ok(Err(outcome)),
        },
    };
    let Some(now) = member_state(tx, id, user_id).await? else {
        return Ok(Err(ChangeOutcome::MemberNotFound));
    };
    let above = found.my_role == Role::Owner || new_role.is_none() && now.role != Role::Owner;
    if !(above || own_affair) || muted_until.is_some() && user_id != by {
        return Ok(Err(ChangeOutcome::Forbidden));
    }
    let next = MemberNow {
        role: new_role.unwrap_or(now.role),
        can_send: can_send_messages.unwrap_or(now.can_send),
        muted_until: muted_until.unwrap_or(now.muted_until),
    };
    if next == now {
        return Ok(Err(ChangeOutcome::Unchanged(id)));
    }
    let advance = advance(tx, id, 0, true).await?;
    write_member(tx, id, user_id, next, &advance).await?;
    // A group keeps an owner: the last one can only leave. Found out after the fact, and rolled
    // back with the rest, because then it is the same look as for an heir.
    let gave_up = now.role == Role::Owner && next.role < Role::Owner;
    if gave_up && heir(tx, id).await?.is_none_or(|(_, highest)| highest < Role::Owner) {
        return Ok(Err(ChangeOutcome::Forbidden));
    }
    Ok(Ok(advance))
}

async fn set_title(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
    title: Option<&str>,
) -> Result<Step> {
    let found = match group_of(tx, id, by, Role::Admin).await? {
        Ok(found) => found,
        Err(outcome) => return Ok(Err(outcome)),
    };
    if found.title.as_deref() == title {
        return Ok(Err(ChangeOutcome::Unchanged(id)));
    }
    let advance = advance(tx, id, 0, false).await?;
    sqlx::query(sql::CONVERSATION_TITLE)
        .bind(id.0)
        .bind(title)
        .bind(advance.last_seq)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    Ok(Ok(advance))
}

/// The group `id`, if `by` is a member of it with at least the role `least`.
async fn group_of(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
    least: Role,
) -> Result<std::result::Result<Found, ChangeOutcome>> {
    let Some(found) = of_member(tx, id, by).await? else {
        return Ok(Err(ChangeOutcome::NotFound));
    };
    if found.kind == Kind::Direct {
        return Ok(Err(ChangeOutcome::Direct));
    }
    if found.my_role < least {
        return Ok(Err(ChangeOutcome::Forbidden));
    }
    Ok(Ok(found))
}

/// The conversation `id`, if `by` is a member of it.
async fn of_member(
    tx: &mut SqliteConnection,
    id: ConversationId,
    by: UserId,
) -> Result<Option<Found>> {
    let row: Option<(i16, Option<String>, i64, i16)> = sqlx::query_as(sql::CONVERSATION_STATE)
        .bind(id.0)
        .bind(by.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(error::of)?;
    let found = row.map(|(code, title, member_count, role_code)| {
        let (kind, my_role) = (kind(code, id.0)?, role(role_code, id.0)?);
        Ok(Found { kind, title, member_count, my_role })
    });
    found.transpose()
}

async fn member_state(
    tx: &mut SqliteConnection,
    id: ConversationId,
    user: UserId,
) -> Result<Option<MemberNow>> {
    let row: Option<(i16, bool, Option<i64>)> = sqlx::query_as(sql::MEMBER_STATE)
        .bind(id.0)
        .bind(user.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(error::of)?;
    let state = row.map(|(code, can_send, muted_until)| {
        let muted_until = muted_until.map(Timestamp::from_millis);
        Ok(MemberNow { role: role(code, id.0)?, can_send, muted_until })
    });
    state.transpose()
}

async fn write_member(
    tx: &mut SqliteConnection,
    id: ConversationId,
    user: UserId,
    next: MemberNow,
    advance: &Advance,
) -> Result<()> {
    sqlx::query(sql::MEMBER_SET)
        .bind(id.0)
        .bind(user.0)
        .bind(next.role.code())
        .bind(next.can_send)
        .bind(advance.last_seq)
        .bind(next.muted_until.map(Timestamp::millis))
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    Ok(())
}

/// Takes the next seq, after `growth` members more; with `members`, their next version too.
pub(super) async fn advance(
    tx: &mut SqliteConnection,
    id: ConversationId,
    growth: i64,
    members: bool,
) -> Result<Advance> {
    sqlx::query_as(sql::CONVERSATION_ADVANCE)
        .bind(id.0)
        .bind(growth)
        .bind(members)
        .fetch_one(&mut *tx)
        .await
        .map_err(error::of)
}

async fn join(
    tx: &mut SqliteConnection,
    id: ConversationId,
    joining: &[(UserId, Role)],
    advance: &Advance,
    history_from: Seq,
) -> Result<()> {
    let done = sqlx::query(sql::MEMBERS_JOIN)
        .bind(id.0)
        .bind(json(joining.iter().map(|(user, role)| (hex(user.0), role.code()))))
        .bind(advance.last_seq)
        .bind(advance.now)
        .bind(history_from)
        .execute(&mut *tx)
        .await
        .map_err(error::of)?;
    error::affected(done.rows_affected(), joining.len(), "adding members")
}

/// The pair in either order has one key.
fn direct_key(one: UserId, others: &BTreeSet<UserId>) -> String {
    let mut pair: BTreeSet<UserId> = others.clone();
    pair.insert(one);
    pair.iter().map(UserId::to_string).collect::<Vec<_>>().join(":")
}
