//! The client behind a proxy: `Forwarded` (RFC 7239) and `X-Forwarded-For`, trusted from the proxies that the
//! configuration names and from nobody else.
//!
//! Each proxy appends the address that it saw, so the lists are read from right to left, as long as the
//! address just read is a trusted proxy too. What a client has written itself is further to the left and is
//! never reached. A list that cannot be parsed with certainty is ignored: the client is then the peer, whose
//! limits it shares. The same holds when the two headers name different clients, since a proxy that sets one
//! of them may pass on the other as a client sent it.

use http::{HeaderMap, HeaderName, header};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use tars_runtime::network::Networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A list that cannot be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Broken;

/// Returns the client of a request that `peer` sent with these headers.
pub fn client(peer: IpAddr, headers: &HeaderMap, proxies: &Networks) -> IpAddr {
    let peer = peer.to_canonical();
    if !proxies.contains(peer) {
        return peer;
    }
    let standard = walk(headers, &header::FORWARDED, proxies, forwarded_line);
    let common = walk(headers, &X_FORWARDED_FOR, proxies, x_forwarded_for_line);
    match (standard, common) {
        (Ok(Some(a)), Ok(Some(b))) if a == b => a,
        (Ok(Some(a)), Ok(None)) | (Ok(None), Ok(Some(a))) => a,
        _ => peer,
    }
}

/// Parses one line of a header into its addresses, from left to right. An invalid one does not hide those to
/// its right.
type Line = fn(&str) -> Vec<Result<IpAddr, Broken>>;

/// Returns the first address from the right that is not a proxy, or the leftmost when all are. Several lines of
/// a header form one list.
fn walk(
    headers: &HeaderMap,
    name: &HeaderName,
    proxies: &Networks,
    read: Line,
) -> Result<Option<IpAddr>, Broken> {
    let mut last = None;
    for line in headers.get_all(name).iter().rev() {
        // Bytes that are not UTF-8 belong to an element that is not an address.
        let line = String::from_utf8_lossy(line.as_bytes());
        for address in read(&line).into_iter().rev() {
            let address = address?;
            if !proxies.contains(address) {
                return Ok(Some(address));
            }
            last = Some(address);
        }
    }
    Ok(last)
}

fn x_forwarded_for_line(line: &str) -> Vec<Result<IpAddr, Broken>> {
    line.split(',').map(|element| node(trim(element))).collect()
}

/// RFC 7239, section 4: elements of pairs, whose values are tokens or quoted strings. An unterminated quote
/// invalidates the whole line, wherever it begins.
fn forwarded_line(line: &str) -> Vec<Result<IpAddr, Broken>> {
    match split(line, b',') {
        Ok(elements) => elements.into_iter().map(forwarded_element).collect(),
        Err(Broken) => vec![Err(Broken)],
    }
}

fn forwarded_element(element: &str) -> Result<IpAddr, Broken> {
    let mut found = None;
    for pair in split(element, b';')? {
        let (name, value) = trim(pair).split_once('=').ok_or(Broken)?;
        if !is_token(name) {
            return Err(Broken);
        }
        let value = unquote(value)?;
        if name.eq_ignore_ascii_case("for") && found.replace(node(&value)?).is_some() {
            return Err(Broken);
        }
    }
    found.ok_or(Broken)
}

/// Splits outside of quoted strings.
fn split(text: &str, at: u8) -> Result<Vec<&str>, Broken> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == at && !quoted => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if quoted { Err(Broken) } else { Ok(parts) }
}

