//! The participants: two services, each of several servers, in front of one bank that is kept in memory.
//!
//! What is done is done behind a barrier as docs/TRANSACTIONS.md has it. The servers do what servers do:
//! they fail before their work and after it, take too long, and ask to be asked again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate::client::{
    BranchContext, BranchOp, Client, Registration, RegistrationOptions, participant,
};
use quorate::error::Error;
use tokio::time::sleep;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::super::Boxed;
use super::super::server::{self, METHOD, Unary};
use crate::edn::Value;
use crate::random::Random;

/// Even accounts are the first one's, odd ones the second one's.
const SERVICES: [&str; 2] = ["jepsen-north", "jepsen-south"];
/// Servers of each.
const SERVERS: usize = 2;
/// Longer than a new leader takes, so that participants stay through most faults.
const SESSION_TTL: Duration = Duration::from_secs(5);
/// How late a late call begins: later than it is waited for.
const LATE_MS: std::ops::RangeInclusive<u64> = 200..=2 * super::CALL_MS;
const ONGOING: Duration = Duration::from_millis(50);

/// How long after the last call something may still be done.
pub const AFTER: Duration = Duration::from_millis(*LATE_MS.end());

/// What a branch does to an account.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Move {
    #[prost(uint32, tag = "1")]
    pub account: u32,
    #[prost(int64, tag = "2")]
    pub amount: i64,
    /// Doing it, or trying it, is refused.
    #[prost(bool, tag = "3")]
    pub refuses: bool,
}

#[derive(Debug, Clone)]
pub struct Bank {
    store: Arc<Mutex<Store>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    balance: i64,
    /// Taken from the balance by a try, not yet moved.
    held: i64,
    /// On its way to the balance.
    promised: i64,
}

#[derive(Debug)]
struct Store {
    accounts: Vec<Account>,
    marks: BTreeSet<(String, String, BranchOp)>,
    /// All calls, in the order in which they came.
    journal: Vec<Entry>,
    random: Random,
}

#[derive(Debug)]
struct Entry {
    context: BranchContext,
    /// None: it did not get so far.
    how: Option<How>,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Done,
    Duplicate,
    /// There was nothing to undo.
    Empty,
    /// Its compensation has come before it.
    Hanging,
    Refused,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Done => "done",
            How::Duplicate => "duplicate",
            How::Empty => "empty",
            How::Hanging => "hanging",
            How::Refused => "refused",
        }
    }
}

/// What befalls a call.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Well,
    Fails,
    AnswerLost,
    Late(Duration),
    Ongoing,
}

impl Fate {
    fn draw(random: &mut Random) -> Fate {
        match random.below(100) {
            0..6 => Fate::Fails,
            6..12 => Fate::AnswerLost,
            12..15 => Fate::Late(Duration::from_millis(random.between(LATE_MS))),
            15..20 => Fate::Ongoing,
            _ => Fate::Well,
        }
    }
}

/// Where the cluster finds who keeps an account.
pub fn target(account: usize) -> String {
    format!("quorate:///{}/{METHOD}", SERVICES[account % SERVICES.len()])
}

