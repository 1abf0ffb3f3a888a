//! Requests to work for the desk, and what came of it to answers.

use super::codec::{self, Arguments, Code, Request, Select};
use super::login::{ALPHABET, base64};
use super::metrics;
use super::msgpack::Value;
use super::schema::{self, Missing, Range};
use crate::billing::api::{Caller, Desk, Kind, NODE_PAGE_MAX, Order, Outcome, Problem, Shards, What, key};
use crate::billing::domain::{Account, Key, Money, Operation, TEST_USERS, Velocity};

/// Most accounts of one SELECT, 20,000: some 600 KB. Whoever asks for more is told, rather than given a part.
pub const SELECT_MAX: usize = NODE_PAGE_MAX - 1;

/// Accounts of a listing take as much room as one other request.
const ACCOUNTS_PER_WEIGHT: usize = 8;

/// Makes the keys of operations that come without one: 16 characters of the connection, then a count. Short, because they
/// are journaled.
pub struct Keys {
    text: [u8; Keys::PREFIX + Keys::COUNT_MAX],
    count: u64,
}

impl Keys {
    const PREFIX: usize = 16;
    /// Digits of six bits.
    const COUNT_MAX: usize = 11;

    /// `random`: another one for each connection.
    pub fn new(random: [u8; 12]) -> Keys {
        let mut text = [0; Keys::PREFIX + Keys::COUNT_MAX];
        for (place, byte) in text.iter_mut().zip(base64(&random)) {
            *place = byte;
        }
        Keys { text, count: 0 }
    }

    fn make(&mut self) -> Key {
        let (mut left, mut length) = (self.count, Keys::PREFIX);
        self.count = self.count.wrapping_add(1);
        loop {
            self.text[length] = ALPHABET[(left & 63) as usize];
            (left, length) = (left >> 6, length + 1);
            if left == 0 {
                break;
            }
        }
        Key::new(&self.text[..length]).expect("17 to 27 bytes are a key")
    }
}

/// What a request asks of the desk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    One { order: Order, shape: Shape },
    InsertData { old: bool },
    List { after: Option<u64>, offset: usize, limit: usize },
}

impl Work {
    /// What waits for it, and what its answer may hold, in requests for one account.
    pub fn weight(&self) -> usize {
        match self {
            Work::One { .. } => 1,
            Work::InsertData { .. } => TEST_USERS.len(),
            Work::List { offset, limit, .. } => 1 + wanted(*offset, *limit) / ACCOUNTS_PER_WEIGHT,
        }
    }

    pub fn kind(&self) -> metrics::Kind {
        match self {
            Work::InsertData { .. } => metrics::Kind::InsertData,
            Work::List { .. } => metrics::Kind::List,
            Work::One { order: Order { what: What::Get, .. }, .. } => metrics::Kind::Get,
            Work::One { order: Order { what: What::Operate(_, operation), .. }, .. } => match operation {
                Operation::Create { .. } => metrics::Kind::Create,
                Operation::AddMoney { .. } => metrics::Kind::AddMoney,
                Operation::Withdraw { .. } => metrics::Kind::Withdraw,
                Operation::UpdateSpendingVelocity { .. } => metrics::Kind::UpdateSpendingVelocity,
            },
        }
    }
}

/// One more than may be told shows that there are more.
fn wanted(offset: usize, limit: usize) -> usize {
    offset.saturating_add(limit).min(SELECT_MAX + 1)
}

/// How an account is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// The one tuple of a CALL, of an INSERT.
    Tuple,
    /// None if there is no account, as a SELECT has it.
    Selected,
    /// `true`; in a tuple of its own for an old CALL.
    True { old: bool },
}

/// Why a request is answered without asking.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused(pub Code, pub String);

/// The answer of the desk.
pub enum Done {
    Account(Account, Shape),
    Nothing,
    True { old: bool },
    Accounts(Vec<Account>),
    Refused(Refused),
}

fn refused<T>(code: Code, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(code, text.into()))
}

