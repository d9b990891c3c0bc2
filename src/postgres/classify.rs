//! One attempt to open a session, and what its failure means.

use std::{
    error::Error as _,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Server,
    connect::{ConnectError, Connected, connect, resolve},
};
use crate::probe::Verdict;

/// A session that did not come about: what that says of the server, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed {
    /// What it says of the server.
    pub verdict: Verdict,
    /// The error, for people.
    pub error: String,
    /// Whether a byte came back: somebody lives there then, whatever the verdict.
    pub answered: bool,
    /// Whether this machine has no way of its own to such an address, as without IPv6: that says nothing of those that it has.
    pub no_family: bool,
}

/// Opens a session within `limit`, or says what was met instead. The lookup of the name takes of the limit what it needs; the addresses share
/// the rest, so that a silent one hides none that lives. The first that answers decides.
pub async fn attempt(server: &Server, limit: Duration) -> Result<Connected, Failed> {
    let begun = Instant::now();
    let left = || limit.saturating_sub(begun.elapsed());
    let unanswered = |verdict, error: String| Failed { verdict, error, answered: false, no_family: false };
    let connector = server.tls.connector();
    let connector = connector.map_err(|error| unanswered(Verdict::Misconfigured, format!("{error:#}")))?;
    let addresses = match timeout(limit, resolve(server)).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(unanswered(of_resolver(&error), format!("look up {}: {error}", server.host))),
        // Nobody asked the server: this says nothing of it.
        Err(_) => {
            let error = format!("look up {}: the name was not resolved within {limit:?}", server.host);
            return Err(unanswered(Verdict::Unknown, error));
        }
    };
    let silence = of_silence(&server.host, limit, left(), addresses.len());
    let mut failures = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let share = left() / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match ask(server, *address, connector.clone(), share, left).await {
            Some(Err(failed)) if !failed.answered => failures.push(failed),
            Some(decided) => return decided,
            None => failures.push(unanswered(silence.0, silence.1.clone())),
        }
    }
    Err(together(&addresses, failures))
}

/// Asks one address; none if it stays silent for its share of the time. One that answered has all that is left.
async fn ask(
    server: &Server,
    address: SocketAddr,
    connector: MakeRustlsConnect,
    share: Duration,
    left: impl Fn() -> Duration,
) -> Option<Result<Connected, Failed>> {
    let answered = Arc::new(AtomicBool::new(false));
    let has_answered = || answered.load(Ordering::Relaxed);
    let mut connecting = pin!(connect(server, address, connector, Arc::clone(&answered)));
    let mut met = timeout(share, &mut connecting).await;
    if met.is_err() && has_answered() {
        met = timeout(left(), connecting).await;
    }
    let failed = |verdict, error| Some(Err(Failed { verdict, error, answered: has_answered(), no_family: false }));
    match met {
        Ok(Ok(connected)) => Some(Ok(connected)),
        Ok(Err(ConnectError::Options(error))) => failed(Verdict::Misconfigured, format!("{error:#}")),
        Ok(Err(ConnectError::Tcp(error))) => {
            let (verdict, no_family) = (of_tcp(&error), is_no_family(&error));
            Some(Err(Failed { verdict, error: error.to_string(), answered: has_answered(), no_family }))
        }
        Ok(Err(ConnectError::Handshake { error })) => failed(of_handshake(&error, has_answered()), with_causes(&error)),
        Err(_) if has_answered() => {
            failed(Verdict::Unknown, "answered, but opened no session within the time limit".to_owned())
        }
        Err(_) => None,
    }
}

/// What the silence of an address says, with so much of the limit left by the lookup of its name.
fn of_silence(host: &str, limit: Duration, left: Duration, addresses: usize) -> (Verdict, String) {
    if left < limit / 2 {
        // It had too little of the time: that is no sign.
        return (Verdict::Unknown, format!("no answer within what the lookup of {host} left of {limit:?}"));
    }
    let part = if addresses > 1 { "its part of " } else { "" };
    (Verdict::Unreachable, format!("no answer within {part}{limit:?}"))
}

/// No address answered: the server is unreachable only if each says so that this machine could ask at all.
fn together(addresses: &[SocketAddr], failures: Vec<Failed>) -> Failed {
    let asked = failures.iter().filter(|failed| !failed.no_family).map(|failed| failed.verdict).collect::<Vec<_>>();
    let verdict = match asked.split_first() {
        Some((first, rest)) if rest.iter().all(|verdict| verdict == first) => *first,
        _ => Verdict::Unknown,
    };
    let several = addresses.len() > 1;
    let errors = addresses
        .iter()
        .zip(failures)
        .map(|(address, failed)| if several { format!("{}: {}", address.ip(), failed.error) } else { failed.error });
    Failed { verdict, error: errors.collect::<Vec<_>>().join("; "), answered: false, no_family: false }
}

/// The resolver's errors reach us only as the texts of `gai_strerror` (musl and glibc). A name that doesn't exist is our own
/// mistake; anything else, a temporary failure above all, says nothing of the server.
fn of_resolver(error: &io::Error) -> Verdict {
    const NO_SUCH_NAME: [&str; 5] = [
        "Name does not resolve",
        "Name has no usable address",
        "Name or service not known",
        "No address associated with hostname",
        "the name has no address",
    ];
    let text = error.to_string();
    if NO_SUCH_NAME.iter().any(|known| text.contains(known)) { Verdict::Misconfigured } else { Verdict::Unknown }
}

/// Without an address of the family, or without the family: EADDRNOTAVAIL, EAFNOSUPPORT.
fn is_no_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

/// Errors of connect(2). What the network or the other host says counts; what our own machine lacks doesn't.
fn of_tcp(error: &io::Error) -> Verdict {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::TimedOut
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable => Verdict::Unreachable,
        _ => Verdict::Unknown,
    }
}

