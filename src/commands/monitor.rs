//! `monitor`: the steps of the CronJob in one process, again and again, with metrics and an endpoint for load balancers.
//!
//! Each step is the command line that its container has in the CronJob: what runs there is what runs here. One monitor works at a
//! time, the holder of a Lease; two at once would be safe, but would count each failure twice.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use jiff::Timestamp;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

use crate::{
    alerts::Alert,
    cli::{Session, Step, misconfigured},
    flags,
    http_server::{self, text, typed},
    kubernetes::{Cluster, Election, EventTarget},
    outcome::{Conclusion, Report},
    patroni::{ClusterConfig, LeaderRecord, Member, MemberRole, Scope},
    site::{HOLD, LastGood, MAINTENANCE, Phase, SiteRecord},
};

/// Between two steps on the command line.
const THEN: &str = "--then";
/// A dead-man switch hears of every change at once, and of the rest no more often than from a CronJob.
const PING_EVERY: Duration = Duration::from_mins(1);
/// Alerts of steps that have no repeat time of their own.
const ALERT_REPEAT: Duration = Duration::from_hours(1);
/// After so many times its duration without a Lease, because of errors, people are told.
const LOST: u32 = 4;
/// The longest that a round may take (a promotion with its verification) before the monitor counts as stuck.
const ROUND_LIMIT: Duration = Duration::from_mins(5);

const PHASES: [Phase; 7] = [
    Phase::Watching,
    Phase::Suspect,
    Phase::AwaitingApproval,
    Phase::Promoting,
    Phase::Promoted,
    Phase::Held,
    Phase::Following,
];

/// Run the steps of the monitor again and again; serve metrics, and whether this site leads
#[derive(Debug, clap::Args)]
pub struct Monitor {
    /// Patroni's scope on this site
    #[arg(long, env = "LIFEBOAT_SCOPE", value_name = "NAME")]
    scope: Scope,

    /// Time from the beginning of one round to the beginning of the next
    #[arg(long, env = "LIFEBOAT_EVERY", value_name = "DURATION", default_value = "5s", value_parser = flags::positive_duration)]
    every: Duration,

    /// Address to serve `/metrics`, `/primary` and `/healthz` on
    #[arg(long, env = "LIFEBOAT_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,

    /// Lease whose holder works; without it this monitor works in any case
    #[arg(long, env = "LIFEBOAT_LEASE", value_name = "NAME")]
    lease: Option<String>,

    /// Who we are in that Lease; without it the host's name and the process id
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,

    /// Time without a renewal after which another may take the Lease
    #[arg(long, env = "LIFEBOAT_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = flags::positive_duration)]
    lease_duration: Duration,

    /// The steps as they are on a command line of their own: `-- port-discover … --then pg-probe … --then promote …`
    #[arg(last = true, value_name = "STEP")]
    steps: Vec<OsString>,
}

/// What is known of the site, for those who ask.
#[derive(Debug, Default)]
struct Known {
    record: Option<SiteRecord>,
    held: bool,
    /// This site leads until then, unless another look says otherwise: the lease that was seen does not end with one failed look.
    leads_until: Option<Instant>,
    works: bool,
    finished: Option<(Instant, Timestamp)>,
    runs: BTreeMap<(&'static str, String), u64>,
}

impl Monitor {
    /// Runs until it is stopped.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let steps = misconfigured(parse_steps(&self.steps, session))?;
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        let what = format!(
            "every {}: {}",
            flags::human(self.every),
            if names.is_empty() { "no step".into() } else { names.join(", ") }
        );
        if session.dry_run {
            return Ok(Report::nothing_to_do(format!("would run {what}")));
        }
        let listener = TcpListener::bind(self.listen).await.with_context(|| format!("listen on {}", self.listen))?;
        info!("{what}; listening on {}", listener.local_addr()?);
        let known = Arc::new(Mutex::new(Known::default()));
        let (asked, begun, late) = (Arc::clone(&known), Instant::now(), ROUND_LIMIT + self.every);
        let server = http_server::serve(listener, move |request| {
            let response = answer(&request, &asked, begun, late);
            async move { response }
        });
        tokio::select! {
            never = server => match never? {},
            error = self.rounds(session, &steps, &known) => Err(error),
        }
    }

