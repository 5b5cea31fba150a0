//! A node that cannot start says so in one line that names the setting, soon, and tells no secret.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::harness::cluster::{Ground, Kind, Settings, on_ground};
use crate::harness::process::{Process, Signal};

const SOON: Duration = Duration::from_secs(15);

/// Expects that a node with these settings ends; returns what it said.
async fn refuses(what: &str, settings: &Settings, code: i32, named: &[&str]) -> String {
    let started = Instant::now();
    let mut process = Process::start(&[], settings);
    let status = process.exit_within(SOON).await;
    let errors = process.errors();
    println!("{what}: {:?} after {:?}\n{errors}\n", status.code(), started.elapsed());
    assert_eq!(status.code(), Some(code), "{what}");
    for name in named {
        assert!(errors.contains(name), "{what}: {name} is not named");
    }
    assert!(!errors.contains("panicked"), "{what}");
    assert!(!process.output().contains("http://"), "{what}: it said that it serves");
    errors
}

/// As above, for what shows when the node connects: one line beside the log.
async fn fails(what: &str, settings: &Settings, named: &[&str]) {
    let errors = refuses(what, settings, 1, named).await;
    let told: Vec<&str> = errors.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(told.len(), 1, "{what}: one line for people");
    assert!(told[0].starts_with("tidings: "), "{what}");
    for name in named {
        assert!(told[0].contains(name), "{what}: {name} is not in that line");
    }
    for secret in ["hunter2", "tidings:tidings"] {
        assert!(!errors.contains(secret), "{what}: the password is shown");
    }
}

#[tokio::test]
async fn all_faulty_settings_are_named_at_once() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let settings = ground.settings_with(
            "0",
            &[
                ("SERVER_PORT", "eighty"),
                ("SETTLE_GRACE", "5"),
                ("MAX_CONTENT_BYTES", "16"),
                ("DATABASE_URL", "mysql://root:hunter2@db/x"),
                ("REDIS_URL", "cache:hunter2"),
                ("KAFKA_BROKERS", "kafka"),
                ("AUTH_MODE", "gateway"),
                ("LOG_LEVEL", "loud"),
                ("MAX_GROUP_SIZE", "1"),
                ("ALLOWED_ORIGINS", "*"),
            ],
        );
        let named = [
            "SERVER_PORT",
            "SETTLE_GRACE",
            "MAX_CONTENT_BYTES",
            "DATABASE_URL",
            "REDIS_URL",
            "KAFKA_BROKERS",
            "TRUSTED_PROXIES",
            "LOG_LEVEL",
            "MAX_GROUP_SIZE",
            "ALLOWED_ORIGINS",
        ];
        let errors = refuses("many faults", &settings, 64, &named).await;
        assert!(!errors.contains("hunter2"), "a secret is shown");
        assert!(errors.lines().count() <= named.len() + 1, "a line for each");
        let open = ground.settings_with("0", &[("SERVER_HOST", "0.0.0.0")]);
        refuses("dev mode within reach of others", &open, 64, &["SERVER_HOST", "AUTH_MODE"]).await;
        let shared = ground.settings_with("0", &[("REDIS_URL", "redis://127.0.0.1:1")]);
        refuses("several nodes on a SQLite file", &shared, 64, &["DATABASE_URL", "REDIS_URL"])
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_folder_or_port_that_cannot_be_used_is_named() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let file = ground.folder().join("file");
        std::fs::write(&file, "not a folder").unwrap();
        let inside = file.join("data").to_string_lossy().into_owned();
        fails(
            "DATA_DIR in a file",
            &ground.settings_with("0", &[("DATA_DIR", &inside)]),
            &["DATA_DIR"],
        )
        .await;
        let proc = ground.settings_with("0", &[("DATA_DIR", "/proc/tidings")]);
        fails("DATA_DIR where nothing can be made", &proc, &["DATA_DIR"]).await;
        let garbage = ground.data_dir("garbage");
        std::fs::create_dir(&garbage).unwrap();
        std::fs::write(
            garbage.join("tidings.db"),
            "no database, but long enough to look like one".repeat(99),
        )
        .unwrap();
        fails("a file that is no database", &ground.settings("garbage"), &["DATA_DIR"]).await;
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let port = ground.settings_with("0", &[("SERVER_PORT", &addr.port().to_string())]);
        fails("a port that is taken", &port, &["SERVER_PORT"]).await;
        let admin = ground.settings_with("0", &[("ADMIN_ADDR", &addr.to_string())]);
        fails("an admin port that is taken", &admin, &["ADMIN_ADDR"]).await;
    })
    .await;
}

