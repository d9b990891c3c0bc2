//! The decision: pure functions from facts to a plan. No clock, no network, no cluster.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::guards::{Guard, GuardFacts, SecondPath, WitnessFacts, foreign, guards};
use crate::{
    alerts::Alert,
    flags::{Size, human},
    outcome::Evidence,
    patroni::ClusterConfig,
    probe::{ProbeFacts, Verdict},
    site::{LastGood, Phase, Promotion, SiteRecord},
};
use clap::ValueEnum;

/// How the record calls a person's decision.
const CONFIRMED: &str = "confirmed";

/// A person's word that nobody finished within this time was for another moment.
const WORD_LASTS: SignedDuration = SignedDuration::from_mins(15);

/// Who may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Promote when every guard passes. Needs a witness or a second path.
    Auto,
    /// When every guard passes, wait for an operator's word.
    Approve,
    /// Only report.
    Off,
}

/// What the flags allow.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Who may decide.
    pub mode: Mode,
    /// Unreachable attempts in a row that are needed.
    pub failures: u32,
    /// Time that they must span.
    pub span: Duration,
    /// Time from one run to the next; a gap longer than two restarts the count.
    pub period: Duration,
    /// Lag that is allowed at the last good probe.
    pub max_lag: Size,
    /// A WAL receiver that heard anything within this time forbids promotion.
    pub receiver_silence: Duration,
    /// Time after a promotion in which there is no other.
    pub cooldown: Duration,
    /// Two sites alone may decide.
    pub accept_split_brain: bool,
}

impl Policy {
    /// What was seen longer ago than five runs says nothing about now.
    #[must_use]
    pub fn memory(&self) -> SignedDuration {
        SignedDuration::try_from(self.period * 5).unwrap_or(SignedDuration::MAX)
    }
}

/// A person's decision, without a probe.
#[derive(Debug, Clone)]
pub struct Confirm {
    /// Guards that are set aside.
    pub overrides: Vec<Guard>,
    /// Why, in the person's words.
    pub reason: String,
}

impl Confirm {
    /// What the record says of a person's decision whose run was killed: any run finishes it as it was meant.
    #[must_use]
    pub fn unfinished(record: &SiteRecord, now: Timestamp) -> Option<Self> {
        let fresh = |promotion: &&Promotion| now.duration_since(promotion.decided) <= WORD_LASTS;
        let promotion = record.promotion.as_ref().filter(|promotion| promotion.by == CONFIRMED).filter(fresh)?;
        let overrides = promotion.overrides.iter().filter_map(|name| Guard::from_str(name, false).ok()).collect();
        (record.phase == Phase::Promoting).then(|| Self { overrides, reason: promotion.reason.clone() })
    }
}

/// Everything that was observed.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When.
    pub now: Timestamp,
    /// The site's record.
    pub record: SiteRecord,
    /// A person's decision: of this run, or of an earlier one that did not come to its end.
    pub confirm: Option<Confirm>,
    /// The peer's probe, or why it can't be used.
    pub probe: Result<ProbeFacts, String>,
    /// Patroni's dynamic configuration.
    pub config: ClusterConfig,
    /// What only the guards ask for.
    pub guard: GuardFacts,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Rightly nothing, or waiting.
    Nothing,
    /// A guard says no.
    Refuse,
    /// Our own configuration is wrong.
    Mend,
    /// Remove `standby_cluster`.
    Promote,
    /// It is removed already: see whether this site leads.
    Verify,
}

/// A plan with its reasons, and the record as it must be written before anything is done.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What is to be done.
    pub plan: Plan,
    /// One sentence.
    pub reason: String,
    /// Every guard that was asked.
    pub evidence: Vec<Evidence>,
    /// The record to write.
    pub record: SiteRecord,
    /// The annotation `lifeboat/approve` is not for what happens now, and must go.
    pub forget_approval: bool,
    /// What a person must know of.
    pub alert: Option<Alert>,
}

