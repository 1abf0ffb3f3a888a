//! The head of an answer, from an origin or made here (RFC 9112, 4).

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::fields::{Fields, tokens};
use super::request::content_length;
use super::{Decoder, FIELDS_MAX};

/// An answer that cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed answer: {0}")]
pub struct MalformedResponse(pub &'static str);

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub http11: bool,
    pub fields: Fields,
    /// Does the origin let the connection live on after this answer?
    pub keep_alive: bool,
}

impl ResponseHead {
    /// Takes one head off the front of `buf`. `Ok(None)`: not all of it is there yet.
    pub fn take(buf: &mut BytesMut) -> Result<Option<ResponseHead>, MalformedResponse> {
        let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        let length = match parsed.parse(buf) {
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(length)) => length,
            Err(httparse::Error::TooManyHeaders) => return Err(MalformedResponse("too many header fields")),
            Err(_) => return Err(MalformedResponse("not an HTTP/1 head")),
        };
        let status = StatusCode::from_u16(parsed.code.unwrap_or_default())
            .map_err(|_| MalformedResponse("status out of range"))?;
        let http11 = parsed.version == Some(1);
        let mut fields = Fields::from_parsed(buf.as_ptr() as usize, parsed.headers);
        fields.attach(buf.split_to(length).freeze());
        let keep_alive = if fields.has_token("connection", "close") {
            false
        } else {
            http11 || fields.has_token("connection", "keep-alive")
        };
        Ok(Some(ResponseHead { status, http11, fields, keep_alive }))
    }

    /// An answer made here.
    pub fn new(status: StatusCode, fields: Fields) -> ResponseHead {
        ResponseHead { status, http11: true, fields, keep_alive: true }
    }

    /// `Content-Length`, where there is one and it is sound; an error where it is not.
    pub fn content_length(&self) -> Result<Option<u64>, MalformedResponse> {
        let mut length = None;
        for value in self.fields.all("content-length") {
            let value = content_length(value).ok_or(MalformedResponse("Content-Length"))?;
            if length.is_some_and(|other| other != value) {
                return Err(MalformedResponse("differing Content-Length fields"));
            }
            length = Some(value);
        }
        Ok(length)
    }

    /// The decoder of the body of this answer to a request of `method` (RFC 9112, 6.3).
    pub fn decoder(&self, method: &Method) -> Result<Decoder, MalformedResponse> {
        let bodiless = *method == Method::HEAD
            || self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless {
            return Ok(Decoder::none());
        }
        let mut codings = self.fields.all("transfer-encoding").flat_map(tokens);
        match (codings.next(), codings.next()) {
            (None, _) => {}
            // Both are how answers are smuggled; which one holds would be a guess (RFC 9112, 6.3).
            (Some(_), _) if self.fields.contains("content-length") => {
                return Err(MalformedResponse("both Transfer-Encoding and Content-Length"));
            }
            (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => {
                return if self.http11 {
                    Ok(Decoder::chunked())
                } else {
                    Err(MalformedResponse("Transfer-Encoding from an HTTP/1.0 origin"))
                };
            }
            _ => return Err(MalformedResponse("transfer coding other than chunked")),
        }
        Ok(match self.content_length()? {
            Some(length) => Decoder::length(length),
            None => Decoder::until_close(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Decoded;

    fn take(text: &str) -> ResponseHead {
        ResponseHead::take(&mut BytesMut::from(text)).expect(text).expect(text)
    }

    #[test]
    fn framing_follows_status_method_and_fields() {
        let get = Method::GET;
        let cases = [
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", &get, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &Method::HEAD, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &get, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &get, false),
            ("HTTP/1.1 200 OK\r\n\r\n", &get, false),
        ];
        for (text, method, empty) in cases {
            let mut decoder = take(text).decoder(method).unwrap();
            let ended = matches!(decoder.decode(&mut BytesMut::new()), Ok(Decoded::End(_)));
            assert_eq!(ended, empty, "{text}");
        }
    }

    #[test]
    fn unsound_framing_is_malformed() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        ] {
            assert!(take(text).decoder(&Method::GET).is_err(), "{text}");
        }
        assert!(ResponseHead::take(&mut BytesMut::from("SSH-2.0-x\r\n")).is_err());
    }
}
