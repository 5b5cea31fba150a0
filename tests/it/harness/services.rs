//! Where the real services are: `scripts/test` starts them and says so in `TEST_*` variables.

/// The Postgres in which tests make databases of their own; None in an embedded-only run.
pub fn postgres() -> Option<String> {
    address("TEST_DATABASE_URL")
}

/// The Redis in which tests use prefixes of their own; None in an embedded-only run.
pub fn redis() -> Option<String> {
    address("TEST_REDIS_URL")
}

/// The brokers on which tests make topics of their own; None in an embedded-only run.
pub fn kafka() -> Option<String> {
    address("TEST_KAFKA_BROKERS")
}

/// The broker's jars, to start one of a test's own; None in an embedded-only run.
pub fn kafka_jars() -> Option<String> {
    address("TEST_KAFKA_JARS")
}

/// Java's archive of the broker's classes, which may not be there.
#[expect(clippy::disallowed_methods, reason = "tests have no config to read the environment")]
pub fn kafka_classes() -> Option<String> {
    std::env::var("TEST_KAFKA_CLASSES").ok()
}

/// A test that could not run must never look like one that passed: without the variable it fails,
/// unless the run was asked to be embedded only.
#[expect(
    clippy::disallowed_methods,
    reason = "tests have no config to read the environment for them"
)]
fn address(variable: &str) -> Option<String> {
    if let Ok(address) = std::env::var(variable) {
        return Some(address);
    }
    if std::env::var("TIDINGS_TEST_EMBEDDED_ONLY").is_ok_and(|value| value == "1") {
        println!("did not run: {variable} is not set, and this run is embedded only");
        return None;
    }
    panic!("{variable} is not set: run scripts/test, which starts the services");
}

/// What the nodes of this process log; None: nothing.
#[expect(clippy::disallowed_methods, reason = "tests have no config to read the environment")]
pub fn log_level() -> Option<String> {
    std::env::var("TIDINGS_TEST_LOG").ok()
}

/// How much a heavy test does, if its own measure is not wanted.
#[expect(clippy::disallowed_methods, reason = "tests have no config to read the environment")]
pub fn messages(usual: usize) -> usize {
    std::env::var("TIDINGS_TEST_MESSAGES").map_or(usual, |text| text.parse().expect("a number"))
}