impl Bank {
    pub fn new(accounts: usize, balance: i64) -> Bank {
        let store = Store {
            accounts: vec![Account { balance, ..Default::default() }; accounts],
            marks: BTreeSet::new(),
            journal: Vec::new(),
            // What befalls calls depends on their order, which no seed decides.
            random: Random::new(1),
        };
        Bank { store: Arc::new(Mutex::new(store)) }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the servers and registers them.
    pub async fn open(&self, client: &Client) -> Result<Vec<Registration>, Error> {
        let mut held = Vec::new();
        for service in SERVICES {
            for number in 0..SERVERS {
                let address = server::serve(Teller(self.clone())).await;
                let address = address.map_err(|error| {
                    Error::internal(format!("a participant does not listen: {error}"))
                })?;
                let instance = server::instance(service, format!("{service}-{number}"), address);
                let options = RegistrationOptions::new(instance).session_ttl(SESSION_TTL);
                held.push(client.registration(options)?);
            }
        }
        Ok(held)
    }

    /// One call to its end, whoever waits for it.
    pub async fn call(&self, context: BranchContext, what: Move) -> Result<(), Status> {
        let bank = self.clone();
        // Who gives up waiting does not end the work.
        let served = tokio::spawn(async move { bank.serve(context, &what).await });
        served.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn serve(&self, context: BranchContext, what: &Move) -> Result<(), Status> {
        let (number, fate) = self.lock().arrives(context);
        match fate {
            Fate::Fails => return Err(Status::unavailable("out of order")),
            Fate::Ongoing => return Err(participant::ongoing(ONGOING)),
            Fate::Late(time) => sleep(time).await,
            Fate::Well | Fate::AnswerLost => {}
        }
        let how = self.lock().carry_out(number, what);
        match (fate, how) {
            (Fate::AnswerLost, _) => Err(Status::unavailable("the answer is lost")),
            (_, How::Done | How::Duplicate | How::Empty) => Ok(()),
            (_, How::Hanging) => Err(participant::refused("it was undone before")),
            (_, How::Refused) => Err(participant::refused("there is not enough")),
        }
    }

    /// `{account [balance held promised] ..}`
    pub fn balances(&self) -> Value {
        let store = self.lock();
        let accounts = store.accounts.iter().enumerate().map(|(number, account)| {
            let parts = [account.balance, account.held, account.promised].map(Value::Int);
            (super::super::int(number), Value::Vector(parts.to_vec()))
        });
        Value::Map(accounts.collect())
    }

    /// `[[gid branch op attempt epoch how] ..]`
    pub fn journal(&self) -> Value {
        let store = self.lock();
        let entries = store.journal.iter().map(|Entry { context, how }| {
            let int = |text: &str| text.parse().map_or(Value::Nil, Value::Int);
            Value::Vector(vec![
                int(context.gid.strip_prefix(super::PREFIX).unwrap_or_default()),
                int(&context.branch),
                Value::keyword(context.op.name()),
                Value::Int(context.attempt.into()),
                Value::Int(context.epoch as i64),
                how.map_or(Value::Nil, |how| Value::keyword(how.name())),
            ])
        });
        Value::Vector(entries.collect())
    }
}

impl Store {
    /// Its place in the journal, and what is to befall it.
    fn arrives(&mut self, context: BranchContext) -> (usize, Fate) {
        self.journal.push(Entry { context, how: None });
        (self.journal.len() - 1, Fate::draw(&mut self.random))
    }

    fn carry_out(&mut self, number: usize, what: &Move) -> How {
        let BranchContext { gid, branch, op, .. } = self.journal[number].context.clone();
        let how = self.behind_barrier(gid, branch, op, what);
        self.journal[number].how = Some(how);
        how
    }

    fn behind_barrier(&mut self, gid: String, branch: String, op: BranchOp, what: &Move) -> How {
        let mark = |op| (gid.clone(), branch.clone(), op);
        let (origin, undone_by) = match op {
            BranchOp::Compensate => (BranchOp::Action, None),
            BranchOp::Cancel => (BranchOp::Try, None),
            BranchOp::Action => (op, Some(BranchOp::Compensate)),
            BranchOp::Try => (op, Some(BranchOp::Cancel)),
            BranchOp::Confirm | BranchOp::Query => (op, None),
        };
        let first = self.marks.insert(mark(origin));
        let own = if origin == op { first } else { self.marks.insert(mark(op)) };
        if first && origin != op {
            return How::Empty;
        }
        if !own {
            let undone = undone_by.is_some_and(|undo| self.marks.contains(&mark(undo)));
            return if undone { How::Hanging } else { How::Duplicate };
        }
        if self.work(op, what) {
            return How::Done;
        }
        // As if it had never come: a database would roll back.
        self.marks.remove(&mark(op));
        How::Refused
    }

    /// False: it is refused, and nothing was done.
    fn work(&mut self, op: BranchOp, what: &Move) -> bool {
        let Some(account) = self.accounts.get_mut(what.account as usize) else { return false };
        let amount = what.amount;
        let takes = amount < 0;
        match op {
            BranchOp::Action | BranchOp::Try
                if what.refuses || (takes && account.balance < -amount) =>
            {
                return false;
            }
            BranchOp::Action => account.balance += amount,
            // What was given may have been spent: the account is then overdrawn.
            BranchOp::Compensate => account.balance -= amount,
            BranchOp::Try if takes => {
                account.balance += amount;
                account.held -= amount;
            }
            BranchOp::Try => account.promised += amount,
            BranchOp::Confirm if takes => account.held += amount,
            BranchOp::Confirm => {
                account.promised -= amount;
                account.balance += amount;
            }
            BranchOp::Cancel if takes => {
                account.held += amount;
                account.balance -= amount;
            }
            BranchOp::Cancel => account.promised -= amount,
            BranchOp::Query => return false,
        }
        true
    }
}

/// One server.
#[derive(Clone)]
struct Teller(Bank);

impl UnaryService<Move> for Teller {
    type Response = ();
    type Future = Boxed<'static, Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<Move>) -> Self::Future {
        let bank = self.0.clone();
        Box::pin(async move {
            let context = BranchContext::of(&request)?;
            bank.call(context, request.into_inner()).await.map(Response::new)
        })
    }
}

impl Unary for Teller {
    type Request = Move;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank() -> Store {
        let bank = Bank::new(2, 100);
        Arc::into_inner(bank.store).unwrap().into_inner().unwrap()
    }

    #[test]
    fn what_the_barrier_lets_pass() {
        let take = Move { account: 0, amount: -30, refuses: false };
        let refused = Move { refuses: true, ..take };
        let mut bank = bank();
        let mut call = |branch: &str, op, what: &Move| {
            bank.behind_barrier("g".to_owned(), branch.to_owned(), op, what)
        };
        assert_eq!(call("a", BranchOp::Action, &take), How::Done);
        assert_eq!(call("a", BranchOp::Action, &take), How::Duplicate);
        assert_eq!(call("a", BranchOp::Compensate, &take), How::Done);
        assert_eq!(call("a", BranchOp::Compensate, &take), How::Duplicate);
        assert_eq!(call("a", BranchOp::Action, &take), How::Hanging);
        assert_eq!(call("b", BranchOp::Compensate, &take), How::Empty);
        assert_eq!(call("b", BranchOp::Action, &take), How::Hanging);
        // What was refused has left no mark, so there is nothing to undo.
        assert_eq!(call("c", BranchOp::Action, &refused), How::Refused);
        assert_eq!(call("c", BranchOp::Compensate, &refused), How::Empty);
        assert_eq!(call("d", BranchOp::Try, &take), How::Done);
        assert_eq!(call("d", BranchOp::Cancel, &take), How::Done);
        assert_eq!(call("e", BranchOp::Try, &take), How::Done);
        assert_eq!(call("e", BranchOp::Confirm, &take), How::Done);
        assert_eq!(call("f", BranchOp::Try, &Move { amount: -71, ..take }), How::Refused);
        let Account { balance, held, promised } = bank.accounts[0];
        assert_eq!((balance, held, promised), (70, 0, 0));
    }
}
