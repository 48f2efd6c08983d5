//! One bank: accounts and a journal in SQLite, and a service whose every call changes both once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::client::{BranchContext, Client, Options, ParticipantLayer, RegistrationOptions};
use quorate::proto::v1;
use quorate_barrier::{Barrier, Error, create_table};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};

use crate::proto::bank_server::{self, BankServer};
use crate::proto::{Move, Receipt};
use crate::{ACCOUNTS, CENTS, Failed};

/// How long a dead bank is taken for alive.
const SESSION_TTL: Duration = Duration::from_secs(1);

/// Who and where a bank is.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// Name of its service
    #[arg(long)]
    name: String,
    #[arg(long)]
    database: PathBuf,
    /// Client addresses of the cluster
    #[arg(long)]
    endpoints: String,
}

struct Bank {
    pool: SqlitePool,
}

/// What one call does to an account for each cent, and what must be so.
#[derive(Debug, Clone, Copy, Default)]
struct Effect {
    balance: i64,
    /// Taken from the balance, not yet moved.
    held: i64,
    /// On its way to the balance.
    promised: i64,
    /// The balance must not fall below zero.
    covered: bool,
    /// The account must not be closed.
    open: bool,
}

/// Its database, with everything in it.
pub async fn open(database: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Survives the death of the process, which is all that happens here.
        .synchronous(SqliteSynchronous::Normal);
    // There is one writer at a time in any case.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    create_table(&pool).await?;
    let mut tx = pool.begin().await?;
    for statement in [
        "CREATE TABLE IF NOT EXISTS accounts (
            id INTEGER PRIMARY KEY,
            balance INTEGER NOT NULL,
            held INTEGER NOT NULL DEFAULT 0,
            promised INTEGER NOT NULL DEFAULT 0,
            closed BOOLEAN NOT NULL
        )",
        // Nothing in it is unique: what takes place twice stands there twice.
        "CREATE TABLE IF NOT EXISTS journal (
            entry INTEGER PRIMARY KEY,
            gid TEXT NOT NULL,
            branch TEXT NOT NULL,
            op TEXT NOT NULL,
            account INTEGER NOT NULL,
            cents INTEGER NOT NULL
        )",
    ] {
        sqlx::query(statement).execute(&mut *tx).await?;
    }
    for account in 0..ACCOUNTS {
        let add = sqlx::query(
            "INSERT INTO accounts (id, balance, closed) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        );
        let add = add.bind(account).bind(CENTS).bind(account == ACCOUNTS - 1);
        add.execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(pool)
}

/// Serves until it is killed, or told to stop.
pub async fn run(place: Place) -> Result<(), Failed> {
    let pool = open(&place.database).await?;
    let client = Client::connect(Options::new(place.endpoints.split(',')))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder()
        .layer(ParticipantLayer)
        .add_service(BankServer::new(Bank { pool }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let instance = v1::Instance {
        // The last one of this bank may have been killed a moment ago.
        id: format!("{}-{}", place.name, std::process::id()),
        service: place.name,
        endpoints: vec![v1::Endpoint {
            name: "grpc".to_owned(),
            host: address.ip().to_string(),
            port: address.port().into(),
        }],
        ..Default::default()
    };
    let options = RegistrationOptions::new(instance).session_ttl(SESSION_TTL);
    client.registration(options)?.run_until_terminated(Duration::ZERO).await?;
    Ok(())
}

impl Bank {
    async fn change(
        &self,
        request: Request<Move>,
        effect: Effect,
    ) -> Result<Response<Receipt>, Status> {
        let context = BranchContext::of(&request)?;
        let Move { account, cents } = request.into_inner();
        let outcome = Barrier::of(&context).run(&self.pool, |mut tx| async move {
            let change = sqlx::query(
                "UPDATE accounts
                SET balance = balance + ?, held = held + ?, promised = promised + ?
                WHERE id = ? AND (balance >= ? OR NOT ?) AND NOT (closed AND ?)",
            );
            let Effect { balance, held, promised, covered, open } = effect;
            let change = change.bind(balance * cents).bind(held * cents).bind(promised * cents);
            let change = change.bind(account).bind(cents).bind(covered).bind(open);
            if change.execute(&mut *tx).await?.rows_affected() == 0 {
                return Err(Error::refused("not enough on the account, or closed"));
            }
            let note = sqlx::query_scalar(
                "INSERT INTO journal (gid, branch, op, account, cents) VALUES (?, ?, ?, ?, ?)
                RETURNING entry",
            );
            let note = note.bind(&context.gid).bind(&context.branch).bind(context.op.name());
            let entry = note.bind(account).bind(cents).fetch_one(&mut *tx).await?;
            Ok((Receipt { entry }, tx))
        });
        outcome.await?.into_response()
    }
}

macro_rules! calls {
    ($($call:ident: $effect:expr;)*) => {
        #[async_trait]
        impl bank_server::Bank for Bank {
            $(async fn $call(&self, request: Request<Move>) -> Result<Response<Receipt>, Status> {
                self.change(request, $effect).await
            })*
        }
    };
}

calls! {
    debit: Effect { balance: -1, covered: true, ..Effect::default() };
    undo_debit: Effect { balance: 1, ..Effect::default() };
    credit: Effect { balance: 1, open: true, ..Effect::default() };
    // What was credited may have been spent: the account is then overdrawn.
    undo_credit: Effect { balance: -1, ..Effect::default() };
    try_debit: Effect { balance: -1, held: 1, covered: true, ..Effect::default() };
    confirm_debit: Effect { held: -1, ..Effect::default() };
    cancel_debit: Effect { balance: 1, held: -1, ..Effect::default() };
    try_credit: Effect { promised: 1, open: true, ..Effect::default() };
    confirm_credit: Effect { balance: 1, promised: -1, ..Effect::default() };
    cancel_credit: Effect { promised: -1, ..Effect::default() };
}
