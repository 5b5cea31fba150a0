//! Conversations and their members: who may change what, and what a change leaves behind.

use std::sync::Arc;

use tidings::clock::Timestamp;
use tidings::ids::{ConversationId, UserId};
use tidings::protocol::model::{Kind, Role};
use tidings::store::types::{Change, ChangeOutcome};

use super::Fixture;
use super::fixture::{MAX_GROUP, changed, create_group, user, users};

fn remove(by: UserId, user_id: UserId) -> Change {
    Change::RemoveMember { by, user_id }
}

fn set_role(by: UserId, user_id: UserId, role: Role) -> Change {
    Change::SetMember { by, user_id, role: Some(role), can_send_messages: None, muted_until: None }
}

fn let_send(by: UserId, user_id: UserId, can_send_messages: bool) -> Change {
    Change::SetMember {
        by,
        user_id,
        role: None,
        can_send_messages: Some(can_send_messages),
        muted_until: None,
    }
}

fn set_title(by: UserId, title: &str) -> Change {
    Change::SetTitle { by, title: Some(title.into()) }
}

fn add(by: UserId, user_ids: &[UserId]) -> Change {
    Change::AddMembers { by, user_ids: user_ids.to_vec(), with_history: true }
}

/// Members with their roles, in order of their ids.
async fn roles(f: &Fixture, by: UserId, id: ConversationId) -> Vec<(UserId, Role)> {
    let members = f.see(by, id).await.members.expect("a small group shows its members");
    members.iter().map(|member| (member.user_id, member.role)).collect()
}

pub async fn a_group_begins_with_its_creator_as_owner(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = ConversationId::random();
    let create = Change::Create {
        kind: Kind::Group,
        title: Some("Friends".into()),
        created_by: ben,
        // Named twice, and the creator too: each is one member.
        members: vec![ann, cat, ann, ben],
    };
    let made = changed(&f.change(id, create).await);
    assert_eq!((made.conversation_id, made.seq, made.members_version), (id, 1, 1));

    let seen = f.see(ann, id).await;
    assert_eq!((seen.kind, seen.title.as_deref()), (Kind::Group, Some("Friends")));
    assert_eq!((seen.created_by, seen.created_at, seen.last_seq), (ben, made.at, 1));
    assert_eq!((seen.last_message, seen.unread_count), (None, Some(0)));
    let me = seen.me.expect("in answers to a member");
    assert_eq!((me.role, me.can_send_messages), (Role::Member, true));
    assert_eq!((me.delivered_seq, me.read_seq, me.muted_until), (1, 1, None));
    let members = seen.members.expect("a small group shows its members");
    let shown: Vec<_> = members.iter().map(|m| (m.user_id, m.role, m.joined_at)).collect();
    let expected =
        [(ann, Role::Member, made.at), (ben, Role::Owner, made.at), (cat, Role::Member, made.at)];
    assert_eq!(shown, expected);
    assert_eq!(f.store.outbox_state().await.unwrap().0, 1);
}

pub async fn members_are_added_by_owners_and_admins(f: Arc<Fixture>) {
    let [ann, ben, cat, dan, eve] = users();
    let id = f.group(ann, &[ben, cat]).await;
    changed(&f.change(id, set_role(ann, ben, Role::Admin)).await);
    assert_eq!(f.change(id, add(cat, &[dan])).await, ChangeOutcome::Forbidden);
    assert_eq!(f.change(id, add(eve, &[eve])).await, ChangeOutcome::NotFound);
    assert_eq!(f.change(ConversationId::random(), add(ann, &[dan])).await, ChangeOutcome::NotFound);

    // Those present stay as they are.
    let rows = f.store.outbox_state().await.unwrap().0;
    assert_eq!(f.change(id, add(ben, &[ann, ben, ben])).await, ChangeOutcome::Unchanged(id));
    assert_eq!(f.store.outbox_state().await.unwrap().0, rows);
    let made = changed(&f.change(id, add(ben, &[dan, ann, dan])).await);
    assert_eq!((made.seq, made.members_version), (3, 3));
    let expected =
        [(ann, Role::Owner), (ben, Role::Admin), (cat, Role::Member), (dan, Role::Member)];
    assert_eq!(roles(&f, dan, id).await, expected);
    assert_eq!(f.store.outbox_state().await.unwrap().0, rows + 1);
}

pub async fn a_group_has_a_largest_size(f: Arc<Fixture>) {
    let [ann, ben, cat, dan] = users();
    let id = ConversationId::random();
    let too_many = create_group(ann, &[ben, cat, dan]);
    assert_eq!(f.change_up_to(id, too_many, 3).await, ChangeOutcome::TooLarge);
    changed(&f.change_up_to(id, create_group(ann, &[ben, cat]), 3).await);
    assert_eq!(f.change_up_to(id, add(ann, &[ben, dan]), 3).await, ChangeOutcome::TooLarge);
    // Those who left do not count.
    f.remove_member(id, ann, ben).await;
    changed(&f.change_up_to(id, add(ann, &[dan]), 3).await);
    assert_eq!(f.change_up_to(id, add(ann, &[ben]), 3).await, ChangeOutcome::TooLarge);
}