/// Counts the probe's attempts. An unreachable one is a failure; one that met a living server resets the count; the others neither
/// count nor reset. Attempts that were counted before are left out, so that reading the same facts twice counts them once.
#[must_use]
pub fn tally(record: &SiteRecord, probe: &ProbeFacts, period: Duration) -> SiteRecord {
    let mut record = record.clone();
    let gap = SignedDuration::try_from(period * 2).unwrap_or(SignedDuration::MAX);
    for attempt in &probe.attempts {
        match attempt.verdict {
            // Whatever the clocks say: who answers is alive.
            verdict if verdict.is_alive() => record.reset_failures(),
            _ if record.last_failure.is_some_and(|last| attempt.at <= last) => {}
            Verdict::Unreachable => {
                if record.last_failure.is_some_and(|last| attempt.at.duration_since(last) > gap) {
                    record.reset_failures();
                }
                record.failures = record.failures.saturating_add(1);
                record.first_failure.get_or_insert(attempt.at);
                record.last_failure = Some(attempt.at);
            }
            _ => {}
        }
    }
    record
}

/// Whether the failures are enough, over enough time.
#[must_use]
pub fn enough_failures(record: &SiteRecord, policy: &Policy) -> bool {
    record.failures >= policy.failures && span(record) >= policy.span
}

/// Time from the first failed attempt to the last.
fn span(record: &SiteRecord) -> Duration {
    let ends = record.first_failure.zip(record.last_failure);
    ends.and_then(|(first, last)| Duration::try_from(last.duration_since(first)).ok()).unwrap_or_default()
}

/// An operator's word counts in the outage in which it was given: not in advance, and not in the next one.
fn same_outage(before: &SiteRecord, after: &SiteRecord) -> bool {
    before.phase.is_outage() && after.phase.is_outage() && before.first_failure == after.first_failure
}

/// Decides.
#[must_use]
pub fn decide(facts: &Facts, policy: &Policy) -> Decision {
    // Patroni writes its configuration and `initialize` only when the first copy is whole: until then nothing says what this site is.
    let born = facts.config.text.is_some() && facts.config.initialize.is_some();
    let mut decision = if !born {
        let reason = "the local cluster is not initialized yet: its first copy may still run";
        Decision::new(Plan::Nothing, reason, &facts.record)
    } else if facts.config.standby_cluster.is_none() {
        already_leads(facts)
    } else if facts.confirm.is_some() {
        let mut record = facts.record.clone();
        remember_sightings(facts, &mut record);
        ask_guards(facts, policy, record)
    } else {
        match &facts.probe {
            Err(why) => Decision::new(Plan::Refuse, format!("the probe's facts can't be used: {why}"), &facts.record)
                .alert_if(blind_for_long(&facts.record, facts.now, policy), |reason| {
                    Alert::warning("ProbeBlind", reason)
                }),
            Ok(probe) => watch(facts, probe, policy),
        }
    };
    if let Some(word) = &facts.guard.approval
        && !same_outage(&facts.record, &decision.record)
    {
        decision.record.note(facts.now, format!("approval {word:?} removed: it is not for an outage that lasts"));
        decision.forget_approval = true;
    }
    decision
}

