//! Reading, as a member; and what dispatch reads.

use std::sync::Arc;

use tidings::ids::{ConversationId, MessageId, Seq, UserId};
use tidings::store::MEMBERS_SHOWN;
use tidings::store::types::{Anchor, Change, History, HistoryPage, MemberState, NewMessage};

use super::Fixture;
use super::fixture::{changed, message, stored, user, users};

async fn page(
    f: &Fixture,
    user: UserId,
    id: ConversationId,
    before: Option<MessageId>,
    limit: u32,
) -> (Vec<Seq>, bool, Option<MessageId>) {
    let anchor = before.map_or(Anchor::Newest, Anchor::Before);
    match f.store.history(user, id, HistoryPage { anchor, thread: None, limit }).await.unwrap() {
        History::Page { messages, has_more } => {
            let seqs = messages.iter().map(|message| message.seq).collect();
            (seqs, has_more, messages.last().map(|message| message.id))
        }
        other => panic!("a member reads the history, not {other:?}"),
    }
}

pub async fn history_goes_back_page_by_page(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let batch: Vec<_> = (0..5).map(|i| message(id, ann, &i.to_string())).collect();
    f.send(&batch).await;
    // A place in the log that is no message.
    f.remove_member(id, ann, ben).await;
    f.say(id, ann, "last").await;

    let (seqs, more, last) = page(&f, ann, id, None, 3).await;
    assert_eq!((seqs, more), (vec![8, 6, 5], true));
    let (seqs, more, last) = page(&f, ann, id, last, 2).await;
    assert_eq!((seqs, more), (vec![4, 3], true));
    let (seqs, more, last) = page(&f, ann, id, last, 2).await;
    assert_eq!((seqs, more), (vec![2], false));
    assert_eq!(page(&f, ann, id, last, 2).await, (vec![], false, None));
    // Exactly what there is leaves nothing more.
    assert!(!page(&f, ann, id, None, 6).await.1);

    f.delete_messages(8).await;
    let newest = f.history(ann, id).await.remove(0);
    assert_eq!((newest.seq, newest.content), (8, None));
    assert!(newest.deleted_at.is_some());
}

pub async fn history_begins_where_the_member_may_look(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[]).await;
    let (before, _) = f.say_with_id(id, ann, "before").await;
    f.add(id, ann, ben, false).await;
    assert_eq!(f.see(ben, id).await.last_message, None);
    assert_eq!(page(&f, ben, id, None, 10).await, (vec![], false, None));
    f.say(id, ann, "after").await;
    assert_eq!(page(&f, ben, id, None, 10).await.0, [4]);
    assert_eq!(f.see(ben, id).await.last_message.expect("he sees it").seq, 4);
    let hidden = HistoryPage { anchor: Anchor::Before(before), thread: None, limit: 10 };
    assert_eq!(f.store.history(ben, id, hidden).await.unwrap(), History::MessageNotFound);
}

/// The seqs of a page, as they come, and whether there is more.
async fn seqs(
    f: &Fixture,
    user: UserId,
    id: ConversationId,
    page: HistoryPage,
) -> (Vec<Seq>, bool) {
    match f.store.history(user, id, page).await.unwrap() {
        History::Page { messages, has_more } => {
            (messages.iter().map(|message| message.seq).collect(), has_more)
        }
        other => panic!("a member reads the history, not {other:?}"),
    }
}

pub async fn history_goes_on_page_by_page(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[]).await;
    let (first, _) = f.say_with_id(id, ann, "first").await;
    let batch: Vec<_> = (0..4).map(|i| message(id, ann, &i.to_string())).collect();
    f.send(&batch).await;
    let after = |anchor, limit| HistoryPage { anchor: Anchor::After(anchor), thread: None, limit };
    assert_eq!(seqs(&f, ann, id, after(first, 3)).await, (vec![5, 4, 3], true));
    assert_eq!(seqs(&f, ann, id, after(first, 4)).await, (vec![6, 5, 4, 3], false));
    assert_eq!(seqs(&f, ann, id, after(batch[3].id, 4)).await, (vec![], false));
    f.add(id, ann, ben, false).await;
    let hidden = f.store.history(ben, id, after(first, 3)).await.unwrap();
    assert_eq!(hidden, History::MessageNotFound);
    let nowhere = f.store.history(user(), id, after(first, 3)).await.unwrap();
    assert_eq!(nowhere, History::NotFound);
}

