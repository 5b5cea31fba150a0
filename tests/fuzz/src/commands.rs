use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidings::ids::UserId;
use tidings::protocol::code::Code;
use tidings::protocol::command::{
    self, AddParticipants, Command, CreateConversation, EditMessage, MAX_ACKS,
    MAX_CLIENT_MESSAGE_ID_BYTES, MAX_MENTIONS, MAX_PAGE, MAX_REF_BYTES, MAX_SYNC_CONVERSATIONS,
    MAX_TITLE_BYTES, MAX_USER_IDS, PatchConversation, PatchParticipant, SendMessage, Sync,
    SyncRequest, TypingState,
};
use tidings::protocol::event::Limits;
use tidings::protocol::model::{Kind, Mention, MessageType};
use tidings::protocol::problem::Problem;
use uuid::Uuid;

/// Low ones, so that small inputs reach them.
const LIMITS: Limits = Limits {
    max_frame_bytes: 4_096,
    max_content_bytes: 100,
    max_metadata_bytes: 80,
    max_group_size: 4,
};
/// The largest whole number that every JSON parser holds exactly.
const MAX_SEQ: i64 = (1 << 53) - 1;

/// A text frame of a client.
pub fn commands(data: &[u8]) {
    let frame = command::decode(&mut data.to_vec(), &LIMITS);
    assert!(frame.reference.as_ref().is_none_or(|text| text.len() <= MAX_REF_BYTES));
    let command = match frame.command {
        Ok(command) => command,
        Err(problem) => return is_named(&problem, data),
    };
    let json = is_json(data);
    assert_eq!(json["type"], command.name());
    assert_eq!(frame.is_send, matches!(command, Command::SendMessage(_)));
    match command {
        Command::SendMessage(send) => check_send(&send),
        Command::EditMessage(_, edit) => check_edit(&edit),
        Command::Ack(ack) => {
            assert!(ack.conversations.len() <= MAX_ACKS);
            assert!(ack.conversations.values().all(|seq| (1..=MAX_SEQ).contains(seq)));
        }
        Command::WatchPresence(watch) => {
            assert!(watch.user_ids.len() <= MAX_USER_IDS);
            assert!(watch.user_ids.is_sorted_by(|a, b| a < b));
        }
        Command::Sync(sync) => check_sync(&sync),
        Command::RefreshToken(token) => {
            assert_eq!(json["payload"]["token"], token.as_str());
            assert_eq!(format!("{token:?}"), "***");
        }
        Command::DeleteMessage(_) | Command::ReadReceipt(_) | Command::Typing(_) => {}
        Command::Ping => {}
    }
}

/// The body of a call. The first byte says of which.
pub fn bodies(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 8 {
        0 => check_body(data, |send: SendMessage| send.checked(&LIMITS), check_send),
        1 => check_body(data, |edit: EditMessage| edit.checked(&LIMITS), check_edit),
        2 => check_body(data, SyncRequest::checked, check_sync),
        3 => {
            let me = UserId(Uuid::from_u128(1));
            let checked = |create: CreateConversation| create.checked(me, LIMITS.max_group_size);
            check_body(data, checked, |create| {
                check_title(create.title.as_deref());
                let others = create.participants.len();
                assert!(others < LIMITS.max_group_size && !create.participants.contains(&me));
                assert!(create.participants.is_sorted_by(|a, b| a < b));
                let direct = (others == 1, create.title.is_none());
                assert!(create.kind == Kind::Group || direct == (true, true));
            });
        }
        4 => check_body(data, AddParticipants::checked, |add| {
            assert!((1..=MAX_USER_IDS).contains(&add.user_ids.len()));
            assert!(add.user_ids.is_sorted_by(|a, b| a < b));
        }),
        5 => check_body(data, PatchParticipant::checked, |patch| {
            let changes = (&patch.role, &patch.can_send_messages, &patch.muted_until);
            assert!(!matches!(changes, (None, None, None)));
        }),
        6 => {
            let checked = |patch: PatchConversation| {
                command::check_title(patch.title.as_deref()).map(|()| patch)
            };
            check_body(data, checked, |patch| check_title(patch.title.as_deref()));
        }
        _ => check_body(data, Ok, |_: &TypingState| {}),
    }
}

