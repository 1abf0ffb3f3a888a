//! Requests with holes, filled by copying; answers, as far as a load looks into them.

use anyhow::{Context, bail, ensure};

/// The space of accounts in forefront.
const ACCOUNTS: u16 = 512;
pub const KEY_BYTES: usize = 16;
const GREETING_BYTES: usize = 128;

/// A request of fixed length. Every number in it has a fixed width, which MessagePack allows.
pub struct Template {
    bytes: Vec<u8>,
    sync: usize,
    id: usize,
    number: usize,
    key: Option<usize>,
}

/// A mark where a number of four or eight bytes will stand.
const HOLE: [u8; 8] = [0; 8];

impl Template {
    /// `CALL function(id, amount, key)`.
    pub fn operation(function: &str) -> Template {
        let mut template = Template::call(function, 3);
        template.push_id();
        template.push_number();
        template.push_key();
        template.measured()
    }

    /// `CALL create(id, balance, velocity, key)`.
    pub fn create(velocity: u32) -> Template {
        let mut template = Template::call("create", 4);
        template.push_id();
        template.push_number();
        template.push_velocity(velocity);
        template.push_key();
        template.measured()
    }

    /// `INSERT [id, balance, velocity]` into the space of accounts.
    pub fn insert(velocity: u32) -> Template {
        let mut template = Template::header(0x02);
        template.bytes.extend([0x82, 0x10, 0xcd]);
        template.bytes.extend(ACCOUNTS.to_be_bytes());
        template.bytes.extend([0x21, 0x93]);
        template.push_id();
        template.push_number();
        template.push_velocity(velocity);
        template.measured()
    }

    fn call(function: &str, arguments: u8) -> Template {
        let mut template = Template::header(0x0a);
        template.bytes.extend([0x82, 0x22, 0xa0 | function.len() as u8]);
        template.bytes.extend(function.as_bytes());
        template.bytes.extend([0x21, 0x90 | arguments]);
        template
    }

    fn header(code: u8) -> Template {
        let mut bytes = vec![0xce, 0, 0, 0, 0, 0x82, 0x00, code, 0x01, 0xce];
        let sync = bytes.len();
        bytes.extend(&HOLE[..4]);
        Template { bytes, sync, id: 0, number: 0, key: None }
    }

    fn push_id(&mut self) {
        self.bytes.push(0xce);
        self.id = self.bytes.len();
        self.bytes.extend(&HOLE[..4]);
    }

    fn push_number(&mut self) {
        self.bytes.push(0xcf);
        self.number = self.bytes.len();
        self.bytes.extend(HOLE);
    }

    fn push_velocity(&mut self, velocity: u32) {
        self.bytes.push(0xce);
        self.bytes.extend(velocity.to_be_bytes());
    }

    fn push_key(&mut self) {
        self.bytes.push(0xa0 | KEY_BYTES as u8);
        self.key = Some(self.bytes.len());
        self.bytes.extend([b'0'; KEY_BYTES]);
    }

    fn measured(mut self) -> Template {
        let length = (self.bytes.len() - 5) as u32;
        self.bytes[1..5].copy_from_slice(&length.to_be_bytes());
        self
    }

    /// Appends the request. `key` is written as 16 hexadecimal digits.
    pub fn append(&self, out: &mut Vec<u8>, sync: u32, id: u32, number: u64, key: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let message = &mut out[start..];
        message[self.sync..self.sync + 4].copy_from_slice(&sync.to_be_bytes());
        message[self.id..self.id + 4].copy_from_slice(&id.to_be_bytes());
        message[self.number..self.number + 8].copy_from_slice(&number.to_be_bytes());
        if let Some(place) = self.key {
            let digits = key.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            for (digit, text) in digits.zip(&mut message[place..place + KEY_BYTES]) {
                *text = b"0123456789abcdef"[usize::from(digit)];
            }
        }
    }
}

pub struct Answer<'a> {
    pub sync: u32,
    /// 0, or an error's.
    pub code: u64,
    pub body: &'a [u8],
}

/// The first answer and how long it is; None if it is not all there.
pub fn answer(bytes: &[u8]) -> anyhow::Result<Option<(Answer<'_>, usize)>> {
    let Some(([0xce, length @ ..], rest)) = bytes.split_first_chunk::<5>() else {
        ensure!(bytes.first().is_none_or(|first| *first == 0xce), "an answer's length has an odd form");
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(mut content) = rest.get(..length) else { return Ok(None) };
    let map = take(&mut content, 1)?[0];
    ensure!(map & 0xf0 == 0x80, "an answer's header is no map");
    let (mut sync, mut code) = (None, None);
    for _ in 0..map & 0x0f {
        let (key, value) = (unsigned(&mut content)?, unsigned(&mut content)?);
        match key {
            0x00 => code = Some(value),
            0x01 => sync = u32::try_from(value).ok(),
            _ => {}
        }
    }
    let sync = sync.context("an answer without a sync of ours")?;
    let code = code.context("an answer without a code")?;
    Ok(Some((Answer { sync, code, body: content }, 5 + length)))
}

impl Answer<'_> {
    /// What an error says.
    pub fn text(&self) -> String {
        let value = rmpv::decode::read_value(&mut &*self.body);
        value.map_or_else(|_| "unreadable".to_owned(), |value| value.to_string())
    }
}

fn unsigned(content: &mut &[u8]) -> anyhow::Result<u64> {
    let width = match take(content, 1)?[0] {
        small @ 0..=0x7f => return Ok(u64::from(small)),
        marker @ 0xcc..=0xcf => 1 << (marker - 0xcc),
        marker => bail!("{marker:#x} in an answer's header"),
    };
    Ok(take(content, width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn take<'a>(content: &mut &'a [u8], bytes: usize) -> anyhow::Result<&'a [u8]> {
    content.split_off(..bytes).context("an answer ends too early")
}

/// Reads the greeting, which comes once, before everything else.
pub fn greeting(stream: &mut impl std::io::Read) -> anyhow::Result<()> {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).context("the greeting does not come")?;
    ensure!(greeting.starts_with(b"Tarantool"), "the greeting is another protocol's");
    Ok(())
}