pub async fn a_thread_is_the_replies_to_one_message(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[]).await;
    let (parent, _) = f.say_with_id(id, ann, "question").await;
    let reply = || NewMessage { parent_message_id: Some(parent), ..message(id, ann, "answer") };
    let batch = [reply(), message(id, ann, "something else"), reply(), reply()];
    f.send(&batch).await;
    let of = |thread, anchor| HistoryPage { anchor, thread: Some(thread), limit: 2 };
    let thread = async |anchor| seqs(&f, ann, id, of(parent, anchor)).await;
    assert_eq!(thread(Anchor::Newest).await, (vec![6, 5], true));
    assert_eq!(thread(Anchor::Before(batch[2].id)).await, (vec![3], false));
    assert_eq!(thread(Anchor::After(parent)).await, (vec![5, 3], true));
    assert_eq!(thread(Anchor::After(batch[0].id)).await, (vec![6, 5], false));
    assert_eq!(seqs(&f, ann, id, of(batch[0].id, Anchor::Newest)).await, (vec![], false));

    let other = f.group(ann, &[]).await;
    let (elsewhere, _) = f.say_with_id(other, ann, "elsewhere").await;
    f.add(id, ann, ben, false).await;
    f.send(&[reply()]).await;
    let missing = async |who, page| f.store.history(who, id, page).await.unwrap();
    for (who, page, expected) in [
        (ann, of(elsewhere, Anchor::Newest), History::ThreadNotFound),
        (ann, of(parent, Anchor::After(elsewhere)), History::MessageNotFound),
        (ben, of(parent, Anchor::Newest), History::ThreadNotFound),
        (user(), of(parent, Anchor::Newest), History::NotFound),
    ] {
        assert_eq!(missing(who, page).await, expected);
    }
}

pub async fn strangers_and_leavers_read_nothing(f: Arc<Fixture>) {
    let [ann, ben, eve] = users();
    let (id, other) = (f.group(ann, &[ben]).await, f.group(ann, &[]).await);
    f.say(id, ann, "hello").await;
    let (elsewhere, _) = f.say_with_id(other, ann, "elsewhere").await;
    f.remove_member(id, ann, ben).await;
    let newest = HistoryPage { anchor: Anchor::Newest, thread: None, limit: 10 };
    for who in [ben, eve] {
        assert_eq!(f.store.conversation(who, id).await.unwrap(), None);
        assert_eq!(f.store.conversations(who, 10, None).await.unwrap(), (vec![], None));
        assert_eq!(f.store.participants(who, id, 10, None).await.unwrap(), None);
        assert_eq!(f.store.history(who, id, newest).await.unwrap(), History::NotFound);
    }
    let nowhere = ConversationId::random();
    assert_eq!(f.store.history(ann, nowhere, newest).await.unwrap(), History::NotFound);
    assert_eq!(f.store.conversation(ann, nowhere).await.unwrap(), None);
    let foreign = HistoryPage { anchor: Anchor::Before(elsewhere), thread: None, limit: 10 };
    assert_eq!(f.store.history(ann, id, foreign).await.unwrap(), History::MessageNotFound);
}

pub async fn unread_are_the_undeleted_messages_of_others(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    f.say(id, ann, "one").await;
    let deleted = f.say(id, ann, "two").await;
    f.say(id, ben, "my own").await;
    f.delete_messages(deleted).await;
    assert_eq!(f.see(ben, id).await.unread_count, Some(1));
    assert_eq!(f.see(ann, id).await.unread_count, Some(1));
    let many: Vec<_> = (0..120).map(|_| message(id, ann, "x")).collect();
    f.send(&many).await;
    assert_eq!(f.see(ben, id).await.unread_count, Some(100));
    let (list, _) = f.store.conversations(ben, 10, None).await.unwrap();
    assert_eq!(list[0].unread_count, Some(100));
}

pub async fn conversations_are_listed_by_activity(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(f.group(ann, &[]).await);
    }
    let direct = f.direct(ben, ann).await;
    f.group(ben, &[]).await;
    // The clock counts milliseconds: one message after the other must be one later than the other.
    for id in [ids[1], direct, ids[0], ids[2]] {
        let before = stored(&f.send_one(message(id, ann, "x")).await).created_at;
        while tidings::clock::Timestamp::now() <= before {
            tokio::task::yield_now().await;
        }
    }
    let (first, cursor) = f.store.conversations(ann, 3, None).await.unwrap();
    let found: Vec<_> = first.iter().map(|conversation| conversation.id).collect();
    assert_eq!(found, [ids[2], ids[0], direct]);
    assert!(cursor.is_some());
    assert_eq!(first[0].last_message.as_ref().map(|message| message.seq), Some(2));
    assert!(first[0].me.is_some());
    // In a list only direct ones name their members: it is how they are told apart.
    assert_eq!(first[0].members, None);
    let pair: Vec<_> = first[2].members.iter().flatten().map(|member| member.user_id).collect();
    assert_eq!(pair, [ann, ben]);

    let (rest, cursor) = f.store.conversations(ann, 3, cursor).await.unwrap();
    let found: Vec<_> = rest.iter().map(|conversation| conversation.id).collect();
    assert_eq!((found, cursor), (vec![ids[1]], None));
    // Exactly as many as there are: the list goes on nowhere.
    assert_eq!(f.store.conversations(ann, 4, None).await.unwrap().1, None);
}

