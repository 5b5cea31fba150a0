//! What a node needs of its database, looked at one by one: for `tidings check`. Changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Either, Executor, FromRow, PgConnection, SqlSafeStr};
use tokio::time::timeout;

use super::pool::to_pooler;
use super::{ANSWER_LIMIT, MIGRATOR, SINGLE_NODE_LOCK, connect, epoch_of, error, session, sql};
use crate::clock::Timestamp;
use crate::config::PostgresConfig;
use crate::finding::Findings;
use crate::store::StoreError;

/// `server_version_num` of the oldest release that the statements run on.
const OLDEST: i32 = 150_000;

/// What else of the settings the database has to bear.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Connections of a node: its lanes, its pool, and one more to spare.
    pub connections: u32,
    /// A node may lay the tables itself.
    pub migrates: bool,
    /// There is no Redis: one node alone may work on it.
    pub single_node: bool,
}

/// All that one statement tells.
#[derive(FromRow)]
struct Server {
    version: i32,
    version_text: String,
    is_standby: bool,
    superuser: bool,
    user_name: String,
    encrypted: bool,
    utf8: bool,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    standby_names: String,
    /// For this user: of the server, of his role, of the database; without what is kept for others.
    connections: i32,
    connected: i64,
    schema: Option<String>,
    may_create: bool,
}

const SERVER: &str = "
select current_setting('server_version_num')::int4 as version,
    current_setting('server_version') as version_text,
    pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool as is_standby,
    r.rolsuper as superuser,
    current_user::text as user_name,
    coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false) as encrypted,
    current_setting('server_encoding') = 'UTF8' as utf8,
    current_setting('fsync')::bool as fsync,
    current_setting('full_page_writes')::bool as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('synchronous_standby_names') as standby_names,
    least(
        current_setting('max_connections')::int4
            - case when r.rolsuper then 0
                else current_setting('superuser_reserved_connections')::int4 end,
        nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)) as connections,
    (select count(*) from pg_stat_activity
        where backend_type = 'client backend' and pid <> pg_backend_pid()) as connected,
    current_schema()::text as schema,
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) as may_create
from pg_roles r, pg_database d
where r.rolname = current_user and d.datname = current_database()";

pub async fn check(config: &PostgresConfig, demand: Demand, found: &mut Findings) {
    let options = session(config.options.clone()).application_name("tidings check");
    let place = place(&options);
    let started = Instant::now();
    let mut connection = match connect(&options).await {
        Ok(connection) => connection,
        Err(error) => {
            let fix = match &error {
                StoreError::Login(_) => {
                    "let this user in: his password, the name of the database, pg_hba.conf"
                }
                _ => "start it, and see that DATABASE_URL (or DB_HOST) and the way to it are right",
            };
            return found.problem("reachable", format!("{place}: {error}"), fix);
        }
    };
    found.ok("reachable", format!("{place}, in {} ms", started.elapsed().as_millis()));
    let server: Server = match row(&mut connection, SERVER).await {
        Ok(server) => server,
        Err(error) => {
            let fix = "this is no PostgreSQL as we know it: is a pooler in between?";
            return found.problem("version", error.to_string(), fix);
        }
    };
    let local = match options.get_socket() {
        Some(_) => true,
        None => matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1" | "[::1]"),
    };
    judge(&server, local || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull), found);
    connections(&server, demand, found);
    clock(&mut connection, found).await;
    let laid = schema(&mut connection, &server, demand, found).await;
    if laid {
        rights(&mut connection, &server, found).await;
    }
    if demand.single_node {
        alone(&mut connection, found).await;
    }
    drop(connection.close().await);
    for (check, setting, other) in [
        ("pooler", "DATABASE_POOL_URL", config.pooler.clone().map(to_pooler)),
        ("replica", "DATABASE_REPLICA_URL", config.replica.clone().map(session)),
    ] {
        if let Some(other) = other {
            other_way(check, setting, &options, &other, found).await;
        }
    }
}

fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