pub async fn one_who_comes_back_starts_anew(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    changed(&f.change(id, set_role(ann, ben, Role::Admin)).await);
    changed(&f.change(id, let_send(ann, ben, false)).await);
    f.say(id, ann, "before").await;
    f.remove_member(id, ann, ben).await;
    f.say(id, ann, "meanwhile").await;
    let back = f.add(id, ann, ben, false).await;
    assert_eq!(back, 7);

    let seen = f.see(ben, id).await;
    let me = seen.me.expect("in answers to a member");
    assert_eq!((me.role, me.can_send_messages), (Role::Member, true));
    assert_eq!((me.delivered_seq, me.read_seq), (back, back));
    assert_eq!((seen.unread_count, seen.last_message), (Some(0), None));
    assert_eq!(f.history(ben, id).await, []);
    let members = f.store.members(id).await.unwrap().expect("it exists").members;
    let state = members.iter().find(|member| member.user_id == ben).expect("he is a member");
    assert_eq!((state.joined_seq, state.left_seq), (back, None));

    // With history means all of it, also what was said before he left and while he was away.
    f.remove_member(id, ann, ben).await;
    f.add(id, ann, ben, true).await;
    assert_eq!(f.history(ben, id).await.len(), 2);
    assert_eq!(f.see(ben, id).await.unread_count, Some(0));
}

pub async fn a_member_leaves_or_is_removed(f: Arc<Fixture>) {
    let [ann, ben, cat, dan, eve] = users();
    let id = f.group(ann, &[ben, cat, dan]).await;
    changed(&f.change(id, set_role(ann, ben, Role::Admin)).await);
    assert_eq!(f.change(id, remove(cat, dan)).await, ChangeOutcome::Forbidden);
    assert_eq!(f.change(id, remove(cat, eve)).await, ChangeOutcome::Forbidden);
    assert_eq!(f.change(id, remove(eve, dan)).await, ChangeOutcome::NotFound);
    assert_eq!(f.change(id, remove(ben, ann)).await, ChangeOutcome::Forbidden);
    assert_eq!(f.change(id, remove(ben, eve)).await, ChangeOutcome::MemberNotFound);

    let made = changed(&f.change(id, remove(ben, dan)).await);
    assert_eq!((made.seq, made.members_version), (3, 3));
    assert_eq!(f.change(id, remove(ben, dan)).await, ChangeOutcome::MemberNotFound);
    assert_eq!(f.change(id, remove(dan, dan)).await, ChangeOutcome::NotFound);
    changed(&f.change(id, remove(cat, cat)).await);
    changed(&f.change(id, remove(ann, ben)).await);
    assert_eq!(roles(&f, ann, id).await, [(ann, Role::Owner)]);
}

pub async fn the_last_owner_leaves_the_group_to_the_oldest(f: Arc<Fixture>) {
    let [ann, ben, cat, dan] = users();
    let id = f.group(dan, &[]).await;
    for member in [cat, ben, ann] {
        f.add(id, dan, member, true).await;
    }
    changed(&f.change(id, set_role(dan, ann, Role::Admin)).await);
    // The oldest admin, although younger than any member.
    f.remove_member(id, dan, dan).await;
    let expected = [(ann, Role::Owner), (ben, Role::Member), (cat, Role::Member)];
    assert_eq!(roles(&f, ann, id).await, expected);
    // While another owner is there, nobody rises.
    changed(&f.change(id, set_role(ann, ben, Role::Owner)).await);
    f.remove_member(id, ann, ann).await;
    assert_eq!(roles(&f, ben, id).await, [(ben, Role::Owner), (cat, Role::Member)]);
    f.add(id, ben, dan, true).await;
    // No admin: the oldest member; then the last one leaves.
    f.remove_member(id, ben, ben).await;
    assert_eq!(roles(&f, cat, id).await, [(cat, Role::Owner), (dan, Role::Member)]);
    f.remove_member(id, cat, cat).await;
    f.remove_member(id, dan, dan).await;
    assert!(f.store.conversation(dan, id).await.unwrap().is_none());
}

