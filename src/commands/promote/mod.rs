//! `promote`: decides whether this standby site must become the primary, does it through Patroni, and checks that it leads.
//!
//! Observe, decide (pure, in [`decide`]), write the decision down, observe again, patch Patroni's configuration, verify up to an
//! accepted write. A run that is killed anywhere is finished by the next one; every write is a compare-and-swap, so two runs
//! can't both promote.

mod decide;
mod guards;
mod observe;
#[cfg(test)]
mod tests;
mod verify;

use std::{path::PathBuf, time::Duration};

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    alerts::Alert,
    cli::{Session, failure, misconfigured},
    flags::{self, Size},
    intercom::Intercom,
    kill_point::kill_point,
    kubernetes::{Cluster, Conflict, Snapshot},
    outcome::{Conclusion, Report},
    patroni::{ClusterConfig, Scope},
    postgres::{Credentials, TlsOptions},
    probe,
    site::{APPROVE, HOLD, MAINTENANCE, Phase, Promotion, SiteRecord},
};
use decide::{Confirm, Decision, Mode, Plan, Policy, decide};
use guards::Guard;
use observe::{Observed, Seen};
use verify::Verified;

/// A conflict means that somebody else wrote: look again, this many times.
const ROUNDS: u32 = 8;

/// A monitor that looks every few seconds writes what it saw of a living peer only so often.
const SIGHTINGS_AGE: Duration = Duration::from_secs(20);

/// Decide whether this standby site must become the primary; do it through Patroni, and verify it
#[derive(Debug, clap::Args)]
pub struct Promote {
    /// Patroni's scope on this site: it names the ConfigMaps `<scope>-config`, `<scope>-leader` and `<scope>-dr`
    #[arg(long, env = "LIFEBOAT_SCOPE", value_name = "NAME")]
    scope: Scope,

    /// Name of this site, as its state record has it
    #[arg(long, env = "LIFEBOAT_SITE", value_name = "NAME", default_value = "local")]
    site: String,

    /// Who may decide: the guards alone, the guards and then an operator's word, or nobody
    #[arg(long, env = "LIFEBOAT_MODE", value_enum, default_value = "approve")]
    mode: Mode,

    /// Unreachable attempts in a row, counted across runs, before promotion is thought of
    #[arg(long, env = "LIFEBOAT_FAILURES", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    failures: u32,

    /// Time that the failures must span; longer than the peer's own failover (Patroni's `ttl` + `loop_wait` + `retry_timeout`)
    #[arg(long = "for", env = "LIFEBOAT_FOR", value_name = "DURATION", default_value = "60s", value_parser = flags::duration)]
    span: Duration,

    /// Time from one run to the next; a gap longer than two of them restarts the count
    #[arg(long, env = "LIFEBOAT_PERIOD", value_name = "DURATION", default_value = "60s", value_parser = flags::positive_duration)]
    period: Duration,

    /// WAL that may have been missing here at the last good probe
    #[arg(long, env = "LIFEBOAT_MAX_LAG", value_name = "SIZE", default_value = "16MiB")]
    max_lag: Size,

    /// A WAL receiver that heard from the peer within this time forbids promotion
    #[arg(long, env = "LIFEBOAT_RECEIVER_SILENCE", value_name = "DURATION", default_value = "10s", value_parser = flags::positive_duration)]
    receiver_silence: Duration,

    /// Least time between two promotions of this site
    #[arg(long, env = "LIFEBOAT_COOLDOWN", value_name = "DURATION", default_value = "10m", value_parser = flags::duration)]
    cooldown: Duration,

    /// Witness at a third place that must answer, be blind too, and have seen the peer right before (may be repeated)
    #[arg(long, env = "LIFEBOAT_WITNESS", value_name = "URL", value_delimiter = ',')]
    witness: Vec<String>,

    /// Context of the kubeconfig that leads to the peer's own API server: a second path to the truth
    #[arg(long, env = "LIFEBOAT_PEER_CONTEXT", value_name = "CONTEXT")]
    peer_context: Option<String>,

    /// Namespace in the peer's cluster (default: the context's)
    #[arg(long, env = "LIFEBOAT_PEER_NAMESPACE", value_name = "NAME", requires = "peer_context")]
    peer_namespace: Option<String>,