/// This site's configuration has no `standby_cluster`: it leads, or is about to.
fn already_leads(facts: &Facts) -> Decision {
    let mut record = facts.record.clone();
    if record.phase == Phase::Promoting {
        return Decision::new(Plan::Verify, "standby_cluster is removed; this site must lead soon", &record);
    }
    // Its members were not started: that its configuration has no standby_cluster says nothing.
    if record.phase == Phase::Held {
        let reason = "this site is held: its members do not start, as its peer leads with what was its data";
        return Decision::new(Plan::Nothing, reason, &record);
    }
    if record.phase != Phase::Promoted {
        let how = if facts.config.sed_leftover { "by an edit that left the key \"null\"" } else { "by somebody else" };
        let reason = format!("this site was promoted {how}: its configuration has no standby_cluster");
        record.note(facts.now, &reason);
        record.promotion = Some(Promotion {
            decided: facts.now,
            by: Promotion::OBSERVED.to_owned(),
            reason: reason.clone(),
            from_timeline: None,
            lsn: None,
            to_timeline: None,
            verified: None,
            overrides: Vec::new(),
            announced: None,
        });
        (record.epoch, record.phase) = (record.next_epoch(), Phase::Promoting);
        record.reset_failures();
        return Decision::new(Plan::Verify, reason, &record);
    }
    if let Ok(probe) = &facts.probe
        && probe.verdict == Verdict::Healthy
        && probe.peer.in_recovery == Some(false)
    {
        let reason = format!(
            "both sites lead: this site is promoted, and {} accepts writes too; keep clients away from one of them",
            probe.host
        );
        return Decision::new(Plan::Refuse, reason, &record)
            .alert_if(true, |reason| Alert::warning("SplitBrain", reason));
    }
    let news = record.has_news(facts.now);
    Decision::new(Plan::Nothing, format!("this site leads already (epoch {})", record.epoch), &record)
        .alert_if(news, |reason| Alert::warning("Promoted", reason))
}

/// The ordinary run: what the probe says, and what follows from it.
fn watch(facts: &Facts, probe: &ProbeFacts, policy: &Policy) -> Decision {
    let mut record = tally(&facts.record, probe, policy.period);
    match probe.verdict {
        verdict if verdict.is_alive() => {
            // Without our own position it vouches for nothing: an older one that has both says more.
            if let Some(good) = last_good(facts, probe).filter(|good| good.local_lsn.is_some()) {
                record.last_good = Some(good);
            }
            if record.phase.is_outage() {
                record.note(facts.now, format!("the peer answers again: {verdict}"));
                record.call_off(Phase::Watching);
            }
            let asked = &facts.guard.witnesses;
            record.witnesses.retain(|url, _| asked.iter().any(|witness| witness.url == *url));
            remember_sightings(facts, &mut record);
            let decision = Decision::new(Plan::Nothing, format!("the peer is alive: {}", probe.reason), &record);
            if blind_for_long(&record, facts.now, policy) {
                return decision.alert_if(true, |reason| Alert::warning("ProbeBlind", unlearned(reason)));
            }
            if let Some(blind) = blind_third_party(facts, &record, policy) {
                return decision.alert_if(true, |_| Alert::warning("WitnessBlind", blind));
            }
            decision.alert_if(record.owes_all_clear(), |_| Alert::normal("PeerBack", "the peer answers again"))
        }
        Verdict::Unreachable => {
            remember_sightings(facts, &mut record);
            if record.phase == Phase::Watching {
                record.note(facts.now, format!("the peer is unreachable: {}", probe.reason));
                record.phase = Phase::Suspect;
            }
            if enough_failures(&record, policy) {
                return ask_guards(facts, policy, record);
            }
            let reason = format!(
                "the peer is unreachable: {} of {} failures over {} of {}; waiting",
                record.failures,
                policy.failures,
                human(span(&record)),
                human(policy.span)
            );
            Decision::new(Plan::Nothing, reason, &record)
        }
        Verdict::Misconfigured => {
            Decision::new(Plan::Mend, format!("the probe is misconfigured: {}", probe.reason), &record)
                .alert_if(blind_for_long(&facts.record, facts.now, policy), |reason| {
                    Alert::warning("ProbeBlind", reason)
                })
        }
        _ => Decision::new(Plan::Nothing, format!("the probe learned nothing: {}", probe.reason), &record)
            .alert_if(blind_for_long(&facts.record, facts.now, policy), |reason| Alert::warning("ProbeBlind", reason)),
    }
}