fn check_body<T: DeserializeOwned, C>(
    data: &[u8],
    checked: impl FnOnce(T) -> Result<C, Problem>,
    check: impl FnOnce(&C),
) {
    match command::from_json(&mut data.to_vec()).and_then(checked) {
        Ok(body) => {
            is_json(data);
            check(&body);
        }
        Err(problem) => is_named(&problem, data),
    }
}

/// Another parser finds the same good.
fn is_json(data: &[u8]) -> Value {
    serde_json::from_slice(data).expect("what is accepted is JSON")
}

/// A refusal tells which, where, and no more than a client needs.
fn is_named(problem: &Problem, data: &[u8]) {
    let known = [Code::Malformed, Code::UnknownCommand, Code::Invalid, Code::TooLarge];
    assert!(known.contains(&problem.code), "{problem:?}");
    assert!(!problem.detail.is_empty());
    if matches!(problem.code, Code::Invalid | Code::TooLarge) {
        assert!(problem.field.is_some(), "{problem:?}");
    }
    let shown = serde_json::to_vec(problem).expect("a problem can be written");
    assert!(shown.len() <= 2_000 + 12 * data.len(), "{} bytes", shown.len());
}

fn check_send(send: &SendMessage) {
    if let Some(id) = &send.client_message_id {
        assert!((1..=MAX_CLIENT_MESSAGE_ID_BYTES).contains(&id.len()) && !id.contains('\0'));
    }
    let content = send.content.as_deref().expect("at least an empty one");
    check_content(content, send.mentions.as_deref(), send.metadata.as_ref());
    let metadata = |name| send.metadata.as_ref().and_then(|metadata| metadata.get(name));
    match send.message_type {
        MessageType::Text => assert!(!content.trim().is_empty()),
        MessageType::Location => {
            for (name, bound) in [("latitude", 90.0), ("longitude", 180.0)] {
                assert!(metadata(name).and_then(Value::as_f64).expect(name).abs() <= bound);
            }
        }
        _ => {
            let url = metadata("media_url").and_then(Value::as_str).expect("media_url");
            assert!(url.starts_with("http://") || url.starts_with("https://"));
        }
    }
    // Sent again, as any client may write it, it is the same: P4 rests on it.
    let again = json!({
        "conversation_id": send.conversation_id,
        "message_type": send.message_type,
        "content": send.content,
        "client_message_id": send.client_message_id,
        "parent_message_id": send.parent_message_id,
        "mentions": send.mentions,
        "metadata": send.metadata,
    });
    let again = command::from_json::<SendMessage>(&mut again.to_string().into_bytes());
    let again = again.and_then(|send| send.checked(&LIMITS)).expect("it was good before");
    assert_eq!(again.body_hash(), send.body_hash());
    assert_eq!(again.client_message_id, send.client_message_id);
}

fn check_edit(edit: &EditMessage) {
    let metadata = edit.metadata.iter().flatten().next();
    check_content(&edit.content, edit.mentions.as_deref(), metadata);
}

fn check_content(content: &str, mentions: Option<&[Mention]>, metadata: Option<&Value>) {
    assert!(content.len() <= LIMITS.max_content_bytes && !content.contains('\0'));
    if let Some(mentions) = mentions {
        assert!((1..=MAX_MENTIONS).contains(&mentions.len()));
        let units = content.encode_utf16().count() as u64;
        let inside =
            |m: &Mention| m.length > 0 && u64::from(m.offset) + u64::from(m.length) <= units;
        assert!(mentions.iter().all(inside));
    }
    if let Some(metadata) = metadata {
        assert!(metadata.is_object() && metadata.to_string().len() <= LIMITS.max_metadata_bytes);
        assert!(!has_nul(metadata), "{metadata}");
    }
}

/// Not every database can store it.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn check_title(title: Option<&str>) {
    let fine = |title: &str| {
        title.len() <= MAX_TITLE_BYTES && !title.trim().is_empty() && !title.contains('\0')
    };
    assert!(title.is_none_or(fine));
}

fn check_sync(sync: &Sync) {
    assert!(sync.cursors.len() <= MAX_SYNC_CONVERSATIONS && (1..=MAX_PAGE).contains(&sync.limit));
    for (id, seq) in &sync.cursors {
        assert!((0..=MAX_SEQ).contains(seq));
        assert!(sync.after.is_none_or(|after| after < *id) && sync.to.is_none_or(|to| *id <= to));
    }
    assert!(sync.after.zip(sync.to).is_none_or(|(after, to)| after < to));
}