    /// Patroni's scope on the peer's site (default: --scope)
    #[arg(long, env = "LIFEBOAT_PEER_SCOPE", value_name = "NAME", requires = "peer_context")]
    peer_scope: Option<Scope>,

    /// Address of this site's primary, where its pods' own addresses can't be reached: from outside the cluster
    #[arg(long, env = "LIFEBOAT_PRIMARY", value_name = "HOST:PORT", value_parser = flags::host_and_port)]
    primary: Option<(String, u16)>,

    /// Let mode auto decide without a witness or a second path, though a cut link then makes two primaries
    #[arg(long, env = "LIFEBOAT_ACCEPT_SPLIT_BRAIN")]
    accept_split_brain: bool,

    /// A person's decision: needs no probe, but every other guard
    #[arg(long, env = "LIFEBOAT_CONFIRM", requires = "reason")]
    confirm: bool,

    /// Guards that the person sets aside, separated by commas
    #[arg(
        long = "override",
        env = "LIFEBOAT_OVERRIDE",
        value_name = "GUARDS",
        value_enum,
        value_delimiter = ',',
        requires = "confirm"
    )]
    overrides: Vec<Guard>,

    /// Why, for the audit: who decided, and on what grounds
    #[arg(long, env = "LIFEBOAT_REASON", value_name = "TEXT")]
    reason: Option<String>,

    /// Time for Patroni to promote and for the new primary to accept a write
    #[arg(long, env = "LIFEBOAT_VERIFY_TIMEOUT", value_name = "DURATION", default_value = "40s", value_parser = flags::positive_duration)]
    verify_timeout: Duration,

    /// An alert of the same kind is sent again after this time
    #[arg(long, env = "LIFEBOAT_ALERT_REPEAT", value_name = "DURATION", default_value = "1h", value_parser = flags::duration)]
    alert_repeat: Duration,

    /// Folder shared with pg-probe: `probe.json` is read there
    #[arg(long, env = "LIFEBOAT_DIR", value_name = "DIR", default_value = "/intercom")]
    dir: PathBuf,

    /// Facts older than this are refused
    #[arg(long, env = "LIFEBOAT_FACTS_MAX_AGE", value_name = "DURATION", default_value = "60s", value_parser = flags::positive_duration)]
    facts_max_age: Duration,

    #[command(flatten)]
    credentials: Credentials,

    #[command(flatten)]
    tls: TlsOptions,
}

