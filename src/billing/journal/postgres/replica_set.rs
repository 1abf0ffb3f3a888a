//! Connections to one replica set: to whichever of its hosts takes writes, and what an error on them means.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures::SinkExt;
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

/// The ledger's own, so that no append waits for a place behind it.
const LEDGER_CONNECTIONS_MAX: usize = 4;

/// As the client's, in the other direction.
const SERVER_KEEPALIVE: &str =
    "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 3; set tcp_keepalives_count = 3";

/// Bytes of rows copied by one statement: some 100 ms.
const COPIED_BYTES: usize = 16 << 20;

/// What COPY's binary format begins and ends with.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: &[u8] = b"\xff\xff";

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

pub(super) struct ReplicaSet {
    pool: Pool,
    ledger: Pool,
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
        let pool = |connections_max| {
            let manager = Manager::from_connect(
                // Not used: the connector has settings of its own for each host.
                tokio_postgres::Config::new(),
                ToWriter(Arc::clone(&hosts)),
                ManagerConfig { recycling_method: RecyclingMethod::Fast },
            );
            Pool::builder(manager)
                .max_size(connections_max)
                .wait_timeout(Some(timeouts.answer))
                .runtime(Runtime::Tokio1)
                .build()
                .map_err(|error| Error::Config(error.to_string()))
        };
        let (pool, ledger) = (pool(CONNECTIONS_MAX)?, pool(LEDGER_CONNECTIONS_MAX)?);
        Ok(ReplicaSet { pool, ledger, hosts })
    }

    /// A statement that changes nothing, so that a lost answer is no answer.
    pub(super) async fn read(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        self.write(step, sql, params).await.map_err(unanswered)
    }

    /// The same, over the ledger's connections.
    pub(super) async fn read_ledger(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        self.write_over(&self.ledger, step, sql, params).await.map_err(unanswered)
    }

    /// One statement, which is a transaction by itself. `Unknown` if it may have been committed.
    pub(super) async fn write(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        self.write_over(&self.pool, step, sql, params).await
    }

    /// The same, over the ledger's connections.
    pub(super) async fn write_ledger(
        &self,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        self.write_over(&self.ledger, step, sql, params).await
    }

    async fn write_over(
        &self,
        pool: &Pool,
        step: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        let client = pool.get().await.map_err(Error::unavailable(step))?;
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

    /// A transaction that changes a row and then copies others in, any number of them; a piece is some rows whole. False: the
    /// row was not there to be changed, and nothing was written. `Unknown` if it may have been committed.
    pub(super) async fn fill(
        &self,
        step: &'static str,
        filling: Filling<'_>,
        pieces: impl Iterator<Item = Bytes> + Send,
    ) -> Result<bool, Error> {
        let mut client = self.ledger.get().await.map_err(Error::unavailable(step))?;
        let failed = match filling.run(&mut client, self.hosts.timeouts.answer, pieces).await {
            Ok(filled) => return Ok(filled),
            Err(failed) => failed,
        };
        Err(match failed {
            Unfilled::Sql { error, committing } => {
                let unknown = committing && !is_refusal(&error);
                self.judge(client, &error);
                if unknown { Error::unknown(step)(error) } else { Error::unavailable(step)(error) }
            }
            Unfilled::Late { committing } => {
                self.leave(client);
                let late = "the server did not answer in time";
                if committing { Error::unknown(step)(late) } else { Error::unavailable(step)(late) }
            }
        })
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
            self.forget_connections();
        }
    }

    /// The server does not answer: the next connection is tried elsewhere first.
    fn leave(&self, client: Object) {
        drop(Object::take(client));
        self.forget_connections();
        self.hosts.first.fetch_add(1, Ordering::Relaxed);
    }

    fn forget_connections(&self) {
        self.pool.retain(|_, _| false);
        self.ledger.retain(|_, _| false);
    }
}

/// Between pieces of a copy. A commit of the journal flushes all that the server has logged before it, so a copy at full speed would
/// make commits wait for megabytes.
const BREATH: Duration = Duration::from_millis(1);

/// What [`ReplicaSet::fill`] does.
pub(super) struct Filling<'a> {
    /// Changes one row, or none, and then that is all.
    pub(super) gate: &'a str,
    pub(super) params: Params<'a>,
    /// What goes before others come.
    pub(super) clear: Option<(&'a str, Params<'a>)>,
    pub(super) copy: &'a str,
}

enum Unfilled {
    Sql { error: tokio_postgres::Error, committing: bool },
    Late { committing: bool },
}

impl Filling<'_> {
    /// Dropped on the way, it is rolled back.
    async fn run(
        self,
        client: &mut Object,
        answer: Duration,
        pieces: impl Iterator<Item = Bytes> + Send,
    ) -> Result<bool, Unfilled> {
        let Filling { gate, params, clear, copy } = self;
        let transaction = soon(answer, client.transaction()).await?;
        let gate = soon(answer, transaction.prepare_cached(gate)).await?;
        if soon(answer, transaction.execute(&gate, params)).await? == 0 {
            soon(answer, transaction.rollback()).await?;
            return Ok(false);
        }
        if let Some((clear, params)) = clear {
            let clear = soon(answer, transaction.prepare_cached(clear)).await?;
            soon(answer, transaction.execute(&clear, params)).await?;
        }
        let mut pieces = pieces.peekable();
        // Each copy is a statement, and so within the server's limit for one.
        while pieces.peek().is_some() {
            let mut sink = std::pin::pin!(soon(answer, transaction.copy_in::<str, Bytes>(copy)).await?);
            let copying = async {
                sink.feed(Bytes::from_static(COPY_HEADER)).await?;
                let mut copied = 0;
                while copied < COPIED_BYTES
                    && let Some(piece) = pieces.next()
                {
                    if copied > 0 {
                        tokio::time::sleep(BREATH).await;
                    }
                    copied += piece.len();
                    sink.feed(piece).await?;
                }
                sink.feed(Bytes::from_static(COPY_TRAILER)).await?;
                sink.finish().await
            };
            soon(answer, copying).await?;
        }
        match timeout(answer, transaction.commit()).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(Unfilled::Sql { error, committing: true }),
            Err(_) => Err(Unfilled::Late { committing: true }),
        }
    }
}

async fn soon<T>(
    answer: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Unfilled> {
    match timeout(answer, asked).await {
        Ok(answered) => answered.map_err(|error| Unfilled::Sql { error, committing: false }),
        Err(_) => Err(Unfilled::Late { committing: false }),
    }
}

/// A read that was not answered has read nothing.
fn unanswered(error: Error) -> Error {
    match error {
        Error::Unknown { step, source } => Error::Unavailable { step, source },
        other => other,
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
            // A node that is gone without a word must not hold its rows for hours. A server that does not know these does without.
            drop(
                client
                    .batch_execute(&format!(
                        "{SERVER_KEEPALIVE}; set idle_in_transaction_session_timeout = {statement_ms}"
                    ))
                    .await,
            );
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
        // Such as that a table is there already.
        let harmless = [Severity::Debug, Severity::Info, Severity::Log, Severity::Notice];
        if notice.parsed_severity().is_some_and(|severity| harmless.contains(&severity)) {
            tracing::debug!(notice = notice.message(), "notice of a journal's server");
        } else {
            tracing::warn!(notice = notice.message(), "warning of a journal's server");
        }
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
