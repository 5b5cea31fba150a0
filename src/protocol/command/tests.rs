//! What is decoded, and what is refused with which field.

use super::*;
use crate::ids::UserId;
use crate::protocol::model::{Kind, MessageType};

const LIMITS: Limits = Limits {
    max_frame_bytes: 65_536,
    max_content_bytes: 100,
    max_metadata_bytes: 400,
    max_group_size: 4,
};
const ID: &str = "018bcfe5-6807-7abc-8000-000000000002";

fn decode_text(text: &str) -> Frame {
    decode(&mut text.as_bytes().to_vec(), &LIMITS)
}

fn refused(text: &str) -> Problem {
    decode_text(text).command.expect_err("it is refused")
}

fn send(payload: &str) -> Result<Command, Problem> {
    decode_text(&format!(
        r#"{{"type":"send_message","payload":{{"conversation_id":"{ID}",{payload}}}}}"#
    ))
    .command
}

#[test]
fn a_send_is_decoded_with_its_ref() {
    let frame = decode_text(&format!(
        r#"{{"type":"send_message","ref":"r1","payload":{{"conversation_id":"{ID}","content":"hé","message_type":"text","extra":1}}}}"#
    ));
    assert_eq!(frame.reference.as_deref(), Some("r1"));
    let Ok(Command::SendMessage(send)) = frame.command else { panic!("{:?}", frame.command) };
    assert_eq!(send.content.as_deref(), Some("hé"));
    assert!(matches!(decode_text(r#"{"type":"ping"}"#).command, Ok(Command::Ping)));
}

#[test]
fn every_command_is_known() {
    for name in COMMANDS {
        match decode_text(&format!(r#"{{"type":"{name}"}}"#)).command {
            Ok(command) => assert_eq!(command.name(), name),
            Err(problem) => assert_ne!(problem.code, Code::UnknownCommand, "{name}"),
        }
    }
}

#[test]
fn faults_name_the_field() {
    assert_eq!(refused("{").code, Code::Malformed);
    assert_eq!(refused("[]").code, Code::Malformed);
    assert_eq!(refused(r#"{"type":"fly"}"#).code, Code::UnknownCommand);
    assert_eq!(refused(r#"{"payload":{}}"#).field.as_deref(), Some("type"));
    assert_eq!(refused(r#"{"type":"ping","ref":7}"#).field.as_deref(), Some("ref"));
    let field = |payload| send(payload).expect_err("refused").field.map(|f| f.into_owned());
    assert_eq!(field(r#""message_type":"text","content":7"#).as_deref(), Some("content"));
    assert_eq!(field(r#""content":"x""#).as_deref(), Some("message_type"));
    assert_eq!(field(r#""message_type":"poem","content":"x""#).as_deref(), Some("message_type"));
    assert_eq!(field(r#""message_type":"text","content":"  ""#).as_deref(), Some("content"));
    assert_eq!(field(r#""message_type":"text","content":"a\u0000""#).as_deref(), Some("content"));
    assert_eq!(
        field(r#""message_type":"image","content":"","metadata":{"media_url":"ftp://x"}"#)
            .as_deref(),
        Some("metadata.media_url")
    );
    assert_eq!(
        field(r#""message_type":"location","metadata":{"latitude":91,"longitude":0}"#).as_deref(),
        Some("metadata.latitude")
    );
    let mention = format!(
        r#""message_type":"text","content":"a😀","mentions":[{{"user_id":"{ID}","offset":1,"length":3}}]"#
    );
    assert_eq!(field(&mention).as_deref(), Some("mentions[0]"));
    let length = |length: &str| {
        let mention = format!(r#"{{"user_id":"{ID}","offset":0,"length":{length}}}"#);
        send(&format!(r#""message_type":"text","content":"ab","mentions":[{mention}]"#))
    };
    assert!(length("2").is_ok() && length("2.0").is_ok(), "one number, written in two ways");
    for refused in ["1.5", "-1", "4294967297", "123456789012345678901234567890", "\"1\"", "null"] {
        let problem = length(refused).expect_err(refused);
        assert_eq!(problem.field.as_deref(), Some("mentions[0].length"), "{refused}");
    }
    let large =
        r#""message_type":"text","content":"ab","metadata":{"a":123456789012345678901234567890}"#;
    assert!(send(large).is_ok(), "a number of any size is JSON");
    let long = format!(r#""message_type":"text","content":"{}""#, "x".repeat(101));
    assert_eq!(send(&long).expect_err("refused").code, Code::TooLarge);
    let id =
        format!(r#""message_type":"text","content":"x","client_message_id":"{}""#, "x".repeat(129));
    assert_eq!(field(&id).as_deref(), Some("client_message_id"));
}

#[test]
fn nesting_is_bounded_before_the_parser_recurses() {
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        send(&format!(
            r#""message_type":"text","content":"]\"[{{","metadata":{{"a":{open}{close}}}"#
        ))
    };
    assert!(nested(MAX_DEPTH - 3).is_ok());
    assert_eq!(nested(MAX_DEPTH - 2).expect_err("too deep").code, Code::Malformed);
    assert_eq!(nested(30_000).expect_err("too deep").code, Code::Malformed);
}

#[test]
fn mentions_count_utf_16_units() {
    let mention = format!(
        r#""message_type":"text","content":"a😀","mentions":[{{"user_id":"{ID}","offset":1,"length":2}}]"#
    );
    assert!(send(&mention).is_ok());
}

#[test]
fn the_body_hash_tells_bodies_apart_and_not_spellings() {
    let hash = |payload: &str| match send(payload) {
        Ok(Command::SendMessage(send)) => send.body_hash(),
        other => panic!("{other:?}"),
    };
    let first =
        hash(r#""message_type":"text","content":"a","client_message_id":"1","mentions":[]"#);
    assert_eq!(first, hash(r#""content":"a","message_type":"text","client_message_id":"2""#));
    assert_ne!(first, hash(r#""content":"b","message_type":"text""#));

    let mentions = r#"[{"length":1,"user_id":"018bcfe5-6807-7abc-8000-000000000003","offset":0}]"#;
    let with = |metadata: &str| {
        hash(&format!(
            r#""content":"a é","message_type":"text","mentions":{mentions},"metadata":{metadata}"#
        ))
    };
    let full = with(r#"{"a":1,"b":[{"c":2,"d":"x"}]}"#);
    assert_eq!(full, with(r#"{"b":[{"d":"x","c":2}],"a":1}"#));
    // More keys than the parser keeps in order.
    let many = |keys: &mut dyn Iterator<Item = u8>| {
        let pairs: Vec<_> = keys.map(|key| format!(r#""{}":1"#, char::from(key))).collect();
        with(&format!("{{{}}}", pairs.join(",")))
    };
    let letters = || (b'A'..=b'Z').chain(b'a'..=b'z');
    assert_eq!(many(&mut letters()), many(&mut letters().rev()));
    // It stands in the databases: a repeat after an upgrade has the same.
    let hex: String = full.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "be966aaf7e826c70454a94873b3ab565bc30103b4df71b28c66e422f221126e5");
}

#[test]
fn an_edit_is_decoded_and_checked_for_the_type_of_its_message() {
    let decode = |payload: &str| {
        let text =
            format!(r#"{{"type":"edit_message","payload":{{"message_id":"{ID}",{payload}}}}}"#);
        match decode_text(&text).command {
            Ok(Command::EditMessage(id, edit)) => {
                assert_eq!(id.to_string(), ID);
                Ok(edit)
            }
            Ok(other) => panic!("{other:?}"),
            Err(problem) => Err(problem),
        }
    };
    let kept = decode(r#""content":"a","mentions":[]"#).unwrap();
    assert_eq!((&kept.mentions, &kept.metadata), (&None, &None));
    assert!(kept.check_for(MessageType::Text).is_ok());
    assert!(kept.check_for(MessageType::Image).is_ok());
    let emptied = decode(r#""content":"","metadata":null"#).unwrap();
    assert_eq!(emptied.metadata, Some(None));
    let field = |kind| emptied.check_for(kind).expect_err("refused").field.unwrap();
    assert_eq!(field(MessageType::Text), "content");
    assert_eq!(field(MessageType::Image), "metadata.media_url");
    let media = decode(r#""content":"","metadata":{"media_url":"https://x"}"#).unwrap();
    assert!(media.check_for(MessageType::Video).is_ok());
    assert!(media.check_for(MessageType::Location).is_err());

    let field = |payload| decode(payload).expect_err("refused").field.map(|f| f.into_owned());
    assert_eq!(field(r#""metadata":{}"#).as_deref(), Some("content"));
    assert_eq!(field(r#""content":"a\u0000""#).as_deref(), Some("content"));
    assert_eq!(field(r#""content":"a","metadata":7"#).as_deref(), Some("metadata"));
    let long = format!(r#""content":"{}""#, "x".repeat(101));
    assert_eq!(decode(&long).expect_err("refused").code, Code::TooLarge);
    for frame in [
        r#"{"type":"edit_message","payload":{"content":"a"}}"#,
        r#"{"type":"delete_message","payload":{"message_id":"x"}}"#,
        r#"{"type":"delete_message","payload":7}"#,
    ] {
        assert_eq!(refused(frame).field.as_deref(), Some("message_id"), "{frame}");
    }
}

#[test]
fn conversations_are_checked() {
    let me = UserId(uuid::Uuid::from_u128(1));
    let other = UserId(uuid::Uuid::from_u128(2));
    let create = |kind, participants: &[UserId], title: Option<&str>| {
        CreateConversation {
            kind,
            title: title.map(str::to_owned),
            participants: participants.to_vec(),
        }
        .checked(me, 3)
    };
    let direct = create(Kind::Direct, &[other, me, other], None).unwrap();
    assert_eq!(direct.participants, [other]);
    assert!(create(Kind::Direct, &[me], None).is_err());
    assert!(create(Kind::Direct, &[other], Some("x")).is_err());
    assert!(create(Kind::Group, &[], Some(" ")).is_err());
    let many: Vec<_> = (2..5).map(|n| UserId(uuid::Uuid::from_u128(n))).collect();
    assert!(create(Kind::Group, &many[..2], Some("ok")).is_ok());
    assert!(create(Kind::Group, &many, None).is_err());
}