pub async fn roles_and_rights_are_given_by_those_above(f: Arc<Fixture>) {
    let [ann, ben, cat, dan] = users();
    let id = f.group(ann, &[ben, cat]).await;
    changed(&f.change(id, set_role(ann, ben, Role::Admin)).await);
    for refused in [
        let_send(cat, cat, false),
        set_role(ben, cat, Role::Admin),
        let_send(ben, ann, false),
        // A group keeps an owner: the last one can only leave.
        set_role(ann, ann, Role::Member),
    ] {
        assert_eq!(f.change(id, refused.clone()).await, ChangeOutcome::Forbidden, "{refused:?}");
    }
    assert_eq!(f.change(id, let_send(ann, dan, true)).await, ChangeOutcome::MemberNotFound);
    assert_eq!(f.change(id, let_send(dan, ann, true)).await, ChangeOutcome::NotFound);
    assert_eq!(f.change(id, let_send(ann, cat, true)).await, ChangeOutcome::Unchanged(id));
    assert_eq!(f.change(id, set_role(ann, ben, Role::Admin)).await, ChangeOutcome::Unchanged(id));

    let made = changed(&f.change(id, let_send(ben, cat, false)).await);
    assert_eq!((made.seq, made.members_version), (3, 3));
    assert!(!f.see(cat, id).await.me.expect("a member").can_send_messages);
    changed(&f.change(id, set_role(ann, ben, Role::Owner)).await);
    changed(&f.change(id, set_role(ben, ann, Role::Member)).await);
    let expected = [(ann, Role::Member), (ben, Role::Owner), (cat, Role::Member)];
    assert_eq!(roles(&f, ann, id).await, expected);
}

pub async fn the_title_is_set_by_owners_and_admins(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    assert_eq!(f.change(id, set_title(ben, "Mine")).await, ChangeOutcome::Forbidden);
    assert_eq!(f.change(id, set_title(user(), "Mine")).await, ChangeOutcome::NotFound);
    let made = changed(&f.change(id, set_title(ann, "Ours")).await);
    // It takes a seq as any change, but the members are the same.
    assert_eq!((made.seq, made.members_version), (2, 1));
    assert_eq!(f.change(id, set_title(ann, "Ours")).await, ChangeOutcome::Unchanged(id));
    assert_eq!(f.see(ben, id).await.title.as_deref(), Some("Ours"));
    let untitled = Change::SetTitle { by: ann, title: None };
    assert_eq!(changed(&f.change(id, untitled).await).seq, 3);
    assert_eq!(f.see(ben, id).await.title, None);
}

pub async fn a_direct_conversation_does_not_change(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.direct(ann, ben).await;
    for change in [
        add(ann, &[cat]),
        remove(ann, ben),
        remove(ben, ben),
        let_send(ann, ben, false),
        set_title(ann, "Us"),
    ] {
        assert_eq!(f.change(id, change.clone()).await, ChangeOutcome::Direct, "{change:?}");
    }
    // To a stranger it does not even exist.
    assert_eq!(f.change(id, set_title(cat, "Us")).await, ChangeOutcome::NotFound);
    assert_eq!(f.see(ben, id).await.last_seq, 1);
    assert_eq!(f.change_up_to(id, add(ann, &[cat]), MAX_GROUP).await, ChangeOutcome::Direct);
}

pub async fn a_mute_is_ones_own_affair(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let until = Timestamp::from_millis(4_102_444_800_123);
    let mute = |by, user_id, until| Change::SetMember {
        by,
        user_id,
        role: None,
        can_send_messages: None,
        muted_until: Some(until),
    };
    for id in [f.group(ann, &[ben]).await, f.direct(ann, ben).await] {
        let made = changed(&f.change(id, mute(ben, ben, Some(until))).await);
        // The members' cache holds it, so their version moves on.
        assert_eq!((made.seq, made.members_version), (2, 2));
        assert_eq!(f.see(ben, id).await.me.expect("a member").muted_until, Some(until));
        assert_eq!(f.see(ann, id).await.me.expect("a member").muted_until, None);
        let members = f.store.members(id).await.unwrap().expect("it exists").members;
        let muted = |who| members.iter().find(|m| m.user_id == who).expect("there").muted_until;
        assert_eq!((muted(ann), muted(ben)), (None, Some(until)));
        let again = f.change(id, mute(ben, ben, Some(until))).await;
        assert_eq!(again, ChangeOutcome::Unchanged(id));
        changed(&f.change(id, mute(ben, ben, None)).await);
        assert_eq!(f.see(ben, id).await.me.expect("a member").muted_until, None);
        assert_eq!(f.change(id, mute(user(), ann, None)).await, ChangeOutcome::NotFound);
    }
    let id = f.group(ann, &[ben]).await;
    // Not even by one who stands above.
    assert_eq!(f.change(id, mute(ann, ben, Some(until))).await, ChangeOutcome::Forbidden);
    let with_right = Change::SetMember {
        by: ben,
        user_id: ben,
        role: None,
        can_send_messages: Some(false),
        muted_until: Some(Some(until)),
    };
    assert_eq!(f.change(id, with_right).await, ChangeOutcome::Forbidden);
    // What others change leaves it as it is.
    changed(&f.change(id, mute(ben, ben, Some(until))).await);
    changed(&f.change(id, let_send(ann, ben, false)).await);
    let me = f.see(ben, id).await.me.expect("a member");
    assert_eq!((me.muted_until, me.can_send_messages), (Some(until), false));
}