fn of_handshake(error: &tokio_postgres::Error, answered: bool) -> Verdict {
    if let Some(code) = error.code() {
        return of_sqlstate(code);
    }
    if !answered {
        // End of stream or reset before the first byte, also in answer to the TLS request: a proxy with a dead backend.
        return Verdict::Unreachable;
    }
    // tokio-postgres keeps its error kinds private; their texts are fixed by the pinned version and tested below on real servers.
    match error.to_string().as_str() {
        // It granted TLS and then hung up: that is no answer on whether TLS fits.
        "error performing TLS handshake" if is_hang_up(error) => Verdict::Unknown,
        "error performing TLS handshake" => Verdict::Misconfigured,
        // The server asked for a password that we have not, or for a method that we don't speak: it is alive.
        "invalid configuration" | "authentication error" => Verdict::Rejected,
        _ => Verdict::Unknown,
    }
}

fn is_hang_up(error: &tokio_postgres::Error) -> bool {
    use io::ErrorKind as Kind;
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(cause.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe)
    })
}

/// Classes of PostgreSQL's appendix A, "PostgreSQL Error Codes".
fn of_sqlstate(code: &SqlState) -> Verdict {
    if *code == SqlState::CANNOT_CONNECT_NOW {
        return Verdict::Starting;
    }
    let rejected = code.code().starts_with("28")
        || [SqlState::TOO_MANY_CONNECTIONS, SqlState::INVALID_CATALOG_NAME, SqlState::INSUFFICIENT_PRIVILEGE]
            .contains(code);
    if rejected { Verdict::Rejected } else { Verdict::Unknown }
}

/// `tokio_postgres::Error` says only its kind; what happened is in its causes.
fn with_causes(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    match error.code() {
        Some(code) => format!("{text} (SQLSTATE {})", code.code()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_classified_as_in_the_contract() {
        for (code, verdict) in [
            ("57P03", Verdict::Starting),
            ("28P01", Verdict::Rejected),
            ("28000", Verdict::Rejected),
            ("53300", Verdict::Rejected),
            ("3D000", Verdict::Rejected),
            ("42501", Verdict::Rejected),
            ("57P01", Verdict::Unknown),
            ("XX000", Verdict::Unknown),
        ] {
            assert_eq!(of_sqlstate(&SqlState::from_code(code)), verdict, "{code}");
        }
    }

    #[test]
    fn errors_of_our_own_machine_never_count_as_unreachable() {
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::AddrNotAvailable, io::ErrorKind::OutOfMemory] {
            assert_eq!(of_tcp(&io::Error::from(kind)), Verdict::Unknown, "{kind}");
        }
        assert_eq!(of_tcp(&io::Error::from_raw_os_error(24)), Verdict::Unknown, "too many open files");
        assert_eq!(of_tcp(&io::Error::from_raw_os_error(113)), Verdict::Unreachable, "no route to host");
    }

    #[test]
    fn name_is_unreachable_only_if_each_of_its_addresses_is() {
        use Verdict::{Unknown, Unreachable};
        let failed =
            |verdict: Verdict| Failed { verdict, error: verdict.to_string(), answered: false, no_family: false };
        let of = |verdicts: &[Verdict]| {
            let failures = verdicts.iter().map(|&verdict| failed(verdict));
            let addresses = ["192.0.2.1:5432".parse().unwrap(), "192.0.2.2:5432".parse().unwrap()];
            together(&addresses[..verdicts.len()], failures.collect())
        };
        assert_eq!((of(&[Unreachable]).verdict, of(&[Unreachable]).error.as_str()), (Unreachable, "unreachable"));
        let both = of(&[Unreachable, Unreachable]);
        assert_eq!(
            (both.verdict, both.error.as_str()),
            (Unreachable, "192.0.2.1: unreachable; 192.0.2.2: unreachable")
        );
        assert_eq!(of(&[Unreachable, Unknown]).verdict, Unknown);
        assert_eq!(of(&[Unknown, Unreachable]).verdict, Unknown);
        // A name with an IPv6 address, on a machine without IPv6.
        let addresses = ["192.0.2.1:5432".parse().unwrap(), "[2001:db8::1]:5432".parse().unwrap()];
        let no_way = || Failed { no_family: true, ..failed(Unknown) };
        assert_eq!(together(&addresses, vec![failed(Unreachable), no_way()]).verdict, Unreachable);
        assert_eq!(together(&addresses[1..], vec![no_way()]).verdict, Unknown);
    }

    #[test]
    fn silence_after_a_slow_lookup_says_nothing() {
        let of = |left, addresses| of_silence("gold", Duration::from_secs(3), Duration::from_millis(left), addresses);
        assert_eq!(of(2900, 1), (Verdict::Unreachable, "no answer within 3s".to_owned()));
        assert_eq!(of(2900, 2), (Verdict::Unreachable, "no answer within its part of 3s".to_owned()));
        assert_eq!(of(1400, 1).0, Verdict::Unknown);
        assert_eq!(of(0, 1).0, Verdict::Unknown);
    }

    #[test]
    fn resolver_errors_tell_a_wrong_name_from_a_passing_fault() {
        for (text, verdict) in [
            ("failed to lookup address information: Name does not resolve", Verdict::Misconfigured),
            ("failed to lookup address information: Name or service not known", Verdict::Misconfigured),
            ("failed to lookup address information: Try again", Verdict::Unknown),
            ("failed to lookup address information: Temporary failure in name resolution", Verdict::Unknown),
        ] {
            assert_eq!(of_resolver(&io::Error::other(text)), verdict, "{text}");
        }
    }
}
