//! Which protocol a stream speaks.
//!
//! Declared protocols are believed. Where nothing is declared the first bytes decide; a client that
//! says nothing for [`SNIFF_DEADLINE`] is taken for one that waits for the server (MySQL, SMTP) and
//! relayed as TCP. Declare the port's protocol to avoid that wait.
//!
//! The guess is no line of defence: a policy that asks for HTTP denies what is taken for TCP. What
//! common servers read as a request is still taken for one (an empty line first, several spaces), so
//! that it meets the routes, or the strict parser's 400.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_core::model::AppProtocol;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::io::BoxIo;

/// How long an undeclared protocol may stay silent.
pub const SNIFF_DEADLINE: Duration = Duration::from_millis(100);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of an empty line, a method or spaces beyond which nothing is taken for HTTP.
const LONGEST: usize = 24;

/// What a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Tcp,
}

#[derive(Debug, PartialEq, Eq)]
enum Guess {
    Is(Protocol),
    More,
}

/// Finds the protocol of a stream; returns the bytes that were read for it.
///
/// # Errors
/// The stream failed before its first byte.
pub async fn sniff(io: &mut BoxIo, declared: AppProtocol) -> std::io::Result<(Protocol, Bytes)> {
    let http = match declared {
        AppProtocol::Tcp | AppProtocol::Tls => return Ok((Protocol::Tcp, Bytes::new())),
        AppProtocol::Unknown => false,
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => true,
    };
    let mut buffer = BytesMut::with_capacity(4096);
    loop {
        match guess(&buffer) {
            Guess::Is(Protocol::Tcp) if http => return Ok((Protocol::Http1, buffer.freeze())),
            Guess::Is(protocol) => return Ok((protocol, buffer.freeze())),
            Guess::More => {}
        }
        let read = io.read_buf(&mut buffer);
        let count = match http {
            true => read.await?,
            false => match timeout(SNIFF_DEADLINE, read).await {
                Ok(result) => result?,
                Err(_) => return Ok((Protocol::Tcp, buffer.freeze())),
            },
        };
        if count == 0 {
            let protocol = if http { Protocol::Http1 } else { Protocol::Tcp };
            return Ok((protocol, buffer.freeze()));
        }
    }
}

fn guess(seen: &[u8]) -> Guess {
    if seen.len() >= PREFACE.len() && seen.starts_with(PREFACE) {
        return Guess::Is(Protocol::Http2);
    }
    if PREFACE.starts_with(seen) {
        return Guess::More;
    }
    let (empty, line) = split(seen, |b| b == b'\r' || b == b'\n');
    let (method, rest) = split(line, |b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
    let (spaces, target) = split(rest, |b| b == b' ' || b == b'\t');
    if [empty, method, spaces].iter().any(|part| part.len() > LONGEST) {
        return Guess::Is(Protocol::Tcp);
    }
    match target.first() {
        None if rest.is_empty() || method.len() >= 3 => Guess::More,
        Some(b'/' | b'*' | b'h' | b'H') if method.len() >= 3 && !spaces.is_empty() => {
            Guess::Is(Protocol::Http1)
        }
        _ => Guess::Is(Protocol::Tcp),
    }
}

/// The bytes at the start that are of a kind, and the rest.
fn split(text: &[u8], kind: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|b| kind(**b)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_http1_http2_and_tcp_apart() {
        assert_eq!(guess(b""), Guess::More);
        assert_eq!(guess(b"GE"), Guess::More);
        assert_eq!(guess(b"GET /"), Guess::Is(Protocol::Http1));
        assert_eq!(guess(b"OPTIONS * HTTP/1.1"), Guess::Is(Protocol::Http1));
        assert_eq!(guess(b"PRI * HTTP/2.0\r\n"), Guess::More);
        assert_eq!(guess(PREFACE), Guess::Is(Protocol::Http2));
        assert_eq!(guess(b"\x16\x03\x01"), Guess::Is(Protocol::Tcp));
        assert_eq!(guess(b"EHLO mail"), Guess::Is(Protocol::Tcp));
        assert_eq!(guess(b"hello"), Guess::Is(Protocol::Tcp));
        assert_eq!(guess(b"A /"), Guess::Is(Protocol::Tcp));
        assert_eq!(guess(b"*1\r\n$4\r\nPING"), Guess::Is(Protocol::Tcp));
    }

    #[test]
    fn what_lenient_servers_read_as_a_request_is_taken_for_one() {
        for start in ["\r\n", "\n\r\n", "\r\nGET", "GET ", "GET  "] {
            assert_eq!(guess(start.as_bytes()), Guess::More, "{start:?}");
        }
        for request in ["\r\nGET /admin", "GET  /admin", "GET\t/", "\n\nM_SEARCH * HTTP/1.1"] {
            assert_eq!(guess(request.as_bytes()), Guess::Is(Protocol::Http1), "{request:?}");
        }
        for endless in ["\r\n".repeat(13), "A".repeat(25), format!("GET{}", " ".repeat(25))] {
            assert_eq!(guess(endless.as_bytes()), Guess::Is(Protocol::Tcp), "{endless:?}");
        }
    }
}
