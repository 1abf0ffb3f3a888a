//! Connections to one replica set: to whichever of its hosts takes writes, and what an error on them means.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Row};

use super::address::{Address, HostAddress};
use crate::billing::journal::{Error, Timeouts};

/// An owner appends over one, tailing, leases and status use others; a shard waits for its own commit only.
const CONNECTIONS_MAX: usize = 16;

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

pub(super) struct ReplicaSet {
    pool: Pool,
    pub(super) hosts: Arc<Hosts>,
}

/// The hosts of one connection string, tried one after the other, beginning with the last that took writes.
pub(super) struct Hosts {
    address: Address,
    timeouts: Timeouts,
    first: AtomicUsize,
    /// How often a server has said that it gave up waiting for its synchronous standby.
    unreplicated: Arc<AtomicU64>,
}

impl ReplicaSet {
    pub(super) fn new(address: Address, timeouts: &Timeouts) -> Result<ReplicaSet, Error> {
        let hosts = Arc::new(Hosts {
            address,
            timeouts: timeouts.clone(),
            first: AtomicUsize::new(0),
            unreplicated: Arc::default(),
        });
        let manager = Manager::from_connect(
            // Not used: the connector has settings of its own for each host.
            tokio_postgres::Config::new(),
            ToWriter(Arc::clone(&hosts)),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS_MAX)
            .wait_timeout(Some(timeouts.answer))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Config(error.to_string()))?;
        Ok(ReplicaSet { pool, hosts })
    }

    /// A statement that changes nothing, so that a lost answer is no answer.
    pub(super) async fn read(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        self.write(step, sql, params).await.map_err(|error| match error {
            Error::Unknown { step, source } => Error::Unavailable { step, source },
            other => other,
        })
    }

    /// One statement, which is a transaction by itself. `Unknown` if it may have been committed.
    pub(super) async fn write(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        let client = self.pool.get().await.map_err(Error::unavailable(step))?;
        let answer = self.hosts.timeouts.answer;
        let statement = match timeout(answer, client.prepare_cached(sql)).await {
            Ok(Ok(statement)) => statement,
            Ok(Err(error)) => {
                self.judge(client, &error);
                return Err(Error::unavailable(step)(error));
            }
            Err(late) => {
                self.leave(client);
                return Err(Error::unavailable(step)(late));
            }
        };
        // It would be closed between here and there as well, but then nobody knows what was sent.
        if client.is_closed() {
            return Err(Error::unavailable(step)("the connection is closed"));
        }
        let unreplicated = self.hosts.unreplicated.load(Ordering::SeqCst);
        match timeout(answer, client.query(&statement, params)).await {
            Ok(Ok(rows)) if self.hosts.unreplicated.load(Ordering::SeqCst) == unreplicated => Ok(rows),
            Ok(Ok(_)) => Err(Error::unknown(step)("the server gave up waiting for its synchronous standby")),
            Ok(Err(error)) => {
                let refused = is_refusal(&error);
                self.judge(client, &error);
                Err(if refused { Error::unavailable(step)(error) } else { Error::unknown(step)(error) })
            }
            Err(late) => {
                self.leave(client);
                Err(Error::unknown(step)(late))
            }
        }
    }

    /// Statements that are no transaction together; for migrations.
    pub(super) async fn define(&self, sql: &str) -> Result<(), DefineError> {
        let client = self.pool.get().await.map_err(|error| DefineError::Other(error.into()))?;
        match timeout(self.hosts.timeouts.answer, client.batch_execute(sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let code = error.code().cloned();
                self.judge(client, &error);
                Err(match code {
                    Some(code) => DefineError::Sql(code, error.into()),
                    None => DefineError::Other(error.into()),
                })
            }
            Err(late) => {
                self.leave(client);
                Err(DefineError::Other(late.into()))
            }
        }
    }

    /// Whether an error is the connection's, or says that this server is no master any more: then all connections go,
    /// because they lead to the same server.
    fn judge(&self, client: Object, error: &tokio_postgres::Error) {
        let stays = match error.as_db_error() {
            Some(db) => {
                db.parsed_severity() == Some(Severity::Error)
                    && *db.code() != SqlState::READ_ONLY_SQL_TRANSACTION
            }
            None => false,
        };
        if !stays {
            drop(Object::take(client));
            self.pool.retain(|_, _| false);
        }
    }

    /// The server does not answer: the next connection is tried elsewhere first.
    fn leave(&self, client: Object) {
        drop(Object::take(client));
        self.pool.retain(|_, _| false);
        self.hosts.first.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) enum DefineError {
    Sql(SqlState, crate::billing::journal::Cause),
    Other(crate::billing::journal::Cause),
}

/// Whether the server surely rolled the statement back. FATAL and above may come while a commit is under way, and so may
/// internal errors; `40003` says itself that nobody knows.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    let Some(db) = error.as_db_error() else { return false };
    let class = &db.code().code()[..2];
    db.parsed_severity() == Some(Severity::Error)
        && *db.code() != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
        && !matches!(class, "08" | "XX" | "58")
}

impl Hosts {
    pub(super) fn all(&self) -> &[HostAddress] {
        &self.address.hosts
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.timeouts.answer
    }

    async fn connect_to_writer(&self) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let count = self.address.hosts.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut last_error = None;
        for at in (first..first + count).map(|at| at % count) {
            match self.connect(at, TargetSessionAttrs::ReadWrite).await {
                Ok(connected) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(connected);
                }
                Err(error) => {
                    let host = &self.address.hosts[at].uri;
                    tracing::debug!(host, %error, "no connection to a server of the journal");
                    last_error = Some(error);
                }
            }
        }
        // There is at least one host, so there was an error.
        Err(last_error.unwrap_or_else(tokio_postgres::Error::__private_api_timeout))
    }

    /// All of it within `timeouts.connect`; the driver's own bound is for TCP alone.
    pub(super) async fn connect(
        &self,
        at: usize,
        attributes: TargetSessionAttrs,
    ) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let mut config = self.address.hosts[at].config.clone();
        config.target_session_attrs(attributes);
        let statement_ms = self.timeouts.statement.as_millis().max(1);
        let connecting = async {
            let (client, mut connection) = config.connect(self.address.tls.clone()).await?;
            let unreplicated = Arc::clone(&self.unreplicated);
            let driver = tokio::spawn(async move {
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    note(&message, &unreplicated);
                }
            });
            client.batch_execute(&format!("set statement_timeout = {statement_ms}")).await?;
            Ok((client, driver))
        };
        match timeout(self.timeouts.connect, connecting).await {
            Ok(connected) => connected,
            // The driver makes its own this way; it is hidden, not private.
            Err(_) => Err(tokio_postgres::Error::__private_api_timeout()),
        }
    }
}

/// A commit whose wait for a standby is cancelled (by an operator, say) is reported as a success, with a warning before it
/// on the same connection. What is not replicated must not count as durable. Its text depends on the server's language, so any
/// warning counts; `confirm` sorts it out.
fn note(message: &AsyncMessage, unreplicated: &AtomicU64) {
    if let AsyncMessage::Notice(notice) = message {
        if *notice.code() == SqlState::WARNING {
            unreplicated.fetch_add(1, Ordering::SeqCst);
        }
        tracing::warn!(notice = notice.message(), "notice of a journal's server");
    }
}

struct ToWriter(Arc<Hosts>);

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl Connect for ToWriter {
    fn connect(&self, _: &tokio_postgres::Config) -> Connecting<'_> {
        Box::pin(self.0.connect_to_writer())
    }
}
