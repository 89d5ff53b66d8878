//! The environment and the default paths: the only place that reads them.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::args::Global;
use crate::ops::trust::PolicyPlace;
use crate::source::{
    Credentials, MirrorFailure, Mirrors, Proxies, ProxySetting, SourceError, SourceOptions,
    TlsPolicy,
};

/// The store's directory, absolute.
pub(super) fn store(named: Option<&Path>) -> io::Result<PathBuf> {
    match named {
        Some(directory) => std::path::absolute(directory),
        None if is_root() => Ok(PathBuf::from("/var/lib/ironboot")),
        None => Ok(home_directory("XDG_DATA_HOME", ".local/share")?.join("ironboot")),
    }
}

/// How sources are reached; `hear` hears of mirrors that fail.
pub(super) fn sources(
    global: &Global,
    hear: impl Fn(&MirrorFailure) + Send + Sync + 'static,
) -> Result<SourceOptions, SourceError> {
    Ok(SourceOptions {
        tls: if global.tls_verify {
            TlsPolicy::Verify
        } else {
            TlsPolicy::Insecure
        },
        credentials: Credentials::load(&credential_files(global))?,
        hosts_directories: match &global.hosts_dir {
            Some(directory) => vec![directory.clone()],
            None => hosts_directories(),
        },
        certificates: global.cert_dir.clone(),
        proxies: proxies()?,
        mirrors: Mirrors::heard_by(hear),
    })
}

/// Where it is said which images are let in.
pub(super) fn policy(global: &Global) -> PolicyPlace {
    match &global.policy {
        Some(file) => PolicyPlace::Named(file.clone()),
        None => PolicyPlace::FirstOf(
            ["/etc/ironboot/policy.json", "/etc/containers/policy.json"]
                .map(PathBuf::from)
                .to_vec(),
        ),
    }
}

/// The proxies of the usual variables, in lower case or in capitals.
fn proxies() -> Result<Proxies, SourceError> {
    let first = |variables: [&'static str; 4]| {
        let mut set = variables.into_iter().filter_map(|variable| {
            let address = env::var(variable).ok()?;
            (!address.is_empty()).then_some(ProxySetting { variable, address })
        });
        set.next()
    };
    let http = first(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]);
    let https = first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]);
    let not_for = env::var("no_proxy").or_else(|_| env::var("NO_PROXY"));
    Proxies::new(http, https, &not_for.unwrap_or_default())
}

/// Where containerd's and docker's files about registries are, the strongest directory first.
fn hosts_directories() -> Vec<PathBuf> {
    let own = home_directory("XDG_CONFIG_HOME", ".config").ok();
    own.into_iter()
        .map(|directory| directory.join("ironboot/certs.d"))
        .chain(["/etc/ironboot/certs.d", "/etc/containerd/certs.d"].map(PathBuf::from))
        .collect()
}

/// Files with credentials, the strongest first: podman's, then docker's.
fn credential_files(global: &Global) -> Vec<PathBuf> {
    if let Some(file) = &global.authfile {
        return vec![file.clone()];
    }
    let directory = |name: &str| env::var_os(name).map(PathBuf::from);
    [
        directory("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        home_directory("XDG_CONFIG_HOME", ".config")
            .ok()
            .map(|dir| dir.join("containers/auth.json")),
        directory("DOCKER_CONFIG")
            .or_else(|| home().ok().map(|home| home.join(".docker")))
            .map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where firmware descriptors are, the strongest directory first (QEMU's docs/interop/firmware.json).
pub(super) fn firmware_directories() -> Vec<PathBuf> {
    let own = home_directory("XDG_CONFIG_HOME", ".config").ok();
    own.into_iter()
        .map(|directory| directory.join("qemu/firmware"))
        .chain(["/etc/qemu/firmware", "/usr/share/qemu/firmware"].map(PathBuf::from))
        .collect()
}

/// The libvirt that is meant where none is named.
pub(super) fn libvirt_uri(connect: Option<&str>) -> String {
    match connect {
        // A variable without a value is none; an option without one is a mistake.
        Some(uri) if !uri.is_empty() || !is_empty("LIBVIRT_DEFAULT_URI") => uri.to_owned(),
        _ if is_root() => "qemu:///system".to_owned(),
        _ => "qemu:///session".to_owned(),
    }
}

/// The libvirt that is meant by whoever can name none.
pub(super) fn default_libvirt() -> String {
    libvirt_uri(env::var("LIBVIRT_DEFAULT_URI").ok().as_deref())
}

/// The caller's own libvirt, if there can be domains there. A user's daemon is started by whoever
/// asks, so one who has never had a domain is not asked for.
pub(super) fn own_libvirt() -> Option<String> {
    let uri = default_libvirt();
    let own = home_directory("XDG_CONFIG_HOME", ".config").ok();
    let has_had_one = || own.is_some_and(|directory| directory.join("libvirt/qemu").is_dir());
    (uri == "qemu:///system" || has_had_one()).then_some(uri)
}

/// The directory that relative paths start from; none if it is gone.
pub(super) fn current_directory() -> Option<PathBuf> {
    env::current_dir().ok()
}

/// The time, in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What kind of terminal ours is, if it says so in a word of terminfo's.
pub(super) fn terminal_kind() -> Option<String> {
    let is_word = |kind: &String| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
        (1..=64).contains(&kind.len()) && kind.chars().all(is_letter)
    };
    env::var("TERM").ok().filter(is_word)
}

/// Where programs are looked for.
pub(super) fn program_directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect()
}

/// Columns that text on standard output may have; none if that is no terminal.
pub(super) fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    // One that does not say is as wide as they have always been.
    Some(match size.ws_col {
        0 => 80,
        columns => usize::from(columns).clamp(40, 100),
    })
}

/// Whether text may be coloured: only on a terminal, and not against the user's wish.
pub(super) fn may_colour(is_terminal: bool) -> bool {
    is_terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn is_empty(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| value.is_empty())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn home() -> io::Result<PathBuf> {
    env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "HOME is not set"))
}

/// The directory that `variable` names, or `default` under the home directory.
fn home_directory(variable: &str, default: &str) -> io::Result<PathBuf> {
    match env::var_os(variable).map(PathBuf::from) {
        Some(directory) if directory.is_absolute() => Ok(directory),
        _ => Ok(home()?.join(default)),
    }
}

/// A relative layout directory made absolute, because the store remembers it.
pub(super) fn absolute(directory: &Path) -> io::Result<PathBuf> {
    std::path::absolute(directory)
}

/// GitHub Actions, if it runs us: the file that takes a job's summary, if it has one.
pub(super) struct GitHub {
    pub summary: Option<PathBuf>,
}

/// Whether GitHub Actions runs us.
///
/// Source: GitHub's "Default environment variables".
pub(super) fn github() -> Option<GitHub> {
    let is_there = env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
    is_there.then(|| GitHub {
        summary: env::var_os("GITHUB_STEP_SUMMARY")
            .filter(|file| !file.is_empty())
            .map(PathBuf::from),
    })
}
