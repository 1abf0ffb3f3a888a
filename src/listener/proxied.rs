//! The PROXY protocol, versions 1 and 2: a balancer tells, before all else, for which client a connection is.
//! (<https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>)

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2; its last two bytes say how long the rest is.
const FIXED_BYTES: usize = 16;
/// The longest line of version 1, line end included.
const LINE_BYTES_MAX: usize = 107;
/// A header of version 2 with everything balancers are known to add stays far below.
const HEADER_BYTES_MAX: usize = 4 * 1024;

/// Why a connection that should begin with a header is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection failed before its PROXY header was whole: {0}")]
    Io(#[from] io::Error),
    #[error("no PROXY header: {0}")]
    Malformed(String),
}

/// Takes the header off the connection and not one byte more. `None`: the balancer speaks for itself (a health check), or
/// does not say for whom. To be bounded in time by the caller.
pub async fn take_header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Error> {
    let mut header = Vec::with_capacity(LINE_BYTES_MAX);
    let mut ahead = [0; 256];
    loop {
        let there = stream.peek(&mut ahead).await?;
        if there == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let begun = header.len();
        header.extend_from_slice(&ahead[..there]);
        let sure = sure_bytes(&header)?;
        header.truncate(sure.max(begun));
        let taken = header.len() - begun;
        stream.read_exact(&mut ahead[..taken]).await?;
        if is_whole(&header) {
            return client(&header);
        }
    }
}

/// How many of these bytes belong to the header for sure.
fn sure_bytes(bytes: &[u8]) -> Result<usize, Error> {
    let signed = bytes.len().min(SIGNATURE.len());
    if bytes[..signed] == SIGNATURE[..signed] {
        return match whole_length(bytes) {
            None => Ok(bytes.len().min(FIXED_BYTES)),
            Some(length) if length <= HEADER_BYTES_MAX => Ok(bytes.len().min(length)),
            Some(length) => Err(Error::Malformed(format!("it says it is {length} bytes long"))),
        };
    }
    let named = bytes.len().min(6);
    if bytes[..named] != b"PROXY "[..named] {
        return Err(Error::Malformed("the first bytes are of neither version".to_owned()));
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) if end < LINE_BYTES_MAX => Ok(end + 1),
        None if bytes.len() < LINE_BYTES_MAX => Ok(bytes.len()),
        _ => Err(Error::Malformed("the line does not end".to_owned())),
    }
}

/// The length of a header of version 2, as it says.
fn whole_length(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [.., high, low] if bytes.len() == FIXED_BYTES => {
            Some(FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ if bytes.len() > FIXED_BYTES => whole_length(&bytes[..FIXED_BYTES]),
        _ => None,
    }
}

fn is_whole(header: &[u8]) -> bool {
    match header.first() {
        // The signature of version 2 has line ends of its own.
        Some(b'P') => header.ends_with(b"\n"),
        _ => whole_length(header) == Some(header.len()),
    }
}

fn client(header: &[u8]) -> Result<Option<SocketAddr>, Error> {
    let parsed = HeaderResult::parse(header);
    if parsed.is_incomplete() {
        return Err(Error::Malformed("it is cut short".to_owned()));
    }
    let client = match parsed {
        HeaderResult::V1(header) => match header.map_err(malformed)?.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
            v1::Addresses::Tcp6(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
        },
        HeaderResult::V2(header) => {
            let header = header.map_err(malformed)?;
            match (header.command, header.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => {
                    Some(SocketAddr::from((ip.source_address, ip.source_port)))
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => {
                    Some(SocketAddr::from((ip.source_address, ip.source_port)))
                }
                _ => None,
            }
        }
    };
    Ok(client.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port())))
}

fn malformed(error: impl std::fmt::Debug) -> Error {
    Error::Malformed(format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Sends the parts one by one, each once the one before was read, and tells what was understood and what is left.
    async fn read(parts: &[&[u8]]) -> (Result<Option<SocketAddr>, Error>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        client.set_nodelay(true).unwrap();
        let sending = async move {
            for part in parts {
                client.write_all(&part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
            client
        };
        let (taken, _client) = tokio::join!(take_header(&mut server), sending);
        let mut rest = Vec::new();
        let _ = server.read_to_end(&mut rest).await;
        (taken, rest)
    }

    fn second(command: u8, family: u8, addresses: &[u8], extra: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(((addresses.len() + extra.len()) as u16).to_be_bytes());
        header.extend(addresses);
        header.extend(extra);
        header
    }

    const FOUR: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_the_rest() {
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        six[32..34].copy_from_slice(&8080u16.to_be_bytes());
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n".to_vec(), Some("192.0.2.7:8080")),
            (b"PROXY TCP6 2001:db8::7 ::1 8080 80\r\n".to_vec(), Some("[2001:db8::7]:8080")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 8080 80\r\n".to_vec(), Some("192.0.2.7:8080")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (second(1, 0x11, &FOUR, b""), Some("192.0.2.7:8080")),
            (second(1, 0x11, &FOUR, &[3, 0, 4, 1, 2, 3, 4]), Some("192.0.2.7:8080")),
            (second(1, 0x21, &six, b""), Some("[2001:db8::7]:8080")),
            (second(0, 0x00, b"", b""), None),
        ];
        for (header, expected) in cases {
            let expected: Option<SocketAddr> = expected.map(|text| text.parse().unwrap());
            let mut whole = header.clone();
            whole.extend(b"GET /");
            let (client, rest) = read(&[&whole]).await;
            assert_eq!((client.unwrap(), &rest[..]), (expected, &b"GET /"[..]), "{header:?}");
            let pieces: Vec<&[u8]> = whole.chunks(1).collect();
            let (client, rest) = read(&pieces).await;
            assert_eq!((client.unwrap(), &rest[..]), (expected, &b"GET /"[..]), "{header:?} in parts");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        let mut huge = second(1, 0x11, &FOUR, b"");
        huge[14] = 0xff;
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4\r\n",
            b"PROXY TCP4 a b 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 80\r\n",
            b"PROXY",
            b"\r\n\r\n\0\r\nQUIX\n",
            &second(1, 0x11, &FOUR[..4], b""),
            &second(9, 0x11, &FOUR, b""),
            &endless,
            &huge,
            b"",
        ] {
            assert!(read(&[bytes]).await.0.is_err(), "{bytes:?}");
        }
    }
}