/// `PING`, `ID` and `AUTH` are the connection's; so is the schema.
pub fn work(request: &Request, keys: &mut Keys) -> Result<Work, Refused> {
    match request {
        Request::Call { old, function, arguments } => call(*old, function, arguments, keys),
        Request::Select(select) => select_accounts(select),
        Request::Insert { space: schema::ACCOUNTS, tuple } => {
            let [Value::Integer(id), Value::Integer(balance), Value::Integer(velocity)] = some(tuple)? else {
                return refused(
                    Code::IllegalParams,
                    "a tuple of accounts is [id, balance, velocity], all integers",
                );
            };
            let (balance, velocity) = (amount("balance", *balance, 0)?, amount("velocity", *velocity, 0)?);
            let create =
                Operation::Create { balance: Money::new(balance), velocity: Velocity::new(velocity) };
            Ok(Work::One { order: operate(account(*id)?, create, &[], keys)?, shape: Shape::Tuple })
        }
        Request::Insert { space, .. } if schema::is_schema(*space) => {
            refused(Code::ReadOnly, "the schema cannot be changed")
        }
        Request::Insert { space, .. } => {
            refused(Code::NoSuchSpace, format!("Space '{space}' does not exist"))
        }
        _ => refused(Code::UnknownRequest, "this request is not served here"),
    }
}

fn call(old: bool, function: &[u8], arguments: &Arguments, keys: &mut Keys) -> Result<Work, Refused> {
    let one = |order| Ok(Work::One { order, shape: Shape::True { old } });
    match (function, some(arguments)?) {
        (b"get", [Value::Integer(id)]) => {
            let order = Order { account: account(*id)?, what: What::Get };
            Ok(Work::One { order, shape: Shape::Tuple })
        }
        (b"insert_data", []) => Ok(Work::InsertData { old }),
        (b"add_money", [Value::Integer(id), Value::Integer(sum), key @ ..]) => {
            let add = Operation::AddMoney { amount: Money::new(amount("amount", *sum, 1)?) };
            one(operate(account(*id)?, add, key, keys)?)
        }
        (b"withdraw", [Value::Integer(id), Value::Integer(sum), key @ ..]) => {
            let withdraw = Operation::Withdraw { amount: Money::new(amount("amount", *sum, 1)?) };
            one(operate(account(*id)?, withdraw, key, keys)?)
        }
        (b"update_spending_velocity", [Value::Integer(id), Value::Integer(velocity), key @ ..]) => {
            let velocity = Velocity::new(amount("velocity", *velocity, 0)?);
            one(operate(account(*id)?, Operation::UpdateSpendingVelocity { velocity }, key, keys)?)
        }
        (b"get", _) => refused(Code::IllegalParams, "get takes an id"),
        (b"insert_data", _) => refused(Code::IllegalParams, "insert_data takes nothing"),
        (b"add_money" | b"withdraw", _) => {
            refused(Code::IllegalParams, "it takes an id, an amount, and a key or none")
        }
        (b"update_spending_velocity", _) => {
            refused(Code::IllegalParams, "it takes an id, a velocity, and a key or none")
        }
        (other, _) => {
            let name: String = String::from_utf8_lossy(other).chars().take(64).collect();
            refused(Code::NoSuchProcedure, format!("Procedure '{name}' is not defined"))
        }
    }
}

fn select_accounts(select: &Select) -> Result<Work, Refused> {
    if select.space != schema::ACCOUNTS {
        return refused(Code::NoSuchSpace, format!("Space '{}' does not exist", select.space));
    }
    if select.index != 0 {
        return Err(missing(Missing::Index));
    }
    let offset = usize::try_from(select.offset).unwrap_or(usize::MAX);
    let limit = usize::try_from(select.limit).unwrap_or(usize::MAX);
    match schema::range(select.iterator, &select.key).map_err(missing)? {
        Range::One(account) if offset == 0 && limit > 0 => {
            Ok(Work::One { order: Order { account, what: What::Get }, shape: Shape::Selected })
        }
        Range::One(_) | Range::Nothing => Ok(Work::List { after: None, offset: 0, limit: 0 }),
        Range::All | Range::From(0) => Ok(Work::List { after: None, offset, limit }),
        Range::From(id) => Ok(Work::List { after: Some(id - 1), offset, limit }),
        Range::After(id) => Ok(Work::List { after: Some(id), offset, limit }),
    }
}

pub fn missing(missing: Missing) -> Refused {
    match missing {
        Missing::Space => Refused(Code::NoSuchSpace, "there is no such space".to_owned()),
        Missing::Index => Refused(Code::NoSuchIndex, "there is no such index".to_owned()),
        Missing::Iterator => {
            Refused(Code::Unsupported, "this iterator with this key is not served here".to_owned())
        }
    }
}

fn some<'a>(arguments: &'a Arguments<'a>) -> Result<&'a [Value<'a>], Refused> {
    arguments.get().ok_or_else(|| Refused(Code::IllegalParams, "too many arguments".to_owned()))
}

