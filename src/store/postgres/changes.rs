//! Changes of a conversation and its members: each one transaction, under the conversation's lock
//! from its first statement on, and one seq.

use std::collections::BTreeSet;

use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, FromRow, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::error::failed;
use super::{millis, sql};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, Seq, UserId};
use crate::protocol::model::{Kind, Role};
use crate::store::types::{Change, ChangeOutcome, Changed, OutboxLease};
use crate::store::{Result, StoreError};

/// Until the commit is sent, a lost connection means that nothing was done.
fn undone(error: sqlx::Error) -> StoreError {
    failed(error, false)
}

#[derive(FromRow)]
struct LockedRow {
    kind: i16,
    title: Option<String>,
    member_count: i32,
}

/// A present member.
#[derive(Clone, Copy, FromRow)]
struct MemberRow {
    user_id: Uuid,
    role: i16,
    can_send_messages: bool,
    muted_until: Option<OffsetDateTime>,
}

/// What a permitted change will do, once it has its seq.
enum Plan<'a> {
    Join {
        user_ids: Vec<Uuid>,
        with_history: bool,
    },
    Leave {
        user_id: Uuid,
    },
    Set {
        user_id: Uuid,
        role: Option<Role>,
        can_send_messages: Option<bool>,
        muted_until: Option<Option<Timestamp>>,
    },
    Title(Option<&'a str>),
}

pub async fn make(
    connection: &mut PgConnection,
    id: ConversationId,
    change: &Change,
    max_group_size: usize,
    outbox: OutboxLease,
) -> Result<ChangeOutcome> {
    if let Change::Create { kind, title, created_by, members } = change {
        let others: BTreeSet<UserId> =
            members.iter().copied().filter(|member| member != created_by).collect();
        return match kind {
            Kind::Direct if others.len() != 1 => Ok(ChangeOutcome::Direct),
            Kind::Group if others.len() >= max_group_size => Ok(ChangeOutcome::TooLarge),
            Kind::Direct => create(connection, id, *kind, None, *created_by, &others, outbox).await,
            Kind::Group => {
                let title = title.as_deref();
                create(connection, id, *kind, title, *created_by, &others, outbox).await
            }
        };
    }
    let mut tx = connection.begin().await.map_err(undone)?;
    let plan = match judge(&mut tx, id, change, max_group_size).await? {
        Ok(plan) => plan,
        Err(outcome) => {
            tx.rollback().await.map_err(undone)?;
            return Ok(outcome);
        }
    };
    let changed = apply(&mut tx, id, plan).await?;
    sqlx::query(sql::CHANGE_OUTBOX)
        .bind(outbox.id.0)
        .bind(millis(outbox.lease))
        .bind(id.0)
        .bind(changed.seq)
        .execute(&mut *tx)
        .await
        .map_err(undone)?;
    tx.commit().await.map_err(|error| failed(error, true))?;
    Ok(ChangeOutcome::Changed(changed))
}

/// One statement, and so one transaction. `others` are sorted and without the creator.
async fn create(
    connection: &mut PgConnection,
    id: ConversationId,
    kind: Kind,
    title: Option<&str>,
    created_by: UserId,
    others: &BTreeSet<UserId>,
    outbox: OutboxLease,
) -> Result<ChangeOutcome> {
    let direct_key = (kind == Kind::Direct).then(|| {
        let pair: BTreeSet<_> = others.iter().chain([&created_by]).map(UserId::to_string).collect();
        pair.into_iter().collect::<Vec<_>>().join(":")
    });
    let made: Option<(OffsetDateTime,)> = sqlx::query_as(sql::CREATE)
        .bind(id.0)
        .bind(kind.code())
        .bind(title)
        .bind(&direct_key)
        .bind(created_by.0)
        .bind(others.iter().map(|other| other.0).collect::<Vec<_>>())
        .bind(outbox.id.0)
        .bind(millis(outbox.lease))
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| failed(error, true))?;
    if let Some((at,)) = made {
        let changed = Changed { conversation_id: id, seq: 1, at: at.into(), members_version: 1 };
        return Ok(ChangeOutcome::Changed(changed));
    }
    let (existing,) = sqlx::query_as(sql::CREATE_EXISTING)
        .bind(id.0)
        .bind(created_by.0)
        .bind(&direct_key)
        .fetch_one(connection)
        .await
        .map_err(undone)?;
    Ok(ChangeOutcome::Unchanged(ConversationId(existing)))
}