impl Promote {
    /// Observes, decides, acts, verifies, and tells people.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let policy = self.policy()?;
        let result = Box::pin(self.decide_and_act(session, session.cluster().await?, &policy)).await;
        let mut report = result.unwrap_or_else(|error| failure("promote", error));
        session.tell("promote", &mut report, &self.scope, self.alert_repeat).await;
        Ok(report)
    }

    /// From the start again where somebody else wrote in between.
    async fn decide_and_act(&self, session: &Session, cluster: &Cluster, policy: &Policy) -> anyhow::Result<Report> {
        let mut seen = Seen::default();
        for round in 1..=ROUNDS {
            let observed = self.observe(session, cluster, policy, seen).await?;
            seen = observed.seen.clone();
            let decision = decide(&observed.facts, policy);
            info!(plan = ?decision.plan, "{}", decision.reason);
            if session.dry_run {
                return Ok(as_if(report(&decision, &observed), &decision.plan));
            }
            match self.act(session, cluster, policy, observed, decision).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => {
                    info!(round, "{error}; observing again");
                    tokio::time::sleep(Duration::from_millis(100) * round).await;
                }
                result => return result,
            }
        }
        bail!("the records kept changing under {ROUNDS} attempts; run it again")
    }

    fn policy(&self) -> anyhow::Result<Policy> {
        // A probe through the peer's own API server is a second path by itself. Where there is no probe, that is what must be said: the decision
        // refuses without one.
        let by_api = || {
            let probe = Intercom::new(&self.dir).read_probe(Timestamp::now(), self.facts_max_age);
            probe.map_or(true, |probe| probe.path == probe::Path::Api)
        };
        let third_party =
            !self.witness.is_empty() || self.peer_context.is_some() || self.accept_split_brain || by_api();
        if self.mode == Mode::Auto && !self.confirm && !third_party {
            return misconfigured(Err(anyhow!(
                "mode auto needs --witness, --peer-context, or a probe through the peer's API server (pg-probe --scope): two sites alone can't \
                 tell a dead peer from a cut link (or --accept-split-brain, in so many words)"
            )));
        }
        for url in &self.witness {
            misconfigured(check_witness(url))?;
        }
        Ok(Policy {
            mode: self.mode,
            failures: self.failures,
            span: self.span,
            period: self.period,
            max_lag: self.max_lag,
            receiver_silence: self.receiver_silence,
            cooldown: self.cooldown,
            accept_split_brain: self.accept_split_brain,
        })
    }

    /// A person's decision by this run's flags.
    fn confirmed(&self) -> Option<Confirm> {
        let decision =
            || Confirm { overrides: self.overrides.clone(), reason: self.reason.clone().unwrap_or_default() };
        self.confirm.then(decision)
    }

    /// Writes the decision down, then does what it says.
    async fn act(
        &self,
        session: &Session,
        cluster: &Cluster,
        policy: &Policy,
        observed: Observed,
        decision: Decision,
    ) -> anyhow::Result<Report> {
        kill_point("decided");
        if decision.record.tells_more_than(&observed.facts.record, SIGHTINGS_AGE.min(policy.period)) {
            let words: &[_] = if decision.forget_approval { &[(APPROVE, None)] } else { &[] };
            self.write_record(cluster, &observed, &decision.record, words).await?;
        }
        kill_point("recorded");
        match decision.plan {
            Plan::Nothing | Plan::Refuse | Plan::Mend => Ok(report(&decision, &observed)),
            Plan::Verify => self.verify(cluster, false, report(&decision, &observed)).await,
            Plan::Promote => self.promote(session, cluster, policy, &observed).await,
        }
    }

    /// Re-checks every guard right before the patch, then removes `standby_cluster`.
    async fn promote(
        &self,
        session: &Session,
        cluster: &Cluster,
        policy: &Policy,
        before: &Observed,
    ) -> anyhow::Result<Report> {
        if let Some(warning) = shorter_than_failover(policy, &before.facts.config) {
            warn!("{warning}");
        }
        let again = self.observe(session, cluster, policy, before.seen.clone()).await?;
        let decision = decide(&again.facts, policy);
        kill_point("rechecked");
        match decision.plan {
            // Somebody wrote the record in between: the decision must be written down again before anything is done.
            Plan::Promote if decision.record.tells_more_than(&again.facts.record, Duration::MAX) => {
                return Err(Conflict(self.scope.state()).into());
            }
            Plan::Promote => {}
            Plan::Verify => return self.verify(cluster, false, report(&decision, &again)).await,
            _ => {
                info!("called off: {}", decision.reason);
                let mut record = decision.record.clone();
                record.note(Timestamp::now(), format!("promotion called off: {}", decision.reason));
                if record.phase == Phase::Promoting {
                    record.call_off(Phase::Suspect);
                }
                self.write_record(cluster, &again, &record, &[]).await?;
                return Ok(report(&decision, &again));
            }
        }
        // Witnesses take seconds to answer, and a hold set meanwhile must count. Writing makes any other run conflict from here on.
        let mut record = again.facts.record.clone();
        record.note(Timestamp::now(), "every guard passed again; removing standby_cluster");
        self.write_record(cluster, &again, &record, &[]).await?;
        let config_map = cluster.configmap(&self.scope.config()).await?;
        if ClusterConfig::read(&config_map)? != again.facts.config {
            return Err(Conflict(self.scope.config()).into());
        }
        let promoted = again.facts.config.promoted()?;
        cluster.swap_annotation(&config_map, ClusterConfig::ANNOTATION, &promoted).await?;
        info!("standby_cluster is removed from ConfigMap {}", self.scope.config());
        kill_point("patched");
        self.verify(cluster, true, report(&decision, &again)).await
    }

    /// Writes the record, provided that it and the operator's annotations are still those that were decided on. What else changed
    /// in its ConfigMap is nobody's business here.
    async fn write_record(
        &self,
        cluster: &Cluster,
        decided: &Observed,
        record: &SiteRecord,
        annotations: &[(&str, Option<&str>)],
    ) -> anyhow::Result<()> {
        let (now, map) = cluster.site_record(&self.scope, &self.site).await?;
        let words = |map: Option<&Snapshot>| {
            [HOLD, MAINTENANCE, APPROVE].map(|key| map.and_then(|map| map.annotations.get(key).cloned()))
        };
        if now != decided.facts.record || words(map.as_ref()) != words(decided.state_map.as_ref()) {
            return Err(Conflict(self.scope.state()).into());
        }
        cluster.write_site_record(&self.scope, record, map.as_ref(), annotations).await.map(drop)
    }

    /// Waits until the new primary accepts a write, then writes that down. Only this ends the phase `promoting`.
    async fn verify(&self, cluster: &Cluster, by_this_run: bool, mut report: Report) -> anyhow::Result<Report> {
        let promotion = cluster.site_record(&self.scope, &self.site).await?.0.promotion;
        let from = promotion.as_ref().and_then(|promotion| promotion.from_timeline);
        let verified = match self.wait_for_primary(cluster, from).await {
            Ok(verified) => verified,
            Err(why) => {
                report.conclusion = Conclusion::Unverified;
                report.reason = format!(
                    "standby_cluster is removed, but no local primary accepted a write: {why}; the next run looks again"
                );
                report.alerts = vec![Alert::warning("PromotionNotVerified", report.reason.clone())];
                return Ok(report);
            }
        };
        kill_point("verified");
        let first = self.record_promoted(cluster, &verified).await?;
        let Verified { member, timeline, took } = verified;
        report.details.insert("promoted_member".to_owned(), member.clone().into());
        report.details.insert("timeline".to_owned(), timeline.0.into());
        report.details.insert("verify_ms".to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into());
        let why = match promotion {
            _ if by_this_run => report.reason,
            Some(promotion) if promotion.by == Promotion::OBSERVED => promotion.reason,
            _ => "the promotion was begun by another run".to_owned(),
        };
        report.reason = format!("site {} leads on timeline {timeline} and accepts writes: {why}", self.site);
        report.conclusion = if by_this_run || first { Conclusion::Done } else { Conclusion::NothingToDo };
        report.alerts = if first { vec![Alert::warning("Promoted", report.reason.clone())] } else { Vec::new() };
        Ok(report)
    }

    /// Marks the promotion as verified; false if another run did so first.
    async fn record_promoted(&self, cluster: &Cluster, verified: &Verified) -> anyhow::Result<bool> {
        for _ in 0..ROUNDS {
            let (mut record, map) = cluster.site_record(&self.scope, &self.site).await?;
            if record.phase != Phase::Promoting {
                return Ok(false);
            }
            mark_promoted(&mut record, verified, Timestamp::now());
            match cluster.write_site_record(&self.scope, &record, map.as_ref(), &[(APPROVE, None)]).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => {}
                result => return result.map(|_| true),
            }
        }
        bail!("this site leads, but its record kept changing; the next run writes it")
    }
}