fn unquote(value: &str) -> Result<String, Broken> {
    let Some(rest) = value.strip_prefix('"') else {
        return if is_token(value) {
            Ok(value.to_owned())
        } else {
            Err(Broken)
        };
    };
    let inner = rest.strip_suffix('"').ok_or(Broken)?;
    let (mut out, mut chars) = (String::new(), inner.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().ok_or(Broken)?),
            '"' => return Err(Broken),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn is_token(text: &str) -> bool {
    let tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(tchar)
}

/// Optional white space consists of spaces and tabs only.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Parses an address with an optional port; IPv6 with a port is in brackets. `unknown` and obfuscated names do
/// not identify a client.
fn node(text: &str) -> Result<IpAddr, Broken> {
    let in_brackets = |t: &str| -> Option<IpAddr> {
        let inner = t.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    };
    let with_port = |t: &str| match t.parse::<SocketAddr>() {
        // A zone is meaningful only on the proxy's own host.
        Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0 => None,
        other => other.ok().map(|addr| addr.ip()),
    };
    let alone = text.parse::<IpAddr>().ok();
    let address = alone
        .or_else(|| in_brackets(text))
        .or_else(|| with_port(text));
    address.map(|a| a.to_canonical()).ok_or(Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const PROXY: &str = "10.0.0.1";

    fn proxies() -> Networks {
        Networks::parse(&["10.0.0.0/8".to_owned(), "2001:db8:ffff::/48".to_owned()]).unwrap()
    }

    /// Header lines as `name: value`.
    fn seen(peer: &str, lines: &[(&str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name, value);
        }
        client(peer.parse().unwrap(), &headers, &proxies()).to_string()
    }

    fn xff(value: &str) -> String {
        seen(PROXY, &[("x-forwarded-for", value)])
    }

    fn forwarded(value: &str) -> String {
        seen(PROXY, &[("forwarded", value)])
    }

    #[test]
    fn an_untrusted_peer_is_the_client_itself() {
        for name in ["forwarded", "x-forwarded-for"] {
            let claim = ("for=192.0.2.1", "192.0.2.1");
            let value = if name == "forwarded" {
                claim.0
            } else {
                claim.1
            };
            assert_eq!(seen("198.51.100.7", &[(name, value)]), "198.51.100.7");
            assert_eq!(seen("2001:db8::7", &[(name, value)]), "2001:db8::7");
            assert_eq!(seen(PROXY, &[(name, value)]), "192.0.2.1");
            assert_eq!(seen("::ffff:10.0.0.1", &[(name, value)]), "192.0.2.1");
        }
        assert_eq!(seen(PROXY, &[]), PROXY);
    }

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        assert_eq!(xff("192.0.2.1"), "192.0.2.1");
        assert_eq!(xff("6.6.6.6, 192.0.2.1"), "192.0.2.1");
        assert_eq!(xff("6.6.6.6,192.0.2.1 ,\t10.9.9.9, 10.1.1.1"), "192.0.2.1");
        assert_eq!(xff("10.3.3.3, 10.2.2.2"), "10.3.3.3", "all are proxies");
        assert_eq!(xff("garbage \\\", \u{e9}, 192.0.2.1"), "192.0.2.1");
        assert_eq!(forwarded("for=6.6.6.6, for=192.0.2.1"), "192.0.2.1");
        assert_eq!(
            forwarded("for=6.6.6.6;by=x, For=\"192.0.2.1:80\";proto=https,for=10.0.0.9"),
            "192.0.2.1"
        );
        let lines = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "10.0.0.9, 10.0.0.8"),
        ];
        assert_eq!(seen(PROXY, &lines), "192.0.2.1", "lines are one list");
    }

    #[test]
    fn addresses_are_parsed_in_every_notation() {
        for (text, address) in [
            ("192.0.2.1:8080", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(xff(text), address, "{text}");
            assert_eq!(forwarded(&format!("for=\"{text}\"")), address, "{text}");
        }
        assert_eq!(forwarded("for=\"192.0.2\\.1\""), "192.0.2.1");
        assert_eq!(xff("192.0.2.1, [2001:db8:ffff::1]:9"), "192.0.2.1");
    }

    #[test]
    fn a_list_that_cannot_be_parsed_is_ignored() {
        for value in [
            "",
            ",",
            "unknown",
            "192.0.2.1,",
            "192.0.2.1,,10.0.0.9",
            "192.0.2.1 10.0.0.9",
            "192.0.2.256",
            "192.0.2.1:99999",
            "[192.0.2.1]",
            "[2001:db8::1",
            "2001:db8::1]",
            "fe80::1%eth0",
            "[fe80::1%2]:80",
            "0x7f.1",
            "\"192.0.2.1\"",
            "for=192.0.2.1",
            "192.0.2.1\u{a0}",
            "192.0.2.01",
        ] {
            assert_eq!(xff(value), PROXY, "{value:?}");
        }
        for value in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "proto=https",
            "192.0.2.1",
            "for=192.0.2.1:80",
            "for=2001:db8::1",
            "for=[2001:db8::1]",
            "for=\"192.0.2.1",
            "for=\"192.0.2.1\"x",
            "for=x\"192.0.2.1\"",
            "for=192.0.2.1;for=192.0.2.1",
            "for=192.0.2.1;",
            "for=192.0.2.1,",
            "for =192.0.2.1",
            "for= 192.0.2.1",
            "for=\"192.0.2.1\\",
            "for=\"x, for=192.0.2.1",
            "f or=1;for=192.0.2.1",
        ] {
            assert_eq!(forwarded(value), PROXY, "{value:?}");
        }
        // An invalid element matters only where it is reached.
        let left = [("forwarded", "for=\""), ("forwarded", "for=192.0.2.1")];
        assert_eq!(seen(PROXY, &left), "192.0.2.1");
        let right = [("forwarded", "for=192.0.2.1"), ("forwarded", "for=\"")];
        assert_eq!(seen(PROXY, &right), PROXY);
    }

    #[test]
    fn two_headers_must_agree() {
        let both = |forwarded, xff| {
            let lines = [("forwarded", forwarded), ("x-forwarded-for", xff)];
            seen(PROXY, &lines)
        };
        assert_eq!(both("for=192.0.2.1", "192.0.2.1"), "192.0.2.1");
        assert_eq!(both("for=6.6.6.6", "192.0.2.1"), PROXY);
        assert_eq!(both("for=192.0.2.1", "6.6.6.6"), PROXY);
        assert_eq!(both("for=unknown", "192.0.2.1"), PROXY);
        assert_eq!(both("for=192.0.2.1", ""), PROXY);
    }
}
