//! Postgres behind TLS and passwords, and with no more rights than a node needs.

use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::harness::certs::Authority;
use crate::harness::cluster::{Ground, Kind, Settings, on_ground};
use crate::harness::http::Rest;
use crate::harness::own_postgres::{OwnPostgres, PASSWORD};
use crate::harness::process::Process;

/// A node without Redis and Kafka on this database: what is left is about Postgres.
fn alone(ground: &Ground, database: &[(&str, &str)]) -> Settings {
    let mut changed = vec![
        ("DATABASE_URL", ""),
        ("REDIS_URL", ""),
        ("REDIS_PREFIX", ""),
        ("KAFKA_BROKERS", ""),
        ("KAFKA_OFFLINE_TOPIC", ""),
    ];
    changed.extend(database);
    ground.settings_with("0", &changed)
}

async fn serves(what: &str, settings: &Settings) {
    let (process, addr) = Process::node(settings).await;
    let ready = Rest::new(addr, None).get("/ready").await;
    assert_eq!(ready.status, 200, "{what}: {}", ready.text);
    assert!(!process.errors().contains(PASSWORD), "{what}: the password is logged");
}

async fn is_refused(what: &str, settings: &Settings, code: i32, named: &[&str]) {
    let mut process = Process::start(&[], settings);
    let status = process.exit().await;
    let errors = process.errors();
    assert_eq!(status.code(), Some(code), "{what}: {errors}");
    let told = errors.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    for name in named {
        assert!(told.contains(name), "{what}: {name} is not named: {told}");
    }
    assert!(!errors.contains(PASSWORD), "{what}: the password is shown");
}

#[tokio::test]
async fn a_server_proves_who_it_is_and_asks_for_a_password() {
    let (ours, other) = (Authority::new(), Authority::new());
    // Without the address 127.0.0.1.
    let certificate = ours.issue("server", "DNS:localhost");
    let Some(postgres) = OwnPostgres::start(Some(&certificate)).await else { return };
    let encryption = "current_setting('password_encryption')";
    assert_eq!(postgres.ask(encryption).await, "scram-sha-256");
    on_ground(Kind::Cluster, &[], async |ground| {
        let (ours, other) = (ours.file(), other.file());
        let (ours, other) = (ours.to_str().unwrap(), other.to_str().unwrap());
        let by_url = |host: &str, password: &str, query: &str| {
            let port = postgres.port;
            let url = format!("postgres://postgres:{password}@{host}:{port}/postgres?{query}");
            alone(ground, &[("DATABASE_URL", &url)])
        };
        let port = postgres.port.to_string();
        let by_parts = |host: &str, mode: &str, ca: &str| {
            alone(
                ground,
                &[
                    ("DB_HOST", host),
                    ("DB_PORT", &port),
                    ("DB_PASSWORD", PASSWORD),
                    ("DB_NAME", "postgres"),
                    ("DB_SSLMODE", mode),
                    ("DB_SSLROOTCERT", ca),
                ],
            )
        };
        let full = format!("sslmode=verify-full&sslrootcert={ours}");
        let url = by_url("localhost", PASSWORD, &full);
        serves("verify-full by URL", &url).await;
        serves("verify-ca by URL", &by_url("127.0.0.1", PASSWORD, &full.replace("full", "ca")))
            .await;
        serves("require", &by_url("127.0.0.1", PASSWORD, "sslmode=require")).await;
        serves("verify-full in parts", &by_parts("localhost", "verify-full", ours)).await;
        serves("verify-ca in parts", &by_parts("127.0.0.1", "verify-ca", ours)).await;
        // All of them were encrypted: the server takes no other.
        let plain = by_url("localhost", PASSWORD, "sslmode=disable");
        is_refused("in the clear", &plain, 1, &["DATABASE_URL", "no encryption"]).await;

        let named = ["DATABASE_URL", "no trusted connection", "DB_SSLROOTCERT"];
        let foreign = format!("sslmode=verify-full&sslrootcert={other}");
        let foreign = by_url("localhost", PASSWORD, &foreign);
        is_refused("another authority", &foreign, 1, &named).await;
        is_refused("another, in parts", &by_parts("localhost", "verify-ca", other), 1, &named)
            .await;
        is_refused("another name", &by_url("127.0.0.1", PASSWORD, &full), 1, &named).await;
        let public = by_url("localhost", PASSWORD, "sslmode=verify-full");
        is_refused("only public authorities", &public, 1, &named).await;
        let wrong = by_url("localhost", "wrong", &full);
        is_refused("a wrong password", &wrong, 1, &["DATABASE_URL", "password"]).await;

        let missing = by_url("localhost", PASSWORD, "sslmode=verify-full&sslrootcert=/no/such");
        is_refused("no such file", &missing, 64, &["DATABASE_URL", "/no/such"]).await;
        let key = certificate.key.to_str().unwrap();
        let named = ["DB_SSLROOTCERT", "certificates"];
        is_refused("a key", &by_parts("localhost", "verify-full", key), 64, &named).await;
        let named = ["DB_SSLROOTCERT", "DB_SSLMODE"];
        is_refused("no look", &by_parts("localhost", "require", ours), 64, &named).await;
    })
    .await;
}

/// The SQL that docs/postgres.md gives an operator.
fn roles() -> String {
    let document = include_str!("../../docs/postgres.md");
    let blocks = document.split("```sql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_node_needs_no_right_to_change_tables() {
    let Some(postgres) = OwnPostgres::start(None).await else { return };
    on_ground(Kind::Cluster, &[], async |ground| {
        let sql = roles().replace("'...'", &format!("'{PASSWORD}'"));
        let (roles, rights) = sql.split_once("-- after the first `tidings migrate`").unwrap();
        let (databases, roles): (Vec<_>, Vec<_>) =
            roles.split_inclusive(";\n").partition(|line| line.contains("create database"));
        postgres.sql(&roles.concat()).await;
        postgres.sql(&databases.concat()).await;
        let at = |user: &str| postgres.url(user).replace("/postgres", "/tidings");
        let migrate = ground.settings_with("0", &[("DATABASE_URL", &at("tidings_owner"))]);
        let mut migrating = Process::start(&["migrate"], &migrate);
        assert!(migrating.exit().await.success(), "{}", migrating.errors());
        let execute = async |user: &str, statement: &str| {
            let options: sqlx::postgres::PgConnectOptions = at(user).parse().unwrap();
            let mut connection = options.connect().await.unwrap();
            let statement = AssertSqlSafe(statement.to_owned());
            sqlx::raw_sql(statement).execute(&mut connection).await
        };
        execute("tidings_owner", rights).await.unwrap();

        let settings = [("DATABASE_URL", at("tidings_node")), ("MIGRATE_ON_START", "false".into())];
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let own = ground.settings_with("0", &settings);
        crate::flows::all(&own).await;
        let mut verify = Process::start(&["verify"], &own);
        assert!(verify.exit().await.success(), "{}{}", verify.output(), verify.errors());
        for statement in [
            "create table t (a int)",
            "alter table messages add column a int",
            "drop table receipts",
            "truncate messages",
            "delete from messages",
            "delete from conversations",
            "delete from _sqlx_migrations",
        ] {
            let refused = execute("tidings_node", statement).await.unwrap_err();
            let code = refused.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refused}");
        }
    })
    .await;
}
