//! One procedure, called once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use rmpv::Value as Term;
use serde_json::Value;

use crate::wire;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    address: SocketAddr,
    function: String,
    /// Each is JSON; what is none is a text
    arguments: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<Value> {
    let mut stream =
        TcpStream::connect(args.address).with_context(|| format!("cannot connect to {}", args.address))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    wire::greeting(&mut stream)?;
    let arguments = args.arguments.iter().map(|text| argument(text)).collect();
    let body = [(0x22, Term::from(args.function.as_str())), (0x21, Term::Array(arguments))];
    let header = [(0x00, Term::from(0x0a)), (0x01, Term::from(1))];
    let mut content = Vec::new();
    for map in [header, body] {
        let map = map.into_iter().map(|(key, value)| (Term::from(key), value)).collect();
        rmpv::encode::write_value(&mut content, &Term::Map(map))?;
    }
    let length = u32::try_from(content.len())?.to_be_bytes();
    stream.write_all(&[&[0xce], &length[..], &content].concat())?;
    let mut incoming = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).context("no answer")? {
            0 => bail!("the server has closed the connection"),
            read => incoming.extend_from_slice(&bytes[..read]),
        }
        if let Some((answer, _)) = wire::answer(&incoming)? {
            if answer.code != 0 {
                bail!("{}: {}", args.function, answer.text());
            }
            let Term::Map(body) = rmpv::decode::read_value(&mut &*answer.body)? else {
                bail!("a body is a map")
            };
            return Ok(body.into_iter().next().map_or(Value::Null, |(_, data)| json(data)));
        }
    }
}

fn argument(text: &str) -> Term {
    match serde_json::from_str(text) {
        Ok(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Term::from(integer),
            (None, Some(float)) => Term::from(float),
            (None, None) => Term::from(text),
        },
        _ => Term::from(text),
    }
}

fn json(term: Term) -> Value {
    match term {
        Term::Array(items) => items.into_iter().map(json).collect(),
        Term::Boolean(flag) => flag.into(),
        Term::Integer(number) => number.as_i64().into(),
        Term::F64(number) => number.into(),
        Term::String(text) => text.to_string().into(),
        Term::Map(pairs) => pairs
            .into_iter()
            .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), json(value)))
            .collect(),
        _ => Value::Null,
    }
}