/// Failures are enough, or a person decided: every guard is asked, none is skipped.
fn ask_guards(facts: &Facts, policy: &Policy, mut record: SiteRecord) -> Decision {
    let evidence = guards(facts, &record, policy);
    let stopped: Vec<&str> =
        evidence.iter().filter(|evidence| !evidence.passed).map(|evidence| evidence.guard).collect();
    if !stopped.is_empty() {
        // What an operator or a promotion wrote (held, promoted, following) is not ours to forget.
        if matches!(record.phase, Phase::AwaitingApproval | Phase::Promoting) {
            record.call_off(Phase::Suspect);
        }
        let reason = format!("promotion refused by {}: {}", stopped.join(", "), first_finding(&evidence));
        return Decision::new(Plan::Refuse, reason, &record)
            .with_evidence(evidence)
            .alert_if(true, |reason| Alert::warning("PromotionRefused", reason));
    }
    let epoch = record.next_epoch();
    let approved = same_outage(&facts.record, &record)
        && facts.guard.approval.as_deref().map(str::trim) == Some(epoch.to_string().as_str());
    let by = match (&facts.confirm, policy.mode) {
        (Some(_), _) => CONFIRMED,
        (None, Mode::Auto) => "auto",
        (None, Mode::Approve) if approved => "approved",
        (None, Mode::Approve) => {
            if record.phase != Phase::AwaitingApproval {
                record.note(facts.now, format!("every guard passes; promotion to epoch {epoch} awaits approval"));
                record.call_off(Phase::AwaitingApproval);
            }
            let reason = format!(
                "the peer is gone and every guard passes; to promote, set the annotation lifeboat/approve: \"{epoch}\" on the site's state ConfigMap"
            );
            return Decision::new(Plan::Nothing, reason, &record)
                .with_evidence(evidence)
                .alert_if(true, |reason| Alert::warning("AwaitingApproval", reason));
        }
        (None, Mode::Off) => {
            if matches!(record.phase, Phase::AwaitingApproval | Phase::Promoting) {
                record.call_off(Phase::Suspect);
            }
            let reason = "every guard passes, but the mode is off: would promote";
            return Decision::new(Plan::Nothing, reason, &record)
                .with_evidence(evidence)
                .alert_if(true, |reason| Alert::warning("PeerUnreachable", reason));
        }
    };
    if record.phase == Phase::Promoting {
        let reason = record.promotion.as_ref().map(|promotion| promotion.reason.clone()).unwrap_or_default();
        return Decision::new(Plan::Promote, reason, &record).with_evidence(evidence);
    }
    let reason = promotion_reason(facts, &record);
    record.note(facts.now, format!("promotion to epoch {epoch} decided ({by}): {reason}"));
    let local = facts.guard.local.as_ref().ok();
    let overrides = facts.confirm.iter().flat_map(|confirm| &confirm.overrides);
    record.promotion = Some(Promotion {
        decided: facts.now,
        by: by.to_owned(),
        reason: reason.clone(),
        from_timeline: local.and_then(|local| local.timeline),
        lsn: local.and_then(|local| local.lsn),
        to_timeline: None,
        verified: None,
        overrides: overrides.map(|guard| guard.name().to_owned()).collect(),
        announced: None,
    });
    (record.epoch, record.phase) = (epoch, Phase::Promoting);
    Decision::new(Plan::Promote, reason, &record).with_evidence(evidence)
}

fn promotion_reason(facts: &Facts, record: &SiteRecord) -> String {
    match &facts.confirm {
        Some(Confirm { overrides, reason }) if overrides.is_empty() => format!("confirmed by a person: {reason}"),
        Some(Confirm { overrides, reason }) => {
            let names: Vec<&str> = overrides.iter().map(|guard| guard.name()).collect();
            format!("confirmed by a person, setting aside {}: {reason}", names.join(", "))
        }
        None => format!("the peer was unreachable {} times over {}", record.failures, human(span(record))),
    }
}

/// Keeps who sees the living peer: in an outage too, as it may be one of our link only.
fn remember_sightings(facts: &Facts, record: &mut SiteRecord) {
    remember_lease(facts, record);
    let asked = &facts.guard.witnesses;
    for witness in asked.iter().filter(|witness| witness.said.as_ref().is_ok_and(|verdict| verdict.is_alive())) {
        record.witnesses.insert(witness.url.clone(), facts.now);
    }
}

