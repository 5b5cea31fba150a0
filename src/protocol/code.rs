//! Error codes and close codes: what each is called, means, and whether trying again helps. No
//! number or name is ever used for something else.

/// Why a request or command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Not JSON, or not of the expected shape.
    Malformed,
    /// A `type` that is no command.
    UnknownCommand,
    /// A value outside its limits.
    Invalid,
    Unauthenticated,
    /// A member without the right.
    Forbidden,
    /// The page's origin is not on the list.
    ForeignOrigin,
    /// Does not exist, or is not yours: no difference is shown.
    NotFound,
    MethodNotAllowed,
    /// The `client_message_id` was used with another body.
    IdempotencyMismatch,
    /// The conversation's kind or state does not allow it.
    Conflict,
    TooLarge,
    /// Its body did not arrive in time.
    RequestTimeout,
    UpgradeRequired,
    RateLimited,
    /// Queues are full; nothing was done.
    Busy,
    /// The store or what else is needed is away; nothing was done, or a repeat with the same `client_message_id` tells.
    Unavailable,
    Internal,
}

impl Code {
    pub const ALL: [Code; 17] = [
        Self::Malformed,
        Self::UnknownCommand,
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::ForeignOrigin,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::IdempotencyMismatch,
        Self::Conflict,
        Self::TooLarge,
        Self::RequestTimeout,
        Self::UpgradeRequired,
        Self::RateLimited,
        Self::Busy,
        Self::Unavailable,
        Self::Internal,
    ];

    /// (name on the wire and in metrics, HTTP status, title)
    fn entry(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::Malformed => ("malformed", 400, "The request cannot be read"),
            Self::UnknownCommand => ("unknown_command", 400, "There is no such command"),
            Self::Invalid => ("invalid", 422, "A value is not valid"),
            Self::Unauthenticated => ("unauthenticated", 401, "Who is asking is not known"),
            Self::Forbidden => ("forbidden", 403, "Not allowed"),
            Self::ForeignOrigin => ("foreign_origin", 403, "This origin is not allowed"),
            Self::NotFound => ("not_found", 404, "Not found"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method not allowed"),
            Self::IdempotencyMismatch => {
                ("idempotency_mismatch", 422, "The client_message_id was used with another body")
            }
            Self::Conflict => ("conflict", 409, "The conversation does not allow it"),
            Self::TooLarge => ("too_large", 413, "Too large"),
            Self::RequestTimeout => ("request_timeout", 408, "The request came too slowly"),
            Self::UpgradeRequired => ("upgrade_required", 426, "Open a WebSocket here"),
            Self::RateLimited => ("rate_limited", 429, "Too fast"),
            Self::Busy => ("busy", 503, "Overloaded, nothing was done"),
            Self::Unavailable => ("unavailable", 503, "Not available just now"),
            Self::Internal => ("internal", 500, "Something is broken here"),
        }
    }

    pub fn name(self) -> &'static str {
        self.entry().0
    }

    pub fn status(self) -> u16 {
        self.entry().1
    }

    pub fn title(self) -> &'static str {
        self.entry().2
    }

    /// How long to wait before trying the same again, where that helps.
    pub fn retry_ms(self) -> Option<u64> {
        match self {
            Self::RateLimited => Some(1_000),
            Self::Busy => Some(500),
            Self::Unavailable => Some(2_000),
            _ => None,
        }
    }
}

/// Why a socket is closed. Up to 4099 and below 3000: come back and resume. 44xx: not unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    Normal,
    GoingAway,
    ProtocolError,
    InvalidUtf8,
    TooBig,
    Internal,
    Restart,
    Overload,
    HeartbeatMissed,
    SlowConsumer,
    Resync,
    TooFast,
    BadProtocol,
    TokenExpired,
    Forbidden,
    Replaced,
    TooManyDevices,
    /// The connection ended without a close frame; never sent.
    Lost,
}

impl CloseCode {
    pub const ALL: [CloseCode; 18] = [
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::TooBig,
        Self::Internal,
        Self::Restart,
        Self::Overload,
        Self::HeartbeatMissed,
        Self::SlowConsumer,
        Self::Resync,
        Self::TooFast,
        Self::BadProtocol,
        Self::TokenExpired,
        Self::Forbidden,
        Self::Replaced,
        Self::TooManyDevices,
        Self::Lost,
    ];

    /// (number, name, what happened)
    fn entry(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Normal => (1000, "normal", "The client asked for the end."),
            Self::GoingAway => (1001, "going_away", "The node or the client goes away."),
            Self::ProtocolError => (1002, "protocol_error", "What came breaks RFC 6455."),
            Self::InvalidUtf8 => (1007, "invalid_utf8", "A text is not UTF-8."),
            Self::TooBig => (1009, "too_big", "A message is far above the limit."),
            Self::Internal => (1011, "internal", "Something is broken in the node."),
            Self::Restart => (1012, "restart", "The node restarts; others are there."),
            Self::Overload => (1013, "overload", "The node cannot take the session now."),
            Self::HeartbeatMissed => (4000, "heartbeat_missed", "A ping was not answered."),
            Self::SlowConsumer => (4001, "slow_consumer", "Too much waited for the client."),
            Self::Resync => (4003, "resync", "Events were lost: read again what was missed."),
            Self::TooFast => (4029, "too_fast", "Too many commands."),
            Self::BadProtocol => (4400, "bad_protocol", "Too many frames made no sense."),
            Self::TokenExpired => (4401, "token_expired", "The token is not valid any more."),
            Self::Forbidden => (4403, "forbidden", "This user may not be here."),
            Self::Replaced => (4409, "replaced", "The same device connected again."),
            Self::TooManyDevices => (4429, "too_many_devices", "The user has too many devices."),
            Self::Lost => (1006, "lost", "The connection ended without a close; never sent."),
        }
    }

    pub fn meaning(self) -> &'static str {
        self.entry().2
    }

    pub fn number(self) -> u16 {
        self.entry().0
    }

    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// How long a client waits at least before it comes back; None where it must not come back
    /// unchanged, or has asked for the end itself.
    pub fn retry_ms(self) -> Option<u64> {
        match self {
            Self::GoingAway | Self::Restart | Self::HeartbeatMissed | Self::Resync => Some(100),
            Self::SlowConsumer => Some(500),
            Self::Overload | Self::TooFast => Some(2_000),
            _ => None,
        }
    }

    /// The close frame's reason: JSON within the 123 bytes that a close frame can hold.
    pub fn reason(self) -> String {
        match self.retry_ms() {
            Some(ms) => format!("{{\"reason\":\"{}\",\"retry_ms\":{ms}}}", self.name()),
            None => format!("{{\"reason\":\"{}\"}}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_or_number_is_used_twice() {
        let names: HashSet<_> = Code::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let numbers: HashSet<_> = CloseCode::ALL.iter().map(|c| c.number()).collect();
        assert_eq!(numbers.len(), CloseCode::ALL.len());
    }

    #[test]
    fn reasons_fit_into_a_close_frame() {
        for code in CloseCode::ALL {
            let reason = code.reason();
            assert!(reason.len() <= 123, "{reason}");
            let _: serde_json::Value = serde_json::from_str(&reason).unwrap();
        }
    }
}
