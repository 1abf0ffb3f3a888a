//! What is spoken: JSON to operations, accounts to JSON. Stricter than serde by itself: an object is an object (not an
//! array of its values), null is no number, and every number is within its bounds before anything is done.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Kind, Problem, ProblemBody};
use super::whole::{whole, whole_as};
use crate::billing::domain::{Account, AccountState, Key, Micros, Money, Operation, Velocity};

/// As many operations as one batch may have: what one request can make others wait for.
pub const BATCH_MAX: usize = 1000;
/// What is left of a key for the number of the operation.
pub const BATCH_KEY_BYTES_MAX: usize = Key::LENGTH_MAX - "#999".len();

/// One thing to do with one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub account: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Get,
    Operate(Key, Operation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Procedure {
    Get,
    Create,
    AddMoney,
    Withdraw,
    UpdateSpendingVelocity,
}

// --------------------------------------------------------------------------------------------------------------- out

/// An account as it is shown.
#[derive(Debug, Serialize, Deserialize)]
pub struct AccountBody {
    id: u64,
    balance: i64,
    velocity: i64,
    state: StateBody,
    version: u32,
    depletes_at: Option<u64>,
    overrun: Option<i64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateBody {
    Active,
    Stopped,
}

impl From<Account> for AccountBody {
    fn from(account: Account) -> AccountBody {
        let Account { id, balance, velocity, state, version, depletes_at, overrun } = account;
        AccountBody {
            id,
            balance: balance.get(),
            velocity: velocity.get(),
            state: match state {
                AccountState::Active => StateBody::Active,
                AccountState::Stopped => StateBody::Stopped,
            },
            version,
            depletes_at: depletes_at.map(Micros::get),
            overrun: overrun.map(Money::get),
        }
    }
}

impl From<AccountBody> for Account {
    fn from(body: AccountBody) -> Account {
        let AccountBody { id, balance, velocity, state, version, depletes_at, overrun } = body;
        Account {
            id,
            balance: Money::new(balance),
            velocity: Velocity::new(velocity),
            state: match state {
                StateBody::Active => AccountState::Active,
                StateBody::Stopped => AccountState::Stopped,
            },
            version,
            depletes_at: depletes_at.map(Micros::new),
            overrun: overrun.map(Money::new),
        }
    }
}

/// A page of accounts; `next` is what to give as `after` for the next one, or null.
#[derive(Serialize, Deserialize)]
pub struct PageBody {
    pub accounts: Vec<AccountBody>,
    pub next: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub struct AccountsBody {
    pub accounts: Vec<AccountBody>,
}

/// In the order of the operations.
#[derive(Serialize, Deserialize)]
pub struct ResultsBody {
    pub results: Vec<ResultBody>,
}

/// An account, or why there is none.
#[derive(Serialize, Deserialize)]
pub struct ResultBody {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<AccountBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<ProblemBody>,
}

impl ResultBody {
    pub fn new(order: &Order, result: Result<Account, Problem>) -> ResultBody {
        match result {
            Ok(account) => {
                let created = matches!(order.what, What::Operate(_, Operation::Create { .. }));
                ResultBody {
                    status: if created { 201 } else { 200 },
                    account: Some(account.into()),
                    problem: None,
                }
            }
            Err(problem) => ResultBody {
                status: problem.kind.status().as_u16(),
                account: None,
                problem: Some(problem.body()),
            },
        }
    }

    /// None if another node told what cannot be understood.
    pub fn into_result(self) -> Option<Result<Account, Problem>> {
        match self {
            ResultBody { account: Some(account), problem: None, .. } => Some(Ok(account.into())),
            ResultBody { account: None, problem: Some(problem), .. } => Problem::from_body(problem).map(Err),
            _ => None,
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- in

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    #[serde(deserialize_with = "whole")]
    pub id: u64,
    #[serde(deserialize_with = "whole_balance")]
    balance: i64,
    #[serde(deserialize_with = "whole_velocity")]
    velocity: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AmountBody {
    #[serde(deserialize_with = "whole_amount")]
    amount: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VelocityBody {
    #[serde(deserialize_with = "whole_velocity")]
    velocity: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    operations: Vec<Object<ItemBody>>,
}

/// One operation of a batch; which of the fields it has depends on the operation.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemBody {
    operation: Procedure,
    #[serde(deserialize_with = "whole")]
    id: u64,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, deserialize_with = "given_balance", skip_serializing_if = "Option::is_none")]
    balance: Option<i64>,
    #[serde(default, deserialize_with = "given_velocity", skip_serializing_if = "Option::is_none")]
    velocity: Option<i64>,
    #[serde(default, deserialize_with = "given_amount", skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
}

impl CreateBody {
    pub fn operation(&self) -> Result<Operation, Problem> {
        create(self.balance, self.velocity)
    }
}

impl AmountBody {
    pub fn add_money(&self) -> Result<Operation, Problem> {
        Ok(Operation::AddMoney { amount: amount(self.amount)? })
    }

    pub fn withdraw(&self) -> Result<Operation, Problem> {
        Ok(Operation::Withdraw { amount: amount(self.amount)? })
    }
}

impl VelocityBody {
    pub fn operation(&self) -> Result<Operation, Problem> {
        Ok(Operation::UpdateSpendingVelocity { velocity: velocity(self.velocity)? })
    }
}

impl ItemBody {
    /// As another node reads it.
    pub fn of(order: &Order) -> ItemBody {
        let Order { account: id, what } = *order;
        let mut item = ItemBody {
            operation: Procedure::Get,
            id,
            key: None,
            balance: None,
            velocity: None,
            amount: None,
        };
        let What::Operate(key, operation) = what else { return item };
        // Every key that got this far is visible ASCII.
        item.key = Some(String::from_utf8_lossy(key.as_bytes()).into_owned());
        item.operation = Procedure::of(&operation);
        match operation {
            Operation::Create { balance, velocity } => {
                (item.balance, item.velocity) = (Some(balance.get()), Some(velocity.get()));
            }
            Operation::AddMoney { amount } | Operation::Withdraw { amount } => {
                item.amount = Some(amount.get())
            }
            Operation::UpdateSpendingVelocity { velocity } => item.velocity = Some(velocity.get()),
        }
        item
    }

    /// `key` makes the key of an operation that came without one.
    fn order(self, key: impl FnOnce() -> Key) -> Result<Order, String> {
        let ItemBody { operation, id: account, key: own, balance, velocity: speed, amount: sum } = self;
        let operation = match (operation, balance, speed, sum) {
            (Procedure::Get, None, None, None) if own.is_none() => {
                return Ok(Order { account, what: What::Get });
            }
            (Procedure::Get, ..) => return Err("get takes nothing but an id".to_owned()),
            (Procedure::Create, Some(balance), Some(speed), None) => create(balance, speed),
            (Procedure::AddMoney, None, None, Some(sum)) => {
                amount(sum).map(|amount| Operation::AddMoney { amount })
            }
            (Procedure::Withdraw, None, None, Some(sum)) => {
                amount(sum).map(|amount| Operation::Withdraw { amount })
            }
            (Procedure::UpdateSpendingVelocity, None, Some(speed), None) => {
                velocity(speed).map(|velocity| Operation::UpdateSpendingVelocity { velocity })
            }
            (Procedure::Create, ..) => return Err("create takes id, balance and velocity".to_owned()),
            (Procedure::AddMoney | Procedure::Withdraw, ..) => {
                return Err("add_money and withdraw take id and amount".to_owned());
            }
            (Procedure::UpdateSpendingVelocity, ..) => {
                return Err("update_spending_velocity takes id and velocity".to_owned());
            }
        };
        let key = match own {
            None => key(),
            Some(own) => self::key(own.as_bytes()).map_err(|problem| problem.detail)?,
        };
        Ok(Order { account, what: What::Operate(key, operation.map_err(|problem| problem.detail)?) })
    }
}

impl Procedure {
    pub fn of(operation: &Operation) -> Procedure {
        match operation {
            Operation::Create { .. } => Procedure::Create,
            Operation::AddMoney { .. } => Procedure::AddMoney,
            Operation::Withdraw { .. } => Procedure::Withdraw,
            Operation::UpdateSpendingVelocity { .. } => Procedure::UpdateSpendingVelocity,
        }
    }
}

/// The operations of a batch. One without a key of its own has the batch's and its place: `<key>#<n>`, from 0.
pub fn batch(body: &[u8], key: &Key) -> Result<Vec<Order>, Problem> {
    let BatchBody { operations } = object(body)?;
    if operations.is_empty() || operations.len() > BATCH_MAX {
        return Err(Problem::malformed(format!("a batch has 1 to {BATCH_MAX} operations")));
    }
    let order = |(place, Object(item)): (usize, Object<ItemBody>)| {
        let numbered = || {
            let numbered = [key.as_bytes(), format!("#{place}").as_bytes()].concat();
            Key::new(&numbered).unwrap_or(*key)
        };
        item.order(numbered).map_err(|why| Problem::malformed(format!("operations[{place}]: {why}")))
    };
    operations.into_iter().enumerate().map(order).collect()
}

/// 1 to 64 bytes of visible ASCII.
pub fn key(text: &[u8]) -> Result<Key, Problem> {
    let key = Key::new(text).filter(|key| key.as_bytes().iter().all(u8::is_ascii_graphic));
    key.ok_or_else(|| Problem::malformed("an idempotency key is 1 to 64 visible ASCII characters"))
}

/// For an operation that came without one: 32 hexadecimal digits.
pub fn new_key() -> Result<Key, Problem> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Kind::Busy)?;
    key(hex::encode(bytes).as_bytes())
}

pub fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    match serde_json::from_slice(body) {
        Ok(Object(value)) => Ok(value),
        Err(error) => Err(Problem::malformed(error.to_string())),
    }
}

const AMOUNT: &str = "amount must be a whole number of micro-units from 1 to 9223372036854775807";
const BALANCE: &str = "balance must be a whole number of micro-units from 0 to 9223372036854775807";
const VELOCITY: &str =
    "velocity must be a whole number of micro-units per second from 0 to 9223372036854775807";

fn create(balance: i64, speed: i64) -> Result<Operation, Problem> {
    let balance = Money::new(within(balance, 0, BALANCE)?);
    Ok(Operation::Create { balance, velocity: velocity(speed)? })
}

fn amount(amount: i64) -> Result<Money, Problem> {
    within(amount, 1, AMOUNT).map(Money::new)
}

fn velocity(velocity: i64) -> Result<Velocity, Problem> {
    within(velocity, 0, VELOCITY).map(Velocity::new)
}

fn within(number: i64, least: i64, rule: &str) -> Result<i64, Problem> {
    if number < least {
        return Err(Problem::malformed(format!("{rule}, not `{number}`")));
    }
    Ok(number)
}

// For `deserialize_with`. That a number is too small is told later, with the operation of a batch that has it.

fn whole_amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    whole_as(deserializer, AMOUNT)
}