/// Keeps the peer's lease, so that the next run knows since when it has not been renewed.
fn remember_lease(facts: &Facts, record: &mut SiteRecord) {
    match &facts.guard.second_path {
        Some(path @ SecondPath { lease: Ok(lease), .. }) if path.is_of(facts.config.initialize) => {
            record.peer_lease = Some(lease.clone());
        }
        // A person's run may ask by another way, or nobody: what the monitor saw stays.
        None if facts.confirm.is_none() => record.peer_lease = None,
        _ => {}
    }
}

/// A witness or a second path that does not see the living peer is told while it lives: on the day of an outage it would refuse.
fn blind_third_party(facts: &Facts, record: &SiteRecord, policy: &Policy) -> Option<String> {
    let old = |seen: Option<Timestamp>| seen.is_none_or(|seen| facts.now.duration_since(seen) > policy.memory());
    let witness = facts.guard.witnesses.iter().find(|witness| old(record.witnesses.get(&witness.url).copied()));
    let since = record.peer_lease.as_ref().map(|lease| lease.since);
    let of_ours = |path: &SecondPath| path.is_of(facts.config.initialize);
    let path = facts.guard.second_path.as_ref();
    let path = path.filter(|path| old(since) || path.leads_without.is_some() || path.lease.is_ok() && !of_ours(path));
    let (who, says) = match (witness, path) {
        (Some(WitnessFacts { url, said: Ok(verdict) }), _) => (format!("witness {url}"), verdict.to_string()),
        (Some(WitnessFacts { url, said: Err(why) }), _) => (format!("witness {url}"), format!("no answer: {why}")),
        (None, Some(SecondPath { context, lease: Err(why), .. })) => (format!("context {context}"), why.clone()),
        (None, Some(path)) if !of_ours(path) => (format!("context {}", path.context), foreign(path)),
        (None, Some(SecondPath { context, leads_without: Some(why), .. })) => {
            (format!("context {context}"), (*why).to_owned())
        }
        (None, Some(SecondPath { context, .. })) => (format!("context {context}"), "no leader renews its lease".into()),
        (None, None) => return None,
    };
    Some(format!("the peer is alive, but {who} could not tell its loss ({says}): promotion would be refused"))
}

/// The peer's facts beside our own position, if the probe learned them from a peer that leads.
fn last_good(facts: &Facts, probe: &ProbeFacts) -> Option<LastGood> {
    if probe.verdict != Verdict::Healthy || probe.peer.in_recovery != Some(false) {
        return None;
    }
    Some(LastGood {
        time: probe.taken,
        system_id: probe.peer.system_id?,
        timeline: probe.peer.timeline?,
        peer_lsn: probe.peer.lsn?,
        local_lsn: facts.guard.local.as_ref().ok().and_then(|local| local.lsn),
        path: probe.path,
    })
}

/// An answer alone vouches for nothing: without a last good probe there is no promotion on the day that it is needed.
fn unlearned(reason: &str) -> String {
    format!(
        "{reason}; but no probe learned its identity, its position and ours for long, so promotion would be refused"
    )
}

/// A probe that learns nothing for five periods must be told: the site is unwatched.
fn blind_for_long(record: &SiteRecord, now: Timestamp, policy: &Policy) -> bool {
    record.last_good.as_ref().is_none_or(|good| now.duration_since(good.time) > policy.memory())
}

fn first_finding(evidence: &[Evidence]) -> String {
    let first = evidence.iter().find(|evidence| !evidence.passed);
    first.map(|evidence| format!("{} (needs: {})", evidence.found, evidence.required)).unwrap_or_default()
}

impl Decision {
    fn new(plan: Plan, reason: impl Into<String>, record: &SiteRecord) -> Self {
        Self {
            plan,
            reason: reason.into(),
            evidence: Vec::new(),
            record: record.clone(),
            forget_approval: false,
            alert: None,
        }
    }

    fn with_evidence(mut self, evidence: Vec<Evidence>) -> Self {
        self.evidence = evidence;
        self
    }

    fn alert_if(mut self, condition: bool, alert: impl FnOnce(&str) -> Alert) -> Self {
        self.alert = condition.then(|| alert(&self.reason));
        self
    }
}