fn mark_promoted(record: &mut SiteRecord, verified: &Verified, now: Timestamp) {
    record.phase = Phase::Promoted;
    record.reset_failures();
    if let Some(promotion) = record.promotion.as_mut() {
        promotion.to_timeline = Some(verified.timeline);
        promotion.verified = Some(now);
    }
    record
        .note(now, format!("promoted: {} leads on timeline {} and accepts writes", verified.member, verified.timeline));
}

/// The address is shown in evidence and kept in the record, so it may not carry a secret; this error doesn't show it either.
fn check_witness(url: &str) -> anyhow::Result<()> {
    let authority = url.split_once("://").map(|(scheme, rest)| (scheme, rest.split('/').next().unwrap_or_default()));
    match authority {
        Some((_, place)) if place.contains('@') => {
            bail!("a --witness carries credentials in its address: set LIFEBOAT_WITNESS_TOKEN instead")
        }
        Some(("http" | "https", place)) if !place.is_empty() => Ok(()),
        _ => bail!("--witness {url:?} must be an address such as http://witness.example:8080"),
    }
}

/// A leader that dies on the peer's site while its replica takes over is no reason to promote.
fn shorter_than_failover(policy: &Policy, config: &ClusterConfig) -> Option<String> {
    let failover = Duration::from_secs(config.ttl + config.loop_wait + config.retry_timeout);
    (policy.span < failover).then(|| {
        format!(
            "--for {} is shorter than the peer's own failover of about {}",
            flags::human(policy.span),
            flags::human(failover)
        )
    })
}

