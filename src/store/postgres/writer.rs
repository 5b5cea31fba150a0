//! One lane's connection. It is made on first use, dropped after an error that leaves its state
//! open, and made anew by the next use.

use std::sync::Arc;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use super::error::timed_out;
use super::{ANSWER_LIMIT, amend, changes, connect, messages};
use crate::ids::ConversationId;
use crate::store::types::{
    AmendOutcome, Amendment, Change, ChangeOutcome, NewMessage, OutboxLease, SendOutcome,
};
use crate::store::{Result, StoreError};

pub struct PostgresWriter {
    options: Arc<PgConnectOptions>,
    /// Absent while in use, so that a call that is dropped half-way drops its connection, too.
    connection: Option<PgConnection>,
}

impl PostgresWriter {
    pub(super) fn new(options: Arc<PgConnectOptions>) -> Self {
        Self { options, connection: None }
    }

    pub async fn send(
        &mut self,
        batch: &[NewMessage],
        outbox: OutboxLease,
    ) -> Result<Vec<SendOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.take().await?;
        let sent = timeout(ANSWER_LIMIT, messages::send(&mut connection, batch, outbox)).await;
        self.put_back(connection, sent.unwrap_or_else(|_| Err(timed_out(true))))
    }

    pub async fn change(
        &mut self,
        id: ConversationId,
        change: &Change,
        max_group_size: usize,
        outbox: OutboxLease,
    ) -> Result<ChangeOutcome> {
        let mut connection = self.take().await?;
        let making = changes::make(&mut connection, id, change, max_group_size, outbox);
        let made = timeout(ANSWER_LIMIT, making).await;
        self.put_back(connection, made.unwrap_or_else(|_| Err(timed_out(true))))
    }

    pub async fn amend(
        &mut self,
        amendment: &Amendment,
        outbox: OutboxLease,
    ) -> Result<AmendOutcome> {
        let mut connection = self.take().await?;
        let making = amend::make(&mut connection, amendment, outbox);
        let made = timeout(ANSWER_LIMIT, making).await;
        self.put_back(connection, made.unwrap_or_else(|_| Err(timed_out(true))))
    }

    async fn take(&mut self) -> Result<PgConnection> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => {
                let options = PgConnectOptions::clone(&self.options);
                connect(&options.application_name("tidings lane")).await
            }
        }
    }

    /// After success and after a conflict the connection is good; after all else another server
    /// may be the right one by now.
    fn put_back<T>(&mut self, connection: PgConnection, result: Result<T>) -> Result<T> {
        if matches!(result, Ok(_) | Err(StoreError::Conflict(_) | StoreError::Refused(_))) {
            self.connection = Some(connection);
        }
        result
    }
}
