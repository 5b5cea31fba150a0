//! The pool goes by way of a pgbouncer in transaction mode, with more clients than connections.

use crate::check::check;
use crate::flows;
use crate::harness::cluster::{Kind, on_ground};
use crate::harness::own_postgres::Pooler;
use crate::harness::process::Process;

#[tokio::test(flavor = "multi_thread")]
async fn all_goes_on_by_way_of_a_pooler() {
    let Some(pooler) = Pooler::start().await else { return };
    on_ground(Kind::Cluster, &[], async |ground| {
        let (_, database) = ground.setting("DATABASE_URL").rsplit_once('/').unwrap();
        let url = pooler.url(database);
        let changed = [("DATABASE_POOL_URL", url.as_str()), ("DB_POOL_SIZE", "12")];
        let settings = ground.settings_with("0", &changed);
        flows::all(&settings).await;
        let told = check(&settings).await;
        told.expect("postgres", "pooler", "ok", "the same data");
        assert_eq!(told.problems(), 0, "{told:?}");
    })
    .await;
}

#[tokio::test]
async fn a_pooler_or_replica_of_other_data_is_refused() {
    let Some(pooler) = Pooler::start().await else { return };
    on_ground(Kind::Cluster, &[], async |ground| {
        // Without tables.
        let other = pooler.url("postgres");
        let away = "postgres://tidings:hunter2@127.0.0.1:1/tidings".to_owned();
        let (server, _) = ground.setting("DATABASE_URL").rsplit_once('/').unwrap();
        let replica = format!("{server}/postgres");
        for (name, url, told) in [
            ("DATABASE_POOL_URL", &other, "other data"),
            ("DATABASE_POOL_URL", &away, "cannot be reached"),
            ("DATABASE_REPLICA_URL", &replica, "other data"),
        ] {
            let settings = ground.settings_with("0", &[(name, url)]);
            let mut process = Process::start(&[], &settings);
            assert_eq!(process.exit().await.code(), Some(1), "{url}");
            let errors = process.errors();
            assert!(errors.contains(name) && errors.contains(told), "{errors}");
            assert!(!errors.contains("hunter2"), "{errors}");
            let found = check(&settings).await;
            let (part, told) = match (name, told) {
                ("DATABASE_POOL_URL", "other data") => ("pooler", told),
                ("DATABASE_POOL_URL", _) => ("pooler", "127.0.0.1:1/"),
                _ => ("replica", told),
            };
            found.expect("postgres", part, "problem", told);
            found.expect("postgres", part, "problem", name);
        }
    })
    .await;
}