/// Listens, and never answers: a host behind a firewall, or a hung one.
fn hung() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:1";

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let url = ground.setting("DATABASE_URL");
        let (_, host) = url.split_once('@').expect("the address holds a password");
        let database = host.rsplit_once('/').unwrap().1;
        let (_hung, hung) = hung();
        for (what, url) in [
            ("a wrong password", format!("postgres://tidings:hunter2@{host}")),
            ("an unknown user", format!("postgres://nobody:hunter2@{host}")),
            ("an unknown database", url.replace(database, "no_such_database")),
            ("nobody there", format!("postgres://tidings:hunter2@{NOBODY}/{database}")),
            ("a host that hangs", format!("postgres://tidings:hunter2@{hung}/{database}")),
            ("an unknown host", "postgres://tidings:hunter2@no.such.host.invalid/x".into()),
        ] {
            fails(what, &ground.settings_with("0", &[("DATABASE_URL", &url)]), &["DATABASE_URL"])
                .await;
            let settings = ground.settings_with("0", &[("DATABASE_URL", &url)]);
            let mut migrate = Process::start(&["migrate"], &settings);
            assert_eq!(migrate.exit_within(SOON).await.code(), Some(1), "{what}");
            assert!(migrate.errors().contains("DATABASE_URL"), "{what}: {}", migrate.errors());
            assert!(!migrate.errors().contains("hunter2"), "{what}: {}", migrate.errors());
        }
        let empty = ground.settings_with("0", &[("MIGRATE_ON_START", "false")]);
        fails("no tables", &empty, &["DATABASE_URL", "tidings migrate"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_is_named() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let (_hung, hung) = hung();
        let host = ground.setting("REDIS_URL").trim_start_matches("redis://");
        for (what, url) in [
            ("nobody there", format!("redis://:hunter2@{NOBODY}")),
            ("a host that hangs", format!("redis://:hunter2@{hung}")),
            ("a wrong password", format!("redis://someone:hunter2@{host}")),
            ("an unknown host", "redis://:hunter2@no.such.host.invalid".into()),
        ] {
            fails(what, &ground.settings_with("0", &[("REDIS_URL", &url)]), &["REDIS_URL"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn brokers_that_cannot_be_used_are_named() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let (_hung, hung) = hung();
        for (what, brokers) in [("nobody there", NOBODY), ("a host that hangs", &hung)] {
            let settings = ground.settings_with("0", &[("KAFKA_BROKERS", brokers)]);
            fails(what, &settings, &["KAFKA_BROKERS"]).await;
        }
    })
    .await;
}

/// Without keys nobody could come in.
#[tokio::test]
async fn an_issuer_that_cannot_be_asked_is_named() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let (_hung, hung) = hung();
        for (what, url) in [
            ("nobody there", format!("http://{NOBODY}/keys?code=hunter2")),
            ("a host that hangs", format!("https://{hung}/keys?code=hunter2")),
            ("an unknown host", "https://no.such.host.invalid/keys?code=hunter2".into()),
        ] {
            let settings = [("AUTH_MODE", "jwt"), ("JWT_JWKS_URL", url.as_str())];
            fails(what, &ground.settings_with("0", &settings), &["JWT_JWKS_URL"]).await;
        }
    })
    .await;
}

/// Nodes that do not hear each other would lose messages: the second one does not start.
async fn second_node(ground: &Ground, alone: &[(&str, &str)], named: &[&str]) {
    let (first, _) = Process::node(&ground.settings_with("0", alone)).await;
    let mut settings = ground.settings_with("1", alone);
    if ground.kind == Kind::Embedded {
        settings = ground.settings_with("0", alone);
    }
    fails("a second node that hears nobody", &settings, named).await;
    // When the first one is gone, however it went, another takes its place.
    first.kill();
    let (_second, _) = Process::node(&settings).await;
}

#[tokio::test]
async fn a_second_node_on_the_same_file_is_refused() {
    on_ground(Kind::Embedded, &[], async |ground| {
        second_node(ground, &[], &["DATA_DIR"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_node_without_redis_on_the_same_database_is_refused() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let alone = [("REDIS_URL", ""), ("REDIS_PREFIX", "")];
        second_node(ground, &alone, &["DATABASE_URL", "REDIS_URL"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_node_is_asked_on_its_machine_whether_it_serves() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let (mut node, addr) = Process::node(&ground.settings("0")).await;
        let port = addr.port().to_string();
        let asked = async |settings: &[(&str, &str)]| {
            let mut process = Process::start(&["health"], &ground.settings_with("0", settings));
            let code = process.exit_within(SOON).await.code();
            (code, process.output() + &process.errors())
        };
        assert_eq!(asked(&[("SERVER_PORT", &port)]).await, (Some(0), "ok".into()));
        let addr = addr.to_string();
        let operators = [("SERVER_PORT", "1"), ("ADMIN_ADDR", addr.as_str())];
        assert_eq!(asked(&operators).await.0, Some(0), "the operators' door is asked first");
        let (code, said) = asked(&[]).await;
        assert!(code == Some(1) && said.contains("port 0"), "{said}");
        let (_hung, hung) = hung();
        let (code, said) = asked(&[("ADMIN_ADDR", &hung)]).await;
        assert!(code == Some(1) && said.contains("did not answer"), "{said}");
        node.signal(Signal::TERM);
        assert!(node.exit().await.success());
        let (code, said) = asked(&[("SERVER_PORT", &port)]).await;
        assert!(code == Some(1) && said.contains("does not answer"), "{said}");
    })
    .await;
}
