//! What a value of an option may be, and how it is read.

use std::error::Error;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::{FwCfgName, LinkName, Tag, parse_size};
use crate::oci::{Reference, ReferenceError};

/// What the network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum NetworkWord {
    None,
    User,
    Libvirt(LinkName),
    Bridge(LinkName),
}

/// A directory that the guest may mount, and what it calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct BindWord {
    pub directory: PathBuf,
    pub tag: Option<Tag>,
}

/// A credential for the guest's systemd.
#[derive(Clone)]
pub(in crate::cli) struct Credential {
    pub name: FwCfgName,
    pub value: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:****", self.name)
    }
}

/// A credential for the guest's systemd that is in a file.
#[derive(Debug, Clone)]
pub(in crate::cli) struct CredentialFile {
    pub name: FwCfgName,
    pub path: PathBuf,
}

/// Parses a number of CPUs; 255 is what `q35` and `virt` take without more ado.
pub(in crate::cli) fn cpus(text: &str) -> Result<NonZeroU32, String> {
    let number: Option<NonZeroU32> = text.parse().ok();
    number
        .filter(|number| number.get() <= 255)
        .ok_or_else(|| "not a number from 1 to 255".to_owned())
}

/// Parses a reference; clap shows an error without what caused it, so it is told here.
pub(in crate::cli) fn reference(text: &str) -> Result<Reference, String> {
    text.parse()
        .map_err(|error: ReferenceError| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
}

pub(in crate::cli) fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.strip_suffix('s').unwrap_or(text);
    let seconds = digits
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    Ok(Duration::from_secs(seconds))
}

/// Parses an age: a number of seconds, minutes, hours, days or weeks.
pub(in crate::cli) fn age(text: &str) -> Result<Duration, String> {
    let error = || "not a number with s, m, h, d or w, as in 30d".to_owned();
    let unit = text.chars().next_back().ok_or_else(error)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(error()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| error())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(error)
}

/// Parses a time that something may take: `90s`, `1.5m`, `2h`, or a number of seconds.
pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    let error = || "not a time above zero, as in 90s, 5m or 1h".to_owned();
    let (digits, seconds) = match text.chars().next_back().ok_or_else(error)? {
        's' => (&text[..text.len() - 1], 1.0),
        'm' => (&text[..text.len() - 1], 60.0),
        'h' => (&text[..text.len() - 1], 3600.0),
        _ => (text, 1.0),
    };
    if !digits.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(error());
    }
    let number: f64 = digits.parse().map_err(|_| error())?;
    // A year, so that no sum of times has more than there is.
    Some(number * seconds)
        .filter(|seconds| *seconds > 0.0 && *seconds <= 31_536_000.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(error)
}

/// Parses a number of percents, with or without the sign.
pub(in crate::cli) fn percent(text: &str) -> Result<u32, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    let number = digits.parse().ok().filter(|number| *number <= 10_000);
    number.ok_or_else(|| "not a number of percents, as in 20%".to_owned())
}

/// Parses what is typed on a guest's keyboard, Enter behind it.
pub(in crate::cli) fn typed(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match rest.next() {
            Some('n' | 'r') => b'\r',
            Some('t') => b'\t',
            Some('e') => 0x1b,
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16)
                    .ok()
                    .filter(|_| digits.len() == 2 && !digits.starts_with('+'))
                    .ok_or_else(|| format!("not two hexadecimal digits: \\x{digits}"))?
            }
            Some('c') if rest.as_str().is_empty() => return Ok(bytes),
            other => {
                let other = other.map_or(String::new(), String::from);
                return Err(format!("no key is written `\\{other}`"));
            }
        });
    }
    // As the key does: a terminal makes a line's end of it.
    bytes.push(b'\r');
    Ok(bytes)
}

/// Parses a size: `20G`, or a number of bytes.
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 1).map_err(|error| error.to_string())
}

pub(in crate::cli) fn credential(text: &str) -> Result<Credential, String> {
    let (id, value) = text
        .split_once(':')
        .ok_or_else(|| "not ID:VALUE".to_owned())?;
    Ok(Credential {
        name: credential_name(id)?,
        value: value.to_owned(),
    })
}

pub(in crate::cli) fn credential_file(text: &str) -> Result<CredentialFile, String> {
    let (id, path) = text
        .split_once(':')
        .filter(|(_, path)| !path.is_empty())
        .ok_or_else(|| "not ID:FILE".to_owned())?;
    Ok(CredentialFile {
        name: credential_name(id)?,
        path: path.into(),
    })
}

/// systemd reads credentials from `fw_cfg` under `opt/io.systemd.credentials/` (systemd(1)).
pub(in crate::cli) fn credential_name(id: &str) -> Result<FwCfgName, String> {
    if id.is_empty() || id.contains('/') {
        return Err("an ID has letters, and no slash".to_owned());
    }
    format!("opt/io.systemd.credentials/{id}")
        .parse()
        .map_err(|_| "an ID has at most 28 letters, digits, `.`, `_` and `-`".to_owned())
}