    /// Round after round; ends only where the cluster can't be used at all.
    async fn rounds(&self, session: &Session, steps: &[Step], known: &Mutex<Known>) -> anyhow::Error {
        let cluster = match session.cluster().await {
            Ok(cluster) => cluster,
            Err(error) => return error,
        };
        let mut election = self.lease.as_ref().map(|name| Election::new(name, &self.identity(), self.lease_duration));
        let mut told = Told::default();
        let mut answered = Instant::now();
        loop {
            let works = match holds(election.as_mut(), cluster).await {
                Ok(works) => {
                    answered = Instant::now();
                    works
                }
                Err(error) => {
                    warn!("{error:#}");
                    if answered.elapsed() >= self.lease_duration * LOST {
                        self.tell_that_nobody_watches(session, &error, &mut told).await;
                    }
                    false
                }
            };
            if works != lock(known).works {
                info!("{}", if works { "this monitor works" } else { "this monitor does not work: it has no Lease" });
            }
            lock(known).works = works;
            tokio::select! {
                () = self.round(session, cluster, works.then_some(steps), known, &mut told) => {}
                // A round that verifies a promotion, and the pause behind it, may be longer than the Lease lasts.
                () = keep(election.as_mut().filter(|_| works), cluster, self.lease_duration / 3) => {
                    info!("another monitor took the Lease: this round ends, and the other one finishes what it began");
                }
            }
        }
    }

    /// The steps, a look at the site, and the rest of the time until the next round.
    async fn round(
        &self,
        session: &Session,
        cluster: &Cluster,
        steps: Option<&[Step]>,
        known: &Mutex<Known>,
        told: &mut Told,
    ) {
        let begun = Instant::now();
        if let Some(steps) = steps {
            self.chain(session, steps, known, told).await;
        }
        match self.look(session, cluster).await {
            Ok((record, held, leads_until)) => {
                let mut known = lock(known);
                (known.record, known.held, known.leads_until) = (record, held, leads_until);
            }
            Err(error) => warn!("look at the site: {error:#}"),
        }
        // Without the API server too: a restart would not bring it back.
        lock(known).finished = Some((Instant::now(), Timestamp::now()));
        tokio::time::sleep(self.every.saturating_sub(begun.elapsed())).await;
    }

    /// A Lease that can't be had stops the steps, and with them every alert of theirs.
    async fn tell_that_nobody_watches(&self, session: &Session, error: &anyhow::Error, told: &mut Told) {
        let reason = format!("this monitor does not watch the peer: it can't have its Lease: {error:#}");
        let mut report = Report::new(Conclusion::Failed, reason.clone());
        // The site's record, which would remember it, may be out of reach too.
        if told.blind.is_none_or(|when| when.elapsed() >= ALERT_REPEAT) {
            report.alerts.push(Alert::warning("ProbeBlind", reason).about(EventTarget::own_pod()));
            if session.send("monitor", &mut report).await {
                told.blind = Some(Instant::now());
            }
        }
        if told.ping_is_due(report.conclusion) {
            session.ping("monitor", &mut report).await;
        }
    }

    fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }

    /// One round: the steps in their order, until one fails, as the containers of a pod.
    async fn chain(&self, session: &Session, steps: &[Step], known: &Mutex<Known>, told: &mut Told) {
        for (number, step) in steps.iter().enumerate() {
            let (started, clock) = (Timestamp::now(), Instant::now());
            let mut report = step.run(session).await;
            let conclusion = report.conclusion;
            *lock(known).runs.entry((step.name, conclusion.to_string())).or_default() += 1;
            session.tell(step.name, &mut report, &self.scope, ALERT_REPEAT).await;
            let last = number + 1 == steps.len() || !conclusion.is_success();
            if last && told.ping_is_due(conclusion) {
                session.ping(step.name, &mut report).await;
            }
            if told.is_new(step.name, &report) {
                crate::outcome::Outcome::new(step.name, started, clock.elapsed(), &report).print();
            }
            if !conclusion.is_success() {
                debug!("{} ended as {conclusion}: the steps behind it wait for the next round", step.name);
                return;
            }
        }
    }

    /// The record, whether it is held, and until when this site leads: Patroni says so, and its leader was seen to renew its lease.
    async fn look(
        &self,
        session: &Session,
        cluster: &Cluster,
    ) -> anyhow::Result<(Option<SiteRecord>, bool, Option<Instant>)> {
        let found = cluster.find_site_record(&self.scope).await?;
        let now = Timestamp::now();
        let held = found.as_ref().is_some_and(|(_, map)| {
            let until = map.annotations.get(MAINTENANCE).and_then(|text| text.trim().parse::<Timestamp>().ok());
            map.annotations.contains_key(HOLD) || until.is_some_and(|until| until > now)
        });
        let config = ClusterConfig::read(&cluster.configmap(&self.scope.config()).await?)?;
        let leader = LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?);
        session.lease().see(leader.as_ref(), Instant::now());
        let leads_until = match leader {
            Some(leader) if config.initialize.is_some() && config.standby_cluster.is_none() => {
                let member = Member::of_pod(cluster, &leader.leader).await?;
                let leads = member.role == MemberRole::Primary && member.state == "running";
                let end = session.lease().holds_until(&leader.leader, Duration::from_secs(config.ttl));
                end.filter(|_| leads)
            }
            _ => None,
        };
        Ok((found.map(|(record, _)| record), held, leads_until))
    }
}