/// A pooler or replica, which must lead to the same data as `own` does.
async fn other_way(
    check: &'static str,
    setting: &str,
    own: &PgConnectOptions,
    other: &PgConnectOptions,
    found: &mut Findings,
) {
    let place = place(other);
    match (epoch_of(own).await.ok().flatten(), epoch_of(other).await) {
        (_, Err(error)) => {
            let fix = format!("start it, and see that {setting}, its user and password are right");
            found.problem(check, format!("{place}: {error}"), fix);
        }
        (None, Ok(_)) => {
            let detail = format!("{place} answers; the data is compared once there are tables");
            found.ok(check, detail);
        }
        (own, Ok(other)) if own == other => found.ok(check, format!("{place}: the same data")),
        (Some(_), Ok(_)) => {
            let fix = format!("let {setting} lead to the database of DATABASE_URL");
            found.problem(check, format!("{place} leads to other data"), fix);
        }
    }
}

fn judge(server: &Server, private: bool, found: &mut Findings) {
    let version = format!("PostgreSQL {}", server.version_text);
    match server.version >= OLDEST {
        true => found.ok("version", version),
        false => found.problem("version", version, "PostgreSQL 15 or later"),
    }
    if server.is_standby {
        let fix = "name the primary; after a fail-over let the address follow it";
        found.problem("role", "it is read-only: a standby", fix);
    }
    if !server.utf8 {
        let fix = "make the database anew: create database … encoding 'UTF8' template template0";
        found.problem("encoding", "the database's encoding is not UTF8", fix);
    }
    if server.superuser {
        let detail = format!("{} is a superuser", server.user_name);
        found.warning("user", detail, "a role of its own, see docs/postgres.md");
    } else {
        found.ok("user", server.user_name.clone());
    }
    match (server.encrypted, private) {
        (true, _) => found.ok("tls", "the connection is encrypted"),
        (false, true) => found.ok("tls", "not encrypted, and on this machine"),
        (false, false) => {
            let detail = "the connection is not encrypted, and leaves this machine";
            found.warning("tls", detail, "sslmode=verify-full (DB_SSLMODE)");
        }
    }
    let unsafe_settings: Vec<&str> = [
        ("fsync=off", server.fsync),
        ("full_page_writes=off", server.full_page_writes),
        (
            "synchronous_commit is not on",
            matches!(server.synchronous_commit.as_str(), "on" | "remote_apply"),
        ),
    ]
    .into_iter()
    .filter_map(|(name, fine)| (!fine).then_some(name))
    .collect();
    match unsafe_settings.is_empty() {
        true => found.ok("durability", "a commit is on its disk"),
        false => found.problem(
            "durability",
            format!("{}: what is acknowledged may be lost in a crash", unsafe_settings.join(", ")),
            "take these settings back; a pooler must let synchronous_commit through",
        ),
    }
    match server.standby_names.is_empty() {
        true => found.warning(
            "standby",
            "no synchronous standby: what is acknowledged is lost if this database's machine is",
            "a standby, named in synchronous_standby_names",
        ),
        false => found.ok("standby", format!("a commit waits for {}", server.standby_names)),
    }
}

fn connections(server: &Server, demand: Demand, found: &mut Findings) {
    let (has, taken) = (i64::from(server.connections), server.connected);
    let needs = i64::from(demand.connections);
    let detail = format!(
        "a node takes {needs} (DB_WRITE_LANES, DB_POOL_SIZE, one to spare); there are {has}, \
         enough for {} nodes; {taken} are taken",
        has / needs
    );
    if needs > has {
        let fix = "raise max_connections (or the limit of the role or database), or lower \
                   DB_WRITE_LANES and DB_POOL_SIZE";
        found.problem("connections", detail, fix);
    } else if needs > has - taken {
        let fix = "fine if these are nodes that go; else raise max_connections";
        found.warning("connections", detail, fix);
    } else {
        found.ok("connections", detail);
    }
}

async fn clock(connection: &mut PgConnection, found: &mut Findings) {
    // The first answer may take longer than the way does.
    let (sent, from) = (Instant::now(), Timestamp::now());
    let statement = "select (extract(epoch from clock_timestamp()) * 1000)::int8";
    if let Ok((theirs,)) = row::<(i64,)>(connection, statement).await {
        let way = sent.elapsed() / 2;
        found.clock(theirs - from.millis() - way.as_millis() as i64, way);
    }
}