fn account(id: i128) -> Result<u64, Refused> {
    u64::try_from(id).or_else(|_| refused(Code::IllegalParams, "an id is an unsigned 64-bit integer"))
}

fn amount(name: &str, number: i128, least: i64) -> Result<i64, Refused> {
    let fits = i64::try_from(number).ok().filter(|number| *number >= least);
    fits.ok_or_else(|| {
        Refused(Code::IllegalParams, format!("{name} is {number}, and must be from {least} to {}", i64::MAX))
    })
}

/// `own`: the arguments after those of the procedure.
fn operate(account: u64, operation: Operation, own: &[Value], keys: &mut Keys) -> Result<Order, Refused> {
    let key = match own {
        [] => keys.make(),
        [Value::Text(text)] => key(text).map_err(|problem| Refused(Code::IllegalParams, problem.detail))?,
        _ => return refused(Code::IllegalParams, "a key is a text"),
    };
    Ok(Order { account, what: What::Operate(key, operation) })
}

/// Ends by itself: shards answer within ten seconds or not at all, other nodes within twelve.
pub async fn perform<S: Shards>(desk: &Desk<S>, work: Work) -> Done {
    match work {
        Work::One { order, shape } => done(desk.one(Caller::Client, order).await, shape),
        Work::InsertData { old } => match desk.insert_data(Caller::Client).await {
            Ok(_) => Done::True { old },
            Err(problem) => Done::Refused(told(problem)),
        },
        Work::List { limit: 0, .. } => Done::Nothing,
        Work::List { after, offset, limit } => match desk.list(after, wanted(offset, limit)).await {
            Ok(accounts) if accounts.len() > SELECT_MAX => {
                let text =
                    format!("these are more than {SELECT_MAX} tuples; select fewer, after the last id");
                Done::Refused(Refused(Code::Unsupported, text))
            }
            Ok(accounts) => Done::Accounts(accounts.into_iter().skip(offset).take(limit).collect()),
            Err(problem) => Done::Refused(told(problem)),
        },
    }
}

/// What came of an order for one account.
pub fn done(outcome: Outcome, shape: Shape) -> Done {
    match outcome {
        Ok(account) => Done::Account(account, shape),
        Err(problem) if problem.kind == Kind::UnknownAccount && shape == Shape::Selected => Done::Nothing,
        Err(problem) => Done::Refused(told(problem)),
    }
}

fn told(problem: Problem) -> Refused {
    let Problem { kind, detail, .. } = problem;
    let code = match kind {
        Kind::AccountExists => Code::TupleFound,
        Kind::Malformed => Code::IllegalParams,
        Kind::Busy | Kind::Loop => Code::Busy,
        Kind::Unknown => Code::Timeout,
        _ => Code::Procedure,
    };
    Refused(code, format!("{}: {detail}", kind.name()))
}

impl Done {
    /// Why it was refused, if it was.
    pub fn code(&self) -> Option<Code> {
        match self {
            Done::Refused(Refused(code, _)) => Some(*code),
            Done::Account(..) | Done::Nothing | Done::True { .. } | Done::Accounts(_) => None,
        }
    }
}

/// Appends the answer.
pub fn tell(out: &mut Vec<u8>, sync: u64, done: &Done) {
    match done {
        Done::Account(account, Shape::Tuple | Shape::Selected) => codec::data(out, sync, |out| {
            codec::array(out, 1);
            codec::tuple(out, account);
        }),
        Done::Account(_, Shape::True { old }) | Done::True { old } => codec::data(out, sync, |out| {
            codec::array(out, 1);
            if *old {
                codec::array(out, 1);
            }
            codec::boolean(out, true);
        }),
        Done::Nothing => codec::data(out, sync, |out| codec::array(out, 0)),
        Done::Accounts(accounts) => codec::data(out, sync, |out| {
            codec::array(out, accounts.len());
            accounts.iter().for_each(|account| codec::tuple(out, account));
        }),
        Done::Refused(Refused(code, text)) => codec::error(out, sync, *code, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_keys_differ_and_are_keys() {
        let (mut one, mut other) = (Keys::new([0; 12]), Keys::new([0xff; 12]));
        let made: std::collections::BTreeSet<Vec<u8>> =
            (0..5000).flat_map(|_| [one.make(), other.make()]).map(|key| key.as_bytes().to_vec()).collect();
        assert_eq!(made.len(), 10_000);
        assert!(made.iter().all(|text| key(text).is_ok() && text.len() <= 19));
        one.count = u64::MAX;
        assert_eq!(one.make().as_bytes().len(), 27);
    }
}