/// What was said already: a monitor that looks every few seconds says what changed.
#[derive(Default)]
struct Told {
    said: BTreeMap<&'static str, (Conclusion, String)>,
    pinged: Option<(Instant, Conclusion)>,
    blind: Option<Instant>,
}

impl Told {
    fn is_new(&mut self, step: &'static str, report: &Report) -> bool {
        let now = (report.conclusion, report.reason.clone());
        if self.said.get(step) == Some(&now) {
            return false;
        }
        self.said.insert(step, now);
        true
    }

    fn ping_is_due(&mut self, conclusion: Conclusion) -> bool {
        let due = self.pinged.is_none_or(|(when, last)| last != conclusion || when.elapsed() >= PING_EVERY);
        if due {
            self.pinged = Some((Instant::now(), conclusion));
        }
        due
    }
}

async fn holds(election: Option<&mut Election>, cluster: &Cluster) -> anyhow::Result<bool> {
    match election {
        None => Ok(true),
        Some(election) => election.hold(cluster).await,
    }
}

/// Renews the Lease, again and again; ends when another has it.
async fn keep(election: Option<&mut Election>, cluster: &Cluster, every: Duration) {
    let Some(election) = election else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        match election.hold(cluster).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => warn!("{error:#}"),
        }
    }
}

fn parse_steps(words: &[OsString], session: &Session) -> anyhow::Result<Vec<Step>> {
    if words.is_empty() {
        return Ok(Vec::new());
    }
    let parse = |(index, words)| Step::parse(words, session).map_err(|error| anyhow!("step {}: {error:#}", index + 1));
    words.split(|word| word == THEN).enumerate().map(parse).collect()
}

impl Known {
    fn leads(&self) -> bool {
        self.leads_until.is_some_and(|end| Instant::now() <= end)
    }
}

fn lock(known: &Mutex<Known>) -> std::sync::MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(request: &Request<Incoming>, known: &Mutex<Known>, begun: Instant, late: Duration) -> Response<Full<Bytes>> {
    let known = lock(known);
    let current = known.finished.map_or(begun, |(when, _)| when).elapsed() <= late;
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") if current => text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/healthz") => text(StatusCode::SERVICE_UNAVAILABLE, "no round came to its end lately\n"),
        (&Method::GET | &Method::HEAD, "/primary") if known.leads() && current => {
            text(StatusCode::OK, "this site leads\n")
        }
        (&Method::GET | &Method::HEAD, "/primary") => {
            text(StatusCode::SERVICE_UNAVAILABLE, "this site does not lead\n")
        }
        (&Method::GET, "/metrics") => match metrics(&known) {
            Ok(body) => typed("application/openmetrics-text; version=1.0.0; charset=utf-8", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (_, "/healthz" | "/primary" | "/metrics") => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /primary and /healthz\n"),
    }
}