/// Locks the conversation and says what is to be done, or why nothing is.
async fn judge<'a>(
    tx: &mut Transaction<'_, Postgres>,
    id: ConversationId,
    change: &'a Change,
    max_group_size: usize,
) -> Result<std::result::Result<Plan<'a>, ChangeOutcome>> {
    let locked: Option<LockedRow> = sqlx::query_as(sql::CHANGE_LOCK)
        .bind(id.0)
        .fetch_optional(&mut **tx)
        .await
        .map_err(undone)?;
    let Some(locked) = locked else {
        return Ok(Err(ChangeOutcome::NotFound));
    };
    let (by, touched) = match change {
        Change::AddMembers { by, user_ids, .. } => (*by, user_ids.as_slice()),
        Change::RemoveMember { by, user_id } | Change::SetMember { by, user_id, .. } => {
            (*by, std::slice::from_ref(user_id))
        }
        Change::SetTitle { by, .. } | Change::Create { created_by: by, .. } => (*by, [].as_slice()),
    };
    let named: Vec<Uuid> = touched.iter().chain([&by]).map(|user| user.0).collect();
    let present: Vec<MemberRow> = sqlx::query_as(sql::CHANGE_MEMBERS)
        .bind(id.0)
        .bind(named)
        .fetch_all(&mut **tx)
        .await
        .map_err(undone)?;
    let find = |user: UserId| present.iter().find(|member| member.user_id == user.0).copied();
    let role = |member: MemberRow| {
        Role::from_code(member.role).ok_or_else(|| StoreError::Corrupt {
            table: "participants",
            column: "role",
            id: member.user_id.to_string(),
        })
    };

    let Some(me) = find(by) else {
        return Ok(Err(ChangeOutcome::NotFound));
    };
    let own_affair = change.is_own_affair();
    if locked.kind == Kind::Direct.code() && !own_affair {
        return Ok(Err(ChangeOutcome::Direct));
    }
    let my_role = role(me)?;
    let leaves = matches!(change, Change::RemoveMember { by, user_id } if by == user_id);
    if my_role == Role::Member && !leaves && !own_affair {
        return Ok(Err(ChangeOutcome::Forbidden));
    }
    Ok(match change {
        Change::AddMembers { user_ids, with_history, .. } => {
            let new: BTreeSet<UserId> =
                user_ids.iter().copied().filter(|user| find(*user).is_none()).collect();
            let members = usize::try_from(locked.member_count).unwrap_or_default();
            if new.is_empty() {
                Err(ChangeOutcome::Unchanged(id))
            } else if members + new.len() > max_group_size {
                Err(ChangeOutcome::TooLarge)
            } else {
                let user_ids = new.into_iter().map(|user| user.0).collect();
                Ok(Plan::Join { user_ids, with_history: *with_history })
            }
        }
        Change::RemoveMember { user_id, .. } => match find(*user_id) {
            None => Err(ChangeOutcome::MemberNotFound),
            Some(member) if !leaves && my_role == Role::Admin && role(member)? >= Role::Admin => {
                Err(ChangeOutcome::Forbidden)
            }
            Some(member) => Ok(Plan::Leave { user_id: member.user_id }),
        },
        Change::SetMember { user_id, role: new_role, can_send_messages, muted_until, .. } => {
            let Some(member) = find(*user_id) else {
                return Ok(Err(ChangeOutcome::MemberNotFound));
            };
            let old_role = role(member)?;
            let above = my_role == Role::Owner || new_role.is_none() && old_role != Role::Owner;
            if !(above || own_affair) || muted_until.is_some() && *user_id != by {
                return Ok(Err(ChangeOutcome::Forbidden));
            }
            let muted_until =
                muted_until.filter(|until| *until != member.muted_until.map(Timestamp::from));
            let role = new_role.filter(|new| *new != old_role);
            let can_send_messages =
                can_send_messages.filter(|can| *can != member.can_send_messages);
            if role.is_none() && can_send_messages.is_none() && muted_until.is_none() {
                return Ok(Err(ChangeOutcome::Unchanged(id)));
            }
            // A group keeps an owner. Only leaving passes the role on by itself.
            if role.is_some() && old_role == Role::Owner {
                let heir = heir(tx, id, member.user_id).await?;
                if heir.is_none_or(|heir| heir.role != Role::Owner.code()) {
                    return Ok(Err(ChangeOutcome::Forbidden));
                }
            }
            Ok(Plan::Set { user_id: member.user_id, role, can_send_messages, muted_until })
        }
        Change::SetTitle { title, .. } if *title == locked.title => {
            Err(ChangeOutcome::Unchanged(id))
        }
        Change::SetTitle { title, .. } => Ok(Plan::Title(title.as_deref())),
        Change::Create { .. } => Err(ChangeOutcome::Unchanged(id)),
    })
}

