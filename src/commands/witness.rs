//! `witness`: at a third place, answers over HTTP what it sees of a site, by the same probe as `pg-probe`.
//!
//! `GET /v1/peer` probes and answers with the schema of `probe.json`; `GET /healthz` says that the witness itself lives. With
//! `LIFEBOAT_WITNESS_TOKEN` set, `/v1/peer` wants it as a bearer token.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::AUTHORIZATION,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpListener, sync::Mutex};
use tracing::info;

use super::pg_probe::probe_server;
use crate::{
    cli::{Session, misconfigured},
    flags,
    http_server::{self, text, typed},
    outcome::Report,
    postgres::{Credentials, Server, TlsOptions},
    probe::ProbeFacts,
    secret,
};

/// Callers within this time share one probe: nobody can use the witness to hammer the peer.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// `promote` waits this long for an answer: one that comes later is none.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Answer over HTTP, from a third place, what can be seen of a site
#[derive(Debug, clap::Args)]
pub struct Witness {
    /// Address to listen on
    #[arg(long, env = "LIFEBOAT_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,

    /// The site to watch: host and port of its PostgreSQL
    #[arg(long, env = "LIFEBOAT_PEER", value_name = "HOST:PORT", value_parser = flags::host_and_port)]
    peer: (String, u16),

    #[command(flatten)]
    credentials: Credentials,

    #[command(flatten)]
    tls: TlsOptions,

    /// Attempts for one answer; promote asks twice, so one is enough
    #[arg(long, env = "LIFEBOAT_ATTEMPTS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    attempts: u32,

    /// Pause between two attempts
    #[arg(long, env = "LIFEBOAT_INTERVAL", value_name = "DURATION", default_value = "500ms", value_parser = flags::duration)]
    interval: Duration,

    /// Time limit of one attempt
    #[arg(long, env = "LIFEBOAT_TIMEOUT", value_name = "DURATION", default_value = "3s", value_parser = flags::positive_duration)]
    timeout: Duration,
}

/// What all connections share.
struct Watch {
    server: Server,
    attempts: u32,
    interval: Duration,
    timeout: Duration,
    token: Option<SecretString>,
    last: Mutex<Option<(Instant, ProbeFacts)>>,
}

impl Witness {
    /// Serves until it is stopped.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let longest =
            self.timeout.saturating_mul(self.attempts).saturating_add(self.interval.saturating_mul(self.attempts - 1));
        if longest >= ANSWERS_WITHIN {
            return misconfigured(Err(anyhow!(
                "an answer about a dead peer would take {}, and promote waits {} for it: lower --attempts, --interval or --timeout",
                flags::human(longest),
                flags::human(ANSWERS_WITHIN)
            )));
        }
        let (host, port) = self.peer;
        let peer = format!("{host}:{port}");
        let password = misconfigured(self.credentials.password(&host, port))?;
        misconfigured(self.tls.connector())?;
        let watch = Arc::new(Watch {
            server: Server { host, port, credentials: self.credentials, password, tls: self.tls },
            attempts: self.attempts,
            interval: self.interval,
            timeout: self.timeout,
            token: secret::read(None, "LIFEBOAT_WITNESS_TOKEN")?,
            last: Mutex::new(None),
        });
        if session.dry_run {
            return Ok(Report::nothing_to_do(format!("would watch {peer} and listen on {}", self.listen)));
        }
        let listener = TcpListener::bind(self.listen).await.with_context(|| format!("listen on {}", self.listen))?;
        info!("watching {peer}, listening on {}", listener.local_addr()?);
        let never = http_server::serve(listener, move |request| {
            let watch = Arc::clone(&watch);
            async move { watch.answer(&request).await }
        });
        match never.await? {}
    }
}

impl Watch {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/v1/peer") if !self.allows(request) => {
                text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n")
            }
            (&Method::GET, "/v1/peer") => match serde_json::to_vec(&self.look().await) {
                Ok(body) => typed("application/json", body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            (_, "/healthz" | "/v1/peer") => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
            _ => text(StatusCode::NOT_FOUND, "there are /v1/peer and /healthz\n"),
        }
    }

    fn allows(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|given| same(given, token.expose_secret()))
    }

    /// One probe at a time; who comes while it runs gets its result.
    async fn look(&self) -> ProbeFacts {
        let mut last = self.last.lock().await;
        if let Some((when, facts)) = last.as_ref()
            && when.elapsed() < SHARED_FOR
        {
            return facts.clone();
        }
        let facts = probe_server(&self.server, self.attempts, self.interval, self.timeout).await;
        *last = Some((Instant::now(), facts.clone()));
        facts
    }
}

/// Compares without telling by its time how much was right.
fn same(given: &str, token: &str) -> bool {
    given.len() == token.len() && given.bytes().zip(token.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_differs_in_length_or_content_is_refused() {
        assert!(same("abc", "abc"));
        assert!(!same("abd", "abc"));
        assert!(!same("ab", "abc"));
    }
}