fn whole_balance<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    whole_as(deserializer, BALANCE)
}

fn whole_velocity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    whole_as(deserializer, VELOCITY)
}

fn given_amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    whole_amount(deserializer).map(Some)
}

fn given_balance<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    whole_balance(deserializer).map(Some)
}

fn given_velocity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    whole_velocity(deserializer).map(Some)
}

/// What is written must be there: null is not the same as nothing.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// serde reads structs from arrays as well; this does not.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct OnlyMaps<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(OnlyMaps(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Vec<Order>, String> {
        batch(body.as_bytes(), &Key::new(b"k").unwrap()).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_batch_is_read_with_its_keys() {
        let orders = read(
            r#"{"operations":[
                {"operation":"create","id":18446744073709551615,"balance":0,"velocity":9223372036854775807},
                {"operation":"add_money","id":4,"amount":1,"key":"own"},
                {"operation":"withdraw","id":4,"amount":2},
                {"operation":"update_spending_velocity","id":4,"velocity":0},
                {"operation":"get","id":4}]}"#,
        )
        .unwrap();
        let what = |key: &str, operation| What::Operate(Key::new(key.as_bytes()).unwrap(), operation);
        let (money, velocity) = (Money::new, Velocity::new);
        let expected = [
            what("k#0", Operation::Create { balance: Money::ZERO, velocity: Velocity::MAX }),
            what("own", Operation::AddMoney { amount: money(1) }),
            what("k#2", Operation::Withdraw { amount: money(2) }),
            what("k#3", Operation::UpdateSpendingVelocity { velocity: velocity(0) }),
            What::Get,
        ];
        assert_eq!(orders.iter().map(|order| order.what).collect::<Vec<_>>(), expected);
        assert_eq!(orders[0].account, u64::MAX);
        // And the same again on the other side of a forward.
        for order in orders {
            let text = serde_json::to_string(&ItemBody::of(&order)).unwrap();
            let Object(item): Object<ItemBody> = serde_json::from_str(&text).unwrap();
            assert_eq!(item.order(|| unreachable!()), Ok(order), "{text}");
        }
    }

    #[test]
    fn what_is_no_batch_is_refused_as_a_whole() {
        let item = |item: &str| format!(r#"{{"operations":[{{"operation":"get","id":1}},{item}]}}"#);
        for (body, piece) in [
            ("", "EOF"),
            ("[[]]", "expected an object"),
            ("{}", "missing field `operations`"),
            (r#"{"operations":[]}"#, "1 to 1000"),
            (r#"{"operations":[],"operations":[]}"#, "duplicate field"),
            (r#"{"operations":[{"operation":"get","id":1}],"x":1}"#, "unknown field `x`"),
            (&item(r#"["get",1]"#), "expected an object"),
            (&item(r#"{"operation":"get","id":1,"key":"k"}"#), "operations[1]: get takes nothing"),
            (&item(r#"{"operation":"delete","id":1}"#), "unknown variant `delete`"),
            (&item(r#"{"operation":"add_money","id":1}"#), "operations[1]: add_money and withdraw take"),
            (&item(r#"{"operation":"add_money","id":1,"amount":1,"velocity":1}"#), "take id and amount"),
            (
                &item(r#"{"operation":"add_money","id":1,"amount":0}"#),
                "operations[1]: amount must be a whole number of micro-units from 1 to 9223372036854775807, not `0`",
            ),
            (&item(r#"{"operation":"add_money","id":1,"amount":null}"#), "9223372036854775807, not `null`"),
            (&item(r#"{"operation":"add_money","id":1,"amount":1.5}"#), "9223372036854775807, not `1.5`"),
            (
                &item(r#"{"operation":"withdraw","id":1,"amount":9223372036854775808}"#),
                "amount must be a whole number of micro-units from 1 to 9223372036854775807, not `9223372036854775808`",
            ),
            (&item(r#"{"operation":"add_money","id":1,"amount":1,"key":"a b"}"#), "visible ASCII"),
            (&item(r#"{"operation":"withdraw","id":-1,"amount":1}"#), "`-1` is no whole number from 0"),
            (
                &item(r#"{"operation":"create","id":1,"balance":-1,"velocity":1}"#),
                "micro-units from 0 to 9223372036854775807, not `-1`",
            ),
            (
                &item(r#"{"operation":"create","id":1,"balance":1,"velocity":-1}"#),
                "micro-units per second from 0 to",
            ),
        ] {
            let why = read(body).unwrap_err();
            assert!(why.contains(piece), "{body}: {why}");
        }
        let many = vec![r#"{"operation":"get","id":1}"#; BATCH_MAX + 1].join(",");
        assert!(read(&format!(r#"{{"operations":[{many}]}}"#)).unwrap_err().contains("1 to 1000"));
    }

    #[test]
    fn keys() {
        assert!(key(&[b'x'; 64]).is_ok() && key(b"!~").is_ok());
        for bad in [&b""[..], &[b'x'; 65], b"a b", "é".as_bytes(), b"a\n"] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }
}