/// What alert rules need. A value that is not known is absent, or NaN.
fn metrics(known: &Known) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("lifeboat");
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        gauge.set(value.unwrap_or(f64::NAN));
        registry.register(name, help, gauge);
    };
    let flag = |value: bool| Some(f64::from(u8::from(value)));
    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point; 2^53 bytes of lag are exact enough")]
    let number = |value: u64| value as f64;
    let seconds = |time: Timestamp| time.as_duration().as_secs_f64();
    let record = known.record.as_ref();
    let good = record.and_then(|record| record.last_good.as_ref());
    gauge("epoch", "Promotions of this site", record.map(|record| number(record.epoch)));
    gauge("peer_failures", "Unreachable attempts in a row", record.map(|record| f64::from(record.failures)));
    gauge(
        "peer_lag_bytes",
        "WAL that was missing here at the last good probe",
        good.and_then(LastGood::lag).map(number),
    );
    gauge(
        "last_good_probe_timestamp_seconds",
        "When the peer was last met and known",
        good.map(|good| seconds(good.time)),
    );
    gauge("held", "An operator holds the promotion of this site", flag(known.held));
    gauge("primary", "This site leads", flag(known.leads()));
    gauge("monitor_leader", "This monitor works", flag(known.works));
    let finished = known.finished.map(|(_, when)| seconds(when));
    gauge("last_round_timestamp_seconds", "When the last round came to its end", finished);
    if let Some(record) = record {
        let phases = Family::<Vec<(&str, String)>, Gauge>::default();
        for phase in PHASES {
            phases.get_or_create(&vec![("phase", phase.to_string())]).set(i64::from(phase == record.phase));
        }
        registry.register("phase", "The phase of this site", phases);
    }
    let runs = Family::<Vec<(&str, String)>, Counter>::default();
    for ((step, outcome), count) in &known.runs {
        let labels = vec![("step", (*step).to_owned()), ("outcome", outcome.replace(' ', "-"))];
        runs.get_or_create(&labels).inc_by(*count);
    }
    registry.register("step_runs", "Runs of each step by its outcome", runs);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn steps_are_read_as_on_their_own_command_lines() {
        let session = Session::for_tests();
        let read = |text: &str| parse_steps(&words(text), &session);
        let steps =
            read("port-discover --service=s --then pg-probe --host=h --port=1 --then promote --scope=pg").unwrap();
        assert_eq!(steps.iter().map(|step| step.name).collect::<Vec<_>>(), ["port-discover", "pg-probe", "promote"]);
        assert!(parse_steps(&[], &session).unwrap().is_empty());
        for (bad, said) in [
            ("promote --scope=pg --dry-run", "belongs to the monitor"),
            ("pg-probe --host=h --port=1 --then promote --scope=pg --webhook-format=slack", "step 2: --webhook-format"),
            ("port-discover", "step 1"),
            ("promote --scope=pg --then promote --scope=pg --mode=never", "step 2"),
            ("monitor --scope=pg", "no step of a monitor"),
            ("promote --scope=pg --then", "step 2"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn metrics_tell_the_record_and_leave_out_what_is_not_known() {
        let mut known = Known { leads_until: Some(Instant::now() + Duration::from_mins(1)), ..Known::default() };
        let text = metrics(&known).unwrap();
        assert!(text.contains("lifeboat_primary 1.0\n") && text.contains("lifeboat_peer_lag_bytes NaN\n"), "{text}");
        assert!(!text.contains("lifeboat_phase"), "{text}");
        known.leads_until = Some(Instant::now());
        std::thread::sleep(Duration::from_millis(1));
        assert!(metrics(&known).unwrap().contains("lifeboat_primary 0.0\n"), "its lease ran out unseen");
        known.record = Some(SiteRecord { failures: 3, phase: Phase::Suspect, ..SiteRecord::new("golddr") });
        known.runs.insert(("promote", "nothing to do".into()), 2);
        let text = metrics(&known).unwrap();
        for line in [
            "lifeboat_peer_failures 3.0\n",
            "lifeboat_phase{phase=\"suspect\"} 1\n",
            "lifeboat_phase{phase=\"watching\"} 0\n",
            "lifeboat_step_runs_total{step=\"promote\",outcome=\"nothing-to-do\"} 2\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn outcome_is_printed_when_it_changes() {
        let mut told = Told::default();
        let report = Report::nothing_to_do("the peer is alive");
        assert!(told.is_new("promote", &report) && !told.is_new("promote", &report));
        assert!(told.is_new("promote", &Report::nothing_to_do("2 of 5 failures")));
        assert!(told.ping_is_due(Conclusion::Done) && !told.ping_is_due(Conclusion::Done));
        assert!(told.ping_is_due(Conclusion::Refused), "a change is told at once");
    }
}