pub async fn members_are_shown_and_paged(f: Arc<Fixture>) {
    let mut all: Vec<UserId> = (0..MEMBERS_SHOWN).map(|_| user()).collect();
    all.sort();
    let (owner, others) = all.split_first().expect("it is not empty");
    let id = f.group(*owner, others).await;
    let shown = f.see(*owner, id).await.members.expect("as many as are shown");
    assert!(shown.iter().map(|member| member.user_id).eq(all.iter().copied()));
    let joiner = user();
    f.add(id, *owner, joiner, true).await;
    assert_eq!(f.see(*owner, id).await.members, None);

    let read = async |limit, after| {
        let members = f.store.participants(joiner, id, limit, after).await.unwrap();
        members.expect("a member reads them").iter().map(|m| m.user_id).collect::<Vec<_>>()
    };
    all.push(joiner);
    all.sort();
    assert_eq!(read(100, None).await, all[..100]);
    assert_eq!(read(200, Some(all[99])).await, all[100..]);
    assert_eq!(read(10, Some(all[MEMBERS_SHOWN])).await, []);
}

pub async fn events_show_nobodys_own_state(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    f.say(id, ann, "hello").await;
    let shown = f.store.conversation_for_event(id).await.unwrap().expect("it exists");
    assert_eq!((shown.id, shown.last_seq), (id, 2));
    assert_eq!((shown.me, shown.unread_count), (None, None));
    // Not all who get the event may see it.
    assert_eq!(shown.last_message, None);
    assert_eq!(shown.members.map(|members| members.len()), Some(2));
    let nowhere = ConversationId::random();
    assert_eq!(f.store.conversation_for_event(nowhere).await.unwrap(), None);
}

pub async fn members_for_dispatch_include_recent_leavers(f: Arc<Fixture>) {
    let [ann, ben, cat] = users();
    let id = f.group(ann, &[ben]).await;
    f.say(id, ann, "hello").await;
    let joined = f.add(id, ann, cat, true).await;
    let left = f.remove_member(id, ann, ben).await;
    let mut found = f.store.members(id).await.unwrap().expect("it exists");
    assert_eq!(found.version, 3);
    assert_eq!(f.store.members_version(id).await.unwrap(), Some(3));
    assert_eq!(f.store.members_version(ConversationId::random()).await.unwrap(), None);
    found.members.sort_by_key(|member| member.user_id);
    let state = |user_id, joined_seq, left_seq| MemberState {
        user_id,
        joined_seq,
        history_from_seq: 1,
        left_seq,
        can_send_messages: true,
        muted_until: None,
    };
    let expected = [state(ann, 1, None), state(ben, 1, Some(left)), state(cat, joined, None)];
    assert_eq!(found.members, expected);
    let late = f.add(id, ann, user(), false).await;
    let found = f.store.members(id).await.unwrap().expect("it exists");
    assert!(found.members.iter().any(|member| member.history_from_seq == late), "{found:?}");
    assert_eq!(f.store.members(ConversationId::random()).await.unwrap(), None);
}

pub async fn replies_are_counted(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (parent, _) = f.say_with_id(id, ann, "question").await;
    let reply = |by| NewMessage { parent_message_id: Some(parent), ..message(id, by, "answer") };
    f.send(&[reply(ben), reply(ann), reply(ben)]).await;
    f.delete_messages(4).await;
    let counts: Vec<_> = f.history(ben, id).await.iter().map(|m| (m.seq, m.reply_count)).collect();
    assert_eq!(counts, [(5, 0), (4, 0), (3, 0), (2, 2)]);
    assert_eq!(f.store.messages(&[parent]).await.unwrap()[0].reply_count, 2);
}

pub async fn acquainted_are_those_in_a_common_conversation(f: Arc<Fixture>) {
    let [ann, ben, cat, dan, eve] = users();
    f.direct(ann, ben).await;
    let id = f.group(cat, &[ann, dan]).await;
    f.group(dan, &[eve]).await;
    let known = async |user, others: &[UserId]| {
        let mut known = f.store.acquainted(user, others).await.unwrap();
        known.sort();
        known
    };
    assert_eq!(known(ann, &[ann, ben, cat, dan, eve]).await, [ann, ben, cat, dan]);
    assert_eq!(known(ann, &[eve, cat]).await, [cat]);
    changed(&f.change(id, Change::RemoveMember { by: cat, user_id: dan }).await);
    assert_eq!(known(ann, &[cat, dan]).await, [cat]);
    assert_eq!(known(dan, &[ann, eve]).await, [eve]);
    assert_eq!(known(ann, &[]).await, []);
}
