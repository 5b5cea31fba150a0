//! A conversation with very many messages.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tidings_client::rest::{Created, Rest};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Args;
use crate::report::Progress;
use crate::traffic::{Ledger, Member, Pace, Writer, prepare};

/// Messages under way at a time, where they are sent.
const IN_FLIGHT: usize = 128;
const TICK: Duration = Duration::from_millis(100);

/// As many copies of its first message as are wanted, all of them read. Whatever else the tables
/// hold of a conversation is as after that many sends.
const COPY: &str = "\
with head as (select * from messages where conversation_id = :'id' order by seq desc limit 1),
copies as (
    insert into messages (id, conversation_id, seq, change_seq, sender_id, body_hash, message_type,
        content, created_at)
    select gen_random_uuid(), conversation_id, seq + n, seq + n, sender_id, body_hash, message_type,
        content, created_at + n * interval '1 ms'
    from head, generate_series(1, :count) n
    returning id, seq, created_at
),
last as (select * from copies order by seq desc limit 1),
moved as (
    update conversations c
    set last_seq = last.seq, last_message_id = last.id,
        last_activity_at = date_trunc('milliseconds', last.created_at)
    from last where c.id = :'id'
)
update participants p
set delivered_seq = last.seq, read_seq = last.seq, settled_seq = last.seq
from last where p.conversation_id = :'id';
analyze messages;
";

pub async fn long(
    args: &Args,
    rest: &mut Rest,
    user: Uuid,
    progress: &mut Progress,
) -> anyhow::Result<Created> {
    let writer = Uuid::new_v4();
    let mut long = rest.create_direct(writer, user).await?;
    rest.send_text(writer, long.id, "The first of many messages, all of them as long as this one.")
        .await?;
    long.last_seq += 1;
    match &args.database {
        Some(database) => copy(database, long.id, args.messages, progress).await?,
        None => send(args, long.id, (writer, user), progress).await?,
    }
    long.last_seq += args.messages as u64;
    Ok(long)
}

async fn copy(
    database: &str,
    id: Uuid,
    count: usize,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", &format!("id={id}")])
        .args(["-v", &format!("count={count}"), "-f", "-", database])
        .stdin(Stdio::piped());
    let mut psql = psql.spawn().context("psql")?;
    let mut input = psql.stdin.take().context("psql's input")?;
    input.write_all(COPY.as_bytes())?;
    drop(input);
    loop {
        if let Some(status) = psql.try_wait()? {
            ensure!(status.success(), "psql: {status}");
            return Ok(());
        }
        sleep(TICK).await;
        progress.tell(|| format!("psql copies {count} messages"));
    }
}

/// To an open socket, so that nothing is left to hand over.
async fn send(
    args: &Args,
    id: Uuid,
    (writer, user): (Uuid, Uuid),
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let ledger = Ledger::new();
    let mut tasks = JoinSet::new();
    let room = ledger.add_room(id, 2, 1);
    let member = || Member::new(ledger.clone(), [room.clone()]);
    let reader = prepare::open(&args.url, 1, user, "load-reader").await?;
    let socket = prepare::open(&args.url, 0, writer, "load-writer").await?;
    let writing = Writer::new(room.clone(), 0, (0, 1)).at_most(args.messages);
    tasks.spawn(member().run(socket, Some(writing), "writer"));
    tasks.spawn(member().run(reader, None, "reader"));
    ledger.send(Pace::Undelivered(IN_FLIGHT), false);
    let mut last = (0, Instant::now());
    loop {
        sleep(TICK).await;
        progress.tell(|| ledger.told());
        let outcome = ledger.outcome();
        if outcome.delivered == args.messages {
            break;
        }
        if outcome.delivered > last.0 {
            last = (outcome.delivered, Instant::now());
        }
        ensure!(last.1.elapsed() < Duration::from_secs(10), "nothing more arrives: {outcome:?}");
    }
    ledger.close(&mut tasks).await;
    Ok(())
}