/// Who stands highest beside `user_id`: another owner if there is one, else the oldest admin, else
/// the oldest member.
async fn heir(
    tx: &mut Transaction<'_, Postgres>,
    id: ConversationId,
    user_id: Uuid,
) -> Result<Option<MemberRow>> {
    sqlx::query_as(sql::CHANGE_HEIR)
        .bind(id.0)
        .bind(user_id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(undone)
}

/// Takes the seq and does what was planned.
async fn apply(
    tx: &mut Transaction<'_, Postgres>,
    id: ConversationId,
    plan: Plan<'_>,
) -> Result<Changed> {
    let growth = match &plan {
        Plan::Join { user_ids, .. } => user_ids.len() as i32,
        Plan::Leave { .. } => -1,
        Plan::Set { .. } | Plan::Title(_) => 0,
    };
    let title = match plan {
        Plan::Title(title) => title,
        _ => None,
    };
    let titled = matches!(plan, Plan::Title(_));
    let (seq, members_version, at): (Seq, i64, OffsetDateTime) = sqlx::query_as(sql::CHANGE_BUMP)
        .bind(id.0)
        .bind(growth)
        .bind(!titled)
        .bind(titled)
        .bind(title)
        .fetch_one(&mut **tx)
        .await
        .map_err(undone)?;
    match plan {
        Plan::Join { user_ids, with_history } => {
            sqlx::query(sql::CHANGE_JOIN)
                .bind(id.0)
                .bind(user_ids)
                .bind(seq)
                .bind(at)
                .bind(with_history)
                .execute(&mut **tx)
                .await
                .map_err(undone)?;
        }
        Plan::Leave { user_id } => {
            // An owner who is the only one passes the role on; a member's heir may stay as he is.
            if let Some(heir) = orphaned(tx, id, user_id).await? {
                set(tx, id, heir, seq, (Some(Role::Owner), None, None)).await?;
            }
            sqlx::query(sql::CHANGE_LEAVE)
                .bind(id.0)
                .bind(user_id)
                .bind(seq)
                .bind(at)
                .execute(&mut **tx)
                .await
                .map_err(undone)?;
        }
        Plan::Set { user_id, role, can_send_messages, muted_until } => {
            set(tx, id, user_id, seq, (role, can_send_messages, muted_until)).await?;
        }
        Plan::Title(_) => {}
    }
    Ok(Changed { conversation_id: id, seq, at: at.into(), members_version })
}

/// Who must become owner if `leaver` leaves; None if another owner stays, or nobody.
async fn orphaned(
    tx: &mut Transaction<'_, Postgres>,
    id: ConversationId,
    leaver: Uuid,
) -> Result<Option<Uuid>> {
    let heir = heir(tx, id, leaver).await?;
    Ok(heir.filter(|heir| heir.role != Role::Owner.code()).map(|heir| heir.user_id))
}

async fn set(
    tx: &mut Transaction<'_, Postgres>,
    id: ConversationId,
    user_id: Uuid,
    seq: Seq,
    (role, can_send_messages, muted_until): (Option<Role>, Option<bool>, Option<Option<Timestamp>>),
) -> Result<()> {
    sqlx::query(sql::CHANGE_SET)
        .bind(id.0)
        .bind(user_id)
        .bind(seq)
        .bind(role.map(Role::code))
        .bind(can_send_messages)
        .bind(muted_until.is_some())
        .bind(muted_until.flatten().map(Timestamp::to_datetime))
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(undone)
}
