//! MessagePack as it comes from a socket: read in place, bounded in depth, nothing taken at its word. Pure.

/// Deeper than any request of a connector.
const DEPTH_MAX: usize = 16;

/// It is no MessagePack, ends too early, or is not what stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be read")]
pub struct Malformed;

type Read<T> = Result<T, Malformed>;

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

/// A value, as far as this door looks into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Nil,
    Integer(i128),
    /// A text or binary string.
    Text(&'a [u8]),
    /// Its elements are still to be read.
    Array(usize),
    /// Its keys and values are still to be read.
    Map(usize),
    /// A boolean, float or extension, read over.
    Other,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn left(&self) -> usize {
        self.0.len()
    }

    pub fn value(&mut self) -> Read<Value<'a>> {
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00..=0x7f => Value::Integer(i128::from(marker)),
            0xe0..=0xff => Value::Integer(i128::from(marker as i8)),
            0x80..=0x8f => Value::Map(usize::from(marker & 0x0f)),
            0x90..=0x9f => Value::Array(usize::from(marker & 0x0f)),
            0xa0..=0xbf => Value::Text(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(Malformed),
            0xc2 | 0xc3 => Value::Other,
            0xc4..=0xc6 => Value::Text(self.counted(1 << (marker - 0xc4), 0)?),
            0xc7..=0xc9 => self.counted(1 << (marker - 0xc7), 1).map(|_| Value::Other)?,
            0xca => self.take(4).map(|_| Value::Other)?,
            0xcb => self.take(8).map(|_| Value::Other)?,
            0xcc..=0xcf => Value::Integer(i128::from(self.unsigned(1 << (marker - 0xcc))?)),
            0xd0..=0xd3 => {
                let bytes = 1 << (marker - 0xd0);
                let shift = 64 - 8 * bytes as u32;
                Value::Integer(i128::from((self.unsigned(bytes)? << shift) as i64 >> shift))
            }
            0xd4..=0xd8 => self.take(1 + (1 << (marker - 0xd4))).map(|_| Value::Other)?,
            0xd9..=0xdb => Value::Text(self.counted(1 << (marker - 0xd9), 0)?),
            0xdc | 0xdd => Value::Array(self.length(2 << (marker - 0xdc))?),
            0xde | 0xdf => Value::Map(self.length(2 << (marker - 0xde))?),
        })
    }

    pub fn integer(&mut self) -> Read<i128> {
        match self.value()? {
            Value::Integer(number) => Ok(number),
            _ => Err(Malformed),
        }
    }

    pub fn number<N: TryFrom<i128>>(&mut self) -> Read<N> {
        N::try_from(self.integer()?).map_err(|_| Malformed)
    }

    pub fn text(&mut self) -> Read<&'a [u8]> {
        match self.value()? {
            Value::Text(text) => Ok(text),
            _ => Err(Malformed),
        }
    }

    pub fn array(&mut self) -> Read<usize> {
        match self.value()? {
            Value::Array(length) => Ok(length),
            _ => Err(Malformed),
        }
    }

    pub fn map(&mut self) -> Read<usize> {
        match self.value()? {
            Value::Map(length) => Ok(length),
            _ => Err(Malformed),
        }
    }

    /// Reads over the next value and all that is in it.
    pub fn skip(&mut self) -> Read<()> {
        self.skip_within(DEPTH_MAX)
    }

    /// The next value; what is in it is read over.
    pub fn shallow(&mut self) -> Read<Value<'a>> {
        let value = self.value()?;
        self.skip_inside(value, DEPTH_MAX)?;
        Ok(value)
    }

    fn skip_within(&mut self, depth: usize) -> Read<()> {
        let value = self.value()?;
        self.skip_inside(value, depth)
    }

    fn skip_inside(&mut self, value: Value<'a>, depth: usize) -> Read<()> {
        let inner = match value {
            Value::Array(length) => length,
            Value::Map(length) => length.checked_mul(2).ok_or(Malformed)?,
            _ => return Ok(()),
        };
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        // Each takes a byte at least, so a length that lies ends with the bytes.
        (0..inner).try_for_each(|_| self.skip_within(depth))
    }

    fn length(&mut self, bytes: usize) -> Read<usize> {
        usize::try_from(self.unsigned(bytes)?).map_err(|_| Malformed)
    }

    fn counted(&mut self, length_bytes: usize, more: usize) -> Read<&'a [u8]> {
        let length = self.length(length_bytes)?;
        self.take(length.checked_add(more).ok_or(Malformed)?)
    }

    fn unsigned(&mut self, bytes: usize) -> Read<u64> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn take(&mut self, bytes: usize) -> Read<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(bytes).ok_or(Malformed)?;
        self.0 = left;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value as Other;

    use super::*;

    fn any_value() -> impl Strategy<Value = Other> {
        let leaf = prop_oneof![
            Just(Other::Nil),
            any::<bool>().prop_map(Other::from),
            any::<u64>().prop_map(Other::from),
            any::<i64>().prop_map(Other::from),
            any::<i8>().prop_map(Other::from),
            any::<f32>().prop_map(Other::from),
            any::<f64>().prop_map(Other::from),
            ".{0,40}".prop_map(Other::from),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Other::from),
            (any::<i8>(), prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(kind, bytes)| Other::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(4, 64, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Other::Array),
                prop::collection::vec((inner.clone(), inner), 0..20).prop_map(Other::Map),
            ]
        })
    }

    fn bytes_of(value: &Other) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    /// The other library's value and ours, all the way down.
    fn same(other: &Other, reader: &mut Reader) -> bool {
        match (other, reader.value().unwrap()) {
            (Other::Nil, Value::Nil) => true,
            (Other::Boolean(_) | Other::F32(_) | Other::F64(_) | Other::Ext(..), Value::Other) => true,
            (Other::Integer(number), Value::Integer(read)) => {
                number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)) == Some(read)
            }
            (Other::String(text), Value::Text(read)) => text.as_bytes() == read,
            (Other::Binary(bytes), Value::Text(read)) => bytes == read,
            (Other::Array(items), Value::Array(length)) => {
                items.len() == length && items.iter().all(|item| same(item, reader))
            }
            (Other::Map(pairs), Value::Map(length)) => {
                pairs.len() == length
                    && pairs.iter().all(|(key, value)| same(key, reader) && same(value, reader))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn what_another_library_writes_is_read(value in any_value(), rest in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = bytes_of(&value);
            let length = bytes.len();
            bytes.extend(&rest);
            let mut reader = Reader::new(&bytes);
            prop_assert!(same(&value, &mut reader));
            prop_assert_eq!(reader.left(), rest.len());
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.shallow(), Reader::new(&bytes).value());
            prop_assert_eq!(reader.left(), rest.len());
            // What is cut off is not read.
            for cut in 0..length {
                prop_assert_eq!(Reader::new(&bytes[..cut]).skip(), Err(Malformed));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut reader = Reader::new(&bytes);
            while reader.skip().is_ok() {}
        }
    }

    #[test]
    fn depth_and_lengths_are_bounded() {
        assert_eq!(Reader::new(&[0x91; 1000]).skip(), Err(Malformed));
        assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).skip(), Err(Malformed));
        assert_eq!(Reader::new(&[0xdf, 0xff, 0xff, 0xff, 0xff, 0xc0]).skip(), Err(Malformed));
        assert_eq!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff]).skip(), Err(Malformed));
    }
}