/// Whether the tables are there, so that the statements can be tried.
async fn schema(
    connection: &mut PgConnection,
    server: &Server,
    demand: Demand,
    found: &mut Findings,
) -> bool {
    let Some(schema) = &server.schema else {
        let detail = format!("{} may use no schema of its search_path", server.user_name);
        found.problem("schema", detail, "grant usage on a schema, or create one for him");
        return false;
    };
    let applied = timeout(
        ANSWER_LIMIT,
        sqlx::query_as::<_, (i64,)>(sql::MIGRATIONS_APPLIED).fetch_all(connection),
    );
    let applied = match applied.await {
        Ok(Ok(applied)) => applied,
        Ok(Err(error)) => match error::failed(error, false) {
            error if error::is_missing_table(&error) => Vec::new(),
            error => {
                found.problem("schema", error.to_string(), grants(server));
                return false;
            }
        },
        Err(_) => {
            found.problem("schema", "no answer in time", "look at pg_stat_activity for locks");
            return false;
        }
    };
    let applied: HashSet<i64> = applied.into_iter().map(|(version,)| version).collect();
    let known: HashSet<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
    let missing = known.difference(&applied).count();
    if missing == 0 {
        match applied.is_subset(&known) {
            true => found.ok("schema", format!("the {} migrations of this release", known.len())),
            false => found.ok("schema", "of a later release, which this one can work with"),
        }
        return true;
    }
    let detail = format!("{missing} of {} migrations are missing", known.len());
    if !demand.migrates {
        let fix = "run `tidings migrate`, or set MIGRATE_ON_START=true";
        found.problem("schema", detail, fix);
    } else if server.may_create {
        found.ok("schema", format!("{detail}; the node lays them (MIGRATE_ON_START)"));
    } else {
        let fix = format!("grant create on schema {schema} to {}", server.user_name);
        found.problem("schema", format!("{detail}, and this user may not lay them"), fix);
    }
    false
}

/// Plans every statement and runs none: the server then judges the shape of the tables and the
/// rights of this user as if it ran.
async fn rights(connection: &mut PgConnection, server: &Server, found: &mut Findings) {
    let mut refused: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, statement) in sql::ALL {
        match timeout(ANSWER_LIMIT, plan(connection, statement)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let text = match error.as_database_error() {
                    Some(error) => error.message().to_owned(),
                    None => error.to_string(),
                };
                refused.entry(text).or_default().push(name);
            }
            Err(_) => {
                found.problem("rights", "no answer in time", "look at pg_stat_activity for locks");
                return;
            }
        }
    }
    if refused.is_empty() {
        let detail = format!("all {} statements may run", sql::ALL.len());
        return found.ok("rights", detail);
    }
    for (reason, names) in refused {
        let detail = format!("{reason} (for {})", names.join(", "));
        found.problem("rights", detail, grants(server));
    }
}

fn grants(server: &Server) -> String {
    format!("grant {} what docs/postgres.md says (Roles)", server.user_name)
}

async fn plan(connection: &mut PgConnection, statement: &'static str) -> sqlx::Result<()> {
    let prepared = (&mut *connection).prepare(statement.into_sql_str()).await?;
    let parameters = match sqlx::Statement::parameters(&prepared) {
        Some(Either::Left(types)) => types.len(),
        Some(Either::Right(count)) => count,
        None => 0,
    };
    let nulls = vec!["null"; parameters].join(", ");
    let nulls = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    // Whatever becomes of it, the next one finds the name free.
    let explain = format!(
        "deallocate all; prepare tidings_check as {statement}; explain execute tidings_check{nulls}"
    );
    sqlx::raw_sql(AssertSqlSafe(explain)).execute(connection).await.map(drop)
}

async fn alone(connection: &mut PgConnection, found: &mut Findings) {
    let free = format!("select pg_try_advisory_lock({SINGLE_NODE_LOCK})");
    match row::<(bool,)>(connection, &free).await {
        Ok((true,)) => found.ok("alone", "no other node works on it"),
        Ok((false,)) => found.warning(
            "alone",
            "a node works on it, and without REDIS_URL a second one does not start",
            "stop that one first, or set REDIS_URL on both",
        ),
        Err(error) => found.problem("alone", error.to_string(), "let this user take locks"),
    }
}

async fn row<O>(connection: &mut PgConnection, statement: &str) -> sqlx::Result<O>
where
    O: Send + Unpin + for<'r> FromRow<'r, PgRow>,
{
    let statement = AssertSqlSafe(statement.to_owned());
    let asked = sqlx::query_as::<_, O>(statement).persistent(false).fetch_one(connection);
    let late = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(Duration::min(ANSWER_LIMIT, Duration::from_secs(5)), asked)
        .await
        .unwrap_or_else(|_| Err(late()))
}
