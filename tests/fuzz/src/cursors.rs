use std::fmt::{Debug, Display};
use std::str::FromStr;

use tidings::ids::{DeviceId, MessageId, UserId};
use tidings::store::types::ConversationCursor;

/// Texts of paths and queries: cursors of lists, ids before and after which a page lies, devices.
pub fn cursors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(cursor) = comes_back::<ConversationCursor>(text) {
        assert!((0..1 << 45).contains(&cursor.last_activity_at.millis()), "no database's time");
    }
    comes_back::<MessageId>(text);
    comes_back::<UserId>(text);
    if let Ok(device) = text.parse::<DeviceId>() {
        assert!(device.as_str() == text && (1..=DeviceId::MAX_BYTES).contains(&text.len()));
        assert!(!text.contains(char::is_control));
    }
}

/// What is accepted is the same again as we would write it.
fn comes_back<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let again = value.to_string();
    assert_eq!(again.parse().ok().as_ref(), Some(&value), "{text:?} becomes {again:?}");
    Some(value)
}