/// What a decision says to the outside.
fn report(decision: &Decision, observed: &Observed) -> Report {
    let conclusion = match decision.plan {
        Plan::Nothing => Conclusion::NothingToDo,
        Plan::Refuse => Conclusion::Refused,
        Plan::Mend => Conclusion::Misconfigured,
        Plan::Promote | Plan::Verify => Conclusion::Done,
    };
    let record = &decision.record;
    let mut report = Report::new(conclusion, decision.reason.clone())
        .with_evidence(decision.evidence.clone())
        .with("plan", format!("{:?}", decision.plan).to_lowercase())
        .with("phase", record.phase)
        .with("epoch", record.epoch)
        .with("failures", record.failures);
    if let Some(good) = &record.last_good {
        report = report.with("last_good", good).with("lag_bytes", good.lag());
    }
    if let Ok(local) = &observed.facts.guard.local {
        report = report.with("local_lsn", local.lsn);
    }
    report.alerts = decision.alert.clone().into_iter().collect();
    report
}

/// A dry run says what would be done, not that it was.
fn as_if(mut report: Report, plan: &Plan) -> Report {
    let would = match plan {
        Plan::Promote => "would promote: ",
        Plan::Verify => "would look whether this site leads: ",
        Plan::Nothing | Plan::Refuse | Plan::Mend => "",
    };
    report.reason.insert_str(0, would);
    report
}

#[cfg(test)]
mod flag_tests {
    use clap::Parser;

    use super::{Plan, Promote, Report, as_if, check_witness};
    use crate::{
        intercom::Intercom,
        outcome::Misconfigured,
        probe::{Path, ProbeFacts, Verdict},
    };

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        promote: Promote,
    }

    #[test]
    fn mode_auto_needs_a_third_party_and_without_a_probe_that_is_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let line = ["promote", "--scope=pg", "--mode=auto", "--dir", dir.path().to_str().unwrap()];
        let promote = CommandLine::try_parse_from(line).unwrap().promote;
        assert!(promote.policy().is_ok(), "the decision says that there is no probe");
        let write = |path| {
            let probe = ProbeFacts::of_verdict(Verdict::Unreachable);
            Intercom::new(dir.path())
                .write_probe(&ProbeFacts { path, taken: jiff::Timestamp::now(), ..probe })
                .unwrap();
        };
        write(Path::Api);
        assert!(promote.policy().is_ok());
        write(Path::Postgresql);
        let error = promote.policy().unwrap_err();
        assert!(error.downcast_ref::<Misconfigured>().is_some() && format!("{error:#}").contains("--witness"));
    }

    #[test]
    fn dry_run_never_reads_as_if_it_had_promoted() {
        let reason = |plan| as_if(Report::done("confirmed by a person: drill"), &plan).reason;
        assert_eq!(reason(Plan::Promote), "would promote: confirmed by a person: drill");
        assert!(reason(Plan::Verify).starts_with("would look "));
        assert_eq!(reason(Plan::Refuse), "confirmed by a person: drill");
    }

    #[test]
    fn witness_with_credentials_is_refused_and_not_shown() {
        let error = check_witness("http://me:hunter2@witness:8080").unwrap_err().to_string();
        assert!(error.contains("LIFEBOAT_WITNESS_TOKEN") && !error.contains("hunter2"), "{error}");
        for bad in ["witness:8080", "http://", "ftp://witness"] {
            assert!(check_witness(bad).is_err(), "{bad}");
        }
        check_witness("https://witness.example:8443/site").unwrap();
    }
}
