//! One attempt to open a session, and what its failure means.

use std::{
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_postgres::error::SqlState;

use super::{
    Server,
    connect::{ConnectError, Connected, connect},
};
use crate::probe::Verdict;

/// A session that did not come about: what that says of the server, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed {
    /// What it says of the server.
    pub verdict: Verdict,
    /// The error, for people.
    pub error: String,
}

/// Opens a session within `timeout`, or says what was met instead.
pub async fn attempt(server: &Server, timeout: Duration) -> Result<Connected, Failed> {
    let answered = Arc::new(AtomicBool::new(false));
    let failed = |verdict, error: String| Failed { verdict, error };
    match tokio::time::timeout(timeout, connect(server, &answered)).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(ConnectError::Options(error))) => Err(failed(Verdict::Misconfigured, format!("{error:#}"))),
        Ok(Err(ConnectError::Resolve(error))) => {
            Err(failed(of_resolver(&error), format!("look up {}: {error}", server.host)))
        }
        Ok(Err(ConnectError::Tcp(error))) => Err(failed(of_tcp(&error), error.to_string())),
        Ok(Err(ConnectError::Handshake { error })) => {
            let verdict = of_handshake(&error, answered.load(Ordering::Relaxed));
            Err(failed(verdict, with_causes(&error)))
        }
        Err(_) if answered.load(Ordering::Relaxed) => {
            Err(failed(Verdict::Unknown, format!("answered, but opened no session within {timeout:?}")))
        }
        Err(_) => Err(failed(Verdict::Unreachable, format!("no answer within {timeout:?}"))),
    }
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
