//! A store restored from its backup, by the commands of docs/backup.md: what came after the backup is
//! gone, and no client takes what took its place for what it holds.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::cluster::{Ground, Kind, Settings, id, on_ground, text, user};
use crate::harness::http::Rest;
use crate::harness::process::{Process, Signal};

const DOCUMENT: &str = include_str!("../../docs/backup.md");

#[tokio::test(flavor = "multi_thread")]
async fn postgres_from_a_dump() {
    let back_up = [r#"pg_dump --format=custom --file=tidings.dump "$DATABASE_URL""#];
    let restore = [
        "pg_restore --clean --if-exists --no-owner --single-transaction \
         --dbname=\"$DATABASE_URL\" tidings.dump",
        "psql \"$DATABASE_URL\" --command=\"update store_meta set store_epoch = gen_random_uuid()\"",
    ];
    on_ground(Kind::Cluster, &[], async |ground| restored(ground, &back_up, &restore).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_from_a_copy() {
    let back_up = [r#"sqlite3 "$DATA_DIR/tidings.db" "vacuum into '$BACKUP/tidings.db'""#];
    let restore = [
        r#"rm -f "$DATA_DIR/tidings.db-wal" "$DATA_DIR/tidings.db-shm""#,
        r#"install -m 600 "$BACKUP/tidings.db" "$DATA_DIR/tidings.db""#,
        "sqlite3 \"$DATA_DIR/tidings.db\" \"update store_meta set store_epoch = randomblob(16)\"",
    ];
    on_ground(Kind::Embedded, &[], async |ground| restored(ground, &back_up, &restore).await).await;
}

/// As an operator would, in a folder of backups.
fn run(ground: &Ground, settings: &Settings, commands: &[&str]) {
    let folder = ground.folder().join("backups");
    std::fs::create_dir_all(&folder).unwrap();
    for command in commands {
        assert!(DOCUMENT.contains(command), "not in docs/backup.md: {command}");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).current_dir(&folder).env("BACKUP", &folder).envs(settings);
        let done = shell.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command}: {said}");
    }
}

async fn restored(ground: &Ground, back_up: &[&str], restore: &[&str]) {
    let settings = ground.settings("0");
    let alice = user();
    let (mut node, addr) = Process::node(&settings).await;
    let rest = Rest::new(addr, Some(alice));
    let group = json!({ "kind": "group", "title": "Friends", "participants": [user()] });
    let group = id(&rest.post("/api/v1/conversations", group).await.body(201)["id"]);
    let send = async |rest: &Rest, content: &str| -> Value {
        rest.post("/api/v1/messages", text(group, content)).await.body(201)
    };
    send(&rest, "kept").await;
    run(ground, &settings, back_up);
    let lost = send(&rest, "lost").await;
    let sync = async |rest: &Rest, epoch: &Value, cursor: &Value| -> Value {
        let body = json!({ "conversations": { group.to_string(): cursor }, "store_epoch": epoch });
        rest.post("/api/v1/sync", body).await.body(200)
    };
    let before = sync(&rest, &Value::Null, &json!(0)).await;
    let (epoch, cursor) = (&before["store_epoch"], &before["conversations"][0]["next_seq"]);
    assert_eq!(cursor, &lost["seq"]);
    node.signal(Signal::TERM);
    assert!(node.exit().await.success());

    run(ground, &settings, restore);
    for command in ["check", "verify"] {
        let mut process = Process::start(&[command], &settings);
        assert_eq!(process.exit().await.code(), Some(0), "{command}: {}", process.output());
    }
    let (_node, addr) = Process::node(&settings).await;
    let rest = Rest::new(addr, Some(alice));
    let new = send(&rest, "new").await;
    assert_eq!(new["seq"], lost["seq"], "the place of what was lost is given away again");
    // By its cursor alone this client would have all there is.
    let after = sync(&rest, epoch, cursor).await;
    assert_ne!(&after["store_epoch"], epoch);
    assert_eq!(after["conversations"][0]["status"], "reset", "{after}");
    let history = rest.get(&format!("/api/v1/conversations/{group}/messages")).await.body(200);
    let contents: Vec<_> = history["messages"].as_array().unwrap().iter().collect();
    let contents: Vec<_> = contents.iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, ["new", "kept"]);
}
