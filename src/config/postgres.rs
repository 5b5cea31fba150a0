//! Settings of the store: a Postgres with its pooler and its replica, else a SQLite file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::values::{Reader, read_certificates};
use super::{PostgresConfig, SqliteConfig, StoreConfig};

const DB_PORT: u16 = 5432;
/// Readers beside the lanes; more connections than this only queue inside a small Postgres.
const POOL_SIZE: u32 = 8;
/// Long enough for a burst, short enough that the caller still waits for the answer.
const POOL_WAIT: Duration = Duration::from_secs(5);

pub(super) fn read_store(read: &mut Reader, data_dir: &Path) -> StoreConfig {
    let by_url = read.parse("DATABASE_URL", parse_url);
    let pooler = read.parse("DATABASE_POOL_URL", parse_url);
    let replica = read.parse("DATABASE_REPLICA_URL", parse_url);
    let given_url = read.text("DATABASE_URL").is_some();
    let by_parts = read_parts(read, given_url);
    let pool_size = read.number("DB_POOL_SIZE", POOL_SIZE, 1..=1_000);
    let Some(options) = by_url.or(by_parts) else {
        // Else data that belongs into a Postgres would quietly go to a file.
        for name in ["DATABASE_POOL_URL", "DATABASE_REPLICA_URL"] {
            if read.text(name).is_some() && !given_url {
                read.fault(name, "nothing, unless DATABASE_URL or DB_HOST names the database");
            }
        }
        return StoreConfig::Sqlite(SqliteConfig { path: data_dir.join("tidings.db") });
    };
    StoreConfig::Postgres(Box::new(PostgresConfig {
        options,
        pooler,
        replica,
        pool_size,
        acquire_timeout: POOL_WAIT,
    }))
}

/// The database as `DB_HOST` and the settings beside it give it.
fn read_parts(read: &mut Reader, given_url: bool) -> Option<PgConnectOptions> {
    let host = read.text("DB_HOST");
    let port = read.number("DB_PORT", DB_PORT, 1..=u16::MAX);
    let user = read.text("DB_USER");
    let password = read.text("DB_PASSWORD");
    let database = read.text("DB_NAME");
    let ssl_mode = read.parse("DB_SSLMODE", |text| {
        let expected = "disable, allow, prefer, require, verify-ca or verify-full";
        text.parse::<PgSslMode>().map_err(|_| expected.into())
    });
    let root_cert =
        read.parse("DB_SSLROOTCERT", |text| read_certificates(text).map(|_| PathBuf::from(text)));
    if given_url && host.is_some() {
        read.fault("DB_HOST", "nothing, because DATABASE_URL says where the database is");
    }
    if host.is_none() && root_cert.is_some() {
        let expected = "nothing, unless DB_HOST is set: with DATABASE_URL, the address ends with \
                        ?sslmode=verify-full&sslrootcert=/path";
        read.fault("DB_SSLROOTCERT", expected);
    }
    if root_cert.is_some() && !ssl_mode.is_some_and(verifies) {
        // Else somebody believes that the server is who he thinks it is.
        let expected = "nothing, unless DB_SSLMODE is verify-ca or verify-full: else no \
                        certificate is looked at";
        read.fault("DB_SSLROOTCERT", expected);
    }
    if !given_url && host.is_none() && (user.is_some() || password.is_some() || database.is_some())
    {
        // Else data that belongs into a Postgres would quietly go to a file.
        read.fault(
            "DB_HOST",
            "the database's host, because DB_USER, DB_PASSWORD or DB_NAME is set",
        );
    }
    host.map(|host| {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(port)
            .username(user.as_deref().unwrap_or("postgres"))
            .database(database.as_deref().unwrap_or("tidings"))
            .ssl_mode(ssl_mode.unwrap_or(PgSslMode::Prefer));
        if let Some(path) = root_cert {
            options = options.ssl_root_cert(path);
        }
        if let Some(password) = password {
            options = options.password(&password);
        }
        if host.starts_with('/') { options.socket(host) } else { options.host(&host) }
    })
}

/// Whether the server's certificate is looked at.
fn verifies(mode: PgSslMode) -> bool {
    matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
}

fn parse_url(text: &str) -> Result<PgConnectOptions, String> {
    let expected = || "postgres://user:password@host:port/database".to_owned();
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err(expected());
    }
    let options: PgConnectOptions = text.parse().map_err(|_| expected())?;
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let authority =
        pairs.find(|(key, _)| matches!(&**key, "sslrootcert" | "ssl-root-cert" | "ssl-ca"));
    if let Some((_, path)) = authority {
        let given = |expected| format!("sslrootcert={path} to be {expected}");
        read_certificates(&path).map_err(given)?;
        if !verifies(options.get_ssl_mode()) {
            return Err("sslmode=verify-ca or sslmode=verify-full beside sslrootcert: else no \
                        certificate is looked at"
                .into());
        }
    }
    Ok(options)
}