/// Parses a host name: letters, digits, hyphens and dots, at most 64 of them (hostname(7)).
pub(in crate::cli) fn hostname(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if text.len() <= 64 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("not at most 64 letters, digits, hyphens and dots".to_owned())
}

/// Parses `HOST` or `HOST:TAG`; a colon that has a slash after it is the path's.
pub(in crate::cli) fn bind(text: &str) -> Result<BindWord, String> {
    let (directory, tag) = match text.rsplit_once(':') {
        Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag)),
        _ => (text, None),
    };
    if directory.is_empty() {
        return Err("not HOST or HOST:TAG".to_owned());
    }
    let tag = tag.map(|tag| tag.parse::<Tag>().map_err(|error| error.to_string()));
    Ok(BindWord {
        directory: directory.into(),
        tag: tag.transpose()?,
    })
}

pub(in crate::cli) fn network(text: &str) -> Result<NetworkWord, String> {
    let name = |name: &str| name.parse::<LinkName>().map_err(|error| error.to_string());
    match text.split_once('=') {
        None if text == "none" => Ok(NetworkWord::None),
        None if text == "user" => Ok(NetworkWord::User),
        Some(("network", network)) => Ok(NetworkWord::Libvirt(name(network)?)),
        Some(("bridge", bridge)) => Ok(NetworkWord::Bridge(name(bridge)?)),
        _ => Err("not none, user, network=NAME or bridge=NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_stays_out_of_what_is_printed() {
        let credential = credential("passwd.hashed-password.root:secret").unwrap();
        assert!(!format!("{credential:?}").contains("secret"));
        assert!(super::credential("a/b:c").is_err());
        assert!(super::credential("no-colon").is_err());
        assert!(super::credential(":value").is_err());
    }

    #[test]
    fn ages_are_read() {
        for (text, seconds) in [
            ("0s", 0),
            ("90m", 5400),
            ("12h", 43_200),
            ("30d", 2_592_000),
        ] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "d",
            "30",
            "-1d",
            "1.5h",
            "30D",
            "1é",
            "99999999999999999999w",
        ] {
            assert!(age(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_and_percents_are_read() {
        for (text, seconds) in [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0)] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
        for text in [
            "", "s", "0", "-1s", "1d", "inf", "1e9", "nan", "1:30", "9999999h", "é",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!((percent("20%"), percent("0")), (Ok(20), Ok(0)));
        for text in ["", "%", "-5", "1.5", "99999"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_typed_ends_with_enter_unless_it_says_otherwise() {
        for (text, bytes) in [
            ("root", &b"root\r"[..]),
            ("", b"\r"),
            ("é\\n\\x03", b"\xc3\xa9\r\x03\r"),
            ("\\e[B\\c", b"\x1b[B"),
            ("a\\\\n", b"a\\n\r"),
        ] {
            assert_eq!(typed(text).as_deref(), Ok(bytes), "{text}");
        }
        for text in ["\\", "\\q", "\\x1", "\\x+1", "a\\cb"] {
            assert!(typed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directories_are_read_with_what_the_guest_calls_them() {
        let word = |directory: &str, tag: Option<&str>| BindWord {
            directory: directory.into(),
            tag: tag.map(|tag| tag.parse().unwrap()),
        };
        for (text, expected) in [
            (".", word(".", None)),
            ("/srv/a:src", word("/srv/a", Some("src"))),
            ("/srv/a:b/c", word("/srv/a:b/c", None)),
            ("/srv/a:b:c", word("/srv/a:b", Some("c"))),
        ] {
            assert_eq!(bind(text), Ok(expected));
        }
        for text in ["", ":tag", "/srv/a:", "/srv/a:b c", "/srv/a:b,c"] {
            assert!(bind(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_and_host_names_are_read() {
        let link = |name: &str| name.parse().unwrap();
        for (text, expected) in [
            ("none", NetworkWord::None),
            ("user", NetworkWord::User),
            ("network=default", NetworkWord::Libvirt(link("default"))),
            ("bridge=br0", NetworkWord::Bridge(link("br0"))),
        ] {
            assert_eq!(network(text), Ok(expected));
        }
        for text in ["", "nat", "bridge", "bridge=", "bridge=br0,helper=/bin/sh"] {
            assert!(network(text).is_err(), "{text}");
        }
        for name in ["web", "web-1.example"] {
            assert_eq!(hostname(name).as_deref(), Ok(name));
        }
        for name in ["", "-web", "web-", "a b", "a..b", "a\nb", &"a".repeat(65)] {
            assert!(hostname(name).is_err(), "{name:?}");
        }
    }
}
