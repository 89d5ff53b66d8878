//! The parts of a reference, letter by letter.
//!
//! `oci-client` has the same grammar as one regular expression, which takes longer to compile than
//! everything else takes that a program does to find that it has an image already, and 8 MiB.
//!
//! Format: OCI distribution-spec v1.1, "Pulling manifests"; for the host, RFC 3986 without what no
//! registry has.

/// Longest tag.
const MAX_TAG_CHARACTERS: usize = 128;

/// Tells whether `text` is a host name, an IPv4 address or a bracketed IPv6 address, with or
/// without a port.
pub(super) fn is_host(text: &str) -> bool {
    let (is_host, rest) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => (address.parse::<core::net::Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_name(name), rest)
        }
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_host && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

fn is_name(text: &str) -> bool {
    text.split('.').all(|label| {
        label.starts_with(|first: char| first.is_ascii_alphanumeric())
            && label.ends_with(|last: char| last.is_ascii_alphanumeric())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Tells whether `text` is a repository: components of lower-case letters and digits, with single
/// separators between them.
pub(super) fn is_repository(text: &str) -> bool {
    text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let word = rest.iter().take_while(|byte| is_word(**byte)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|byte| !is_word(**byte)).count();
        match &rest[..separator] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        rest = &rest[separator..];
    }
}

/// Tells whether `text` is a tag.
pub(super) fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG_CHARACTERS
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for text in [
            "reg.io",
            "localhost",
            "127.0.0.1:5000",
            "reg-1.Example.io:443",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_host(text), "{text}");
        }
        for text in [
            "",
            ".",
            "-a.io",
            "a-.io",
            "a..io",
            "reg.io:",
            "reg.io:x",
            "reg.io:70000",
            "reg.io:+1",
            "user@reg.io",
            "[::1",
            "[::1:5000",
            "[no host at all:1",
            "::1",
            "[reg.io]",
            "[::1]5000",
            "[::1]:",
            "r\u{435}g.io",
            "reg.io:1:2",
            "a_b.io",
        ] {
            assert!(!is_host(text), "{text}");
        }
    }

    #[test]
    fn repositories_and_tags() {
        for text in ["a", "a/b", "a.b", "a_b", "a__b", "a-b", "a---b", "0/9x"] {
            assert!(is_repository(text), "{text}");
        }
        for text in [
            "", "/", "a/", "/a", "a//b", "A", "a.", ".a", "a..b", "a___b", "a._b", "a-_b", "..",
            "a/../b", "\u{430}", "a b", "a%2f",
        ] {
            assert!(!is_repository(text), "{text}");
        }
        for text in ["1", "_", "v1.2-x_y", &"t".repeat(128)] {
            assert!(is_tag(text), "{text}");
        }
        for text in [
            "",
            ".1",
            "-1",
            "a/b",
            "a:b",
            "\u{430}",
            "a b",
            &"t".repeat(129),
        ] {
            assert!(!is_tag(text), "{text}");
        }
    }

    /// Both grammars say the same of everything short.
    #[test]
    fn the_expression_of_others_says_the_same() {
        let mut texts = vec![String::new()];
        for length in 0..4 {
            let longest: Vec<String> = texts
                .iter()
                .filter(|text| text.len() == length)
                .cloned()
                .collect();
            for text in longest {
                texts.extend(["a", "B", "7", ".", "_", "-", "/", ":"].map(|c| text.clone() + c));
            }
        }
        for text in texts {
            let whole = format!("reg.io/{text}");
            let theirs = whole.parse::<oci_client::Reference>();
            let (repository, tag) = text.split_once(':').unwrap_or((&text, "x"));
            let ours = is_repository(repository) && is_tag(tag);
            assert_eq!(ours, theirs.is_ok(), "{text}: {theirs:?}");
        }
    }
}
