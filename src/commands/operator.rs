//! `hold`, `release`, `approve`: an operator's word on the promotion of a site, with who said it and why in the audit.
//!
//! Each is an annotation of the site's state ConfigMap, which `promote` reads in every run. By hand they work too
//! (`kubectl annotate`); these commands also look whether the word fits, write the audit, and read back what they wrote.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;

use crate::{
    cli::{Session, misconfigured},
    flags,
    kubernetes::{Conflict, Snapshot},
    outcome::{Refused, Report},
    patroni::Scope,
    site::{APPROVE, HOLD, MAINTENANCE, Phase, SiteRecord},
};

const ROUNDS: u32 = 8;

/// Whose site, and why.
#[derive(Debug, clap::Args)]
struct Word {
    /// Patroni's scope on this site: it names the ConfigMap `<scope>-dr`
    #[arg(long, env = "LIFEBOAT_SCOPE", value_name = "NAME")]
    scope: Scope,

    /// Why, for the audit and for those who wonder later
    #[arg(long, env = "LIFEBOAT_REASON", value_name = "TEXT")]
    reason: String,
}

/// Forbid the promotion of this site, until it is released or for a time
#[derive(Debug, clap::Args)]
pub struct Hold {
    #[command(flatten)]
    word: Word,

    /// Only for this time, as for a maintenance of the peer: the hold then ends by itself
    #[arg(long = "for", env = "LIFEBOAT_FOR", value_name = "DURATION", value_parser = flags::positive_duration)]
    span: Option<Duration>,
}

/// Lift a hold and a maintenance of this site; let an old primary that is held lead again
#[derive(Debug, clap::Args)]
pub struct Release {
    #[command(flatten)]
    word: Word,
}

/// Approve the promotion of this site that waits for a person
#[derive(Debug, clap::Args)]
pub struct Approve {
    #[command(flatten)]
    word: Word,

    /// The epoch that the alert named; without it, whichever waits
    #[arg(long, env = "LIFEBOAT_EPOCH", value_name = "N")]
    epoch: Option<u64>,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    annotations: Vec<(&'static str, Option<String>)>,
    event: String,
    /// An old primary may lead again.
    let_go: bool,
}

impl Hold {
    /// Writes the hold.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let Self { word, span } = self;
        let until = misconfigured(span.map(|span| end_of(Timestamp::now(), span)).transpose())?;
        let decide = |record: &SiteRecord, _: &Snapshot, reason: &str| Ok(Some(hold(record, until, reason)));
        word.say(session, decide).await
    }
}

impl Release {
    /// Removes hold and maintenance.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        self.word.say(session, |record, map, reason| Ok(release(record, map, reason))).await
    }
}

impl Approve {
    /// Writes the approval of the promotion that waits.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let Self { word, epoch } = self;
        word.say(session, |record, _, reason| approve(record, epoch, reason)).await
    }
}

/// The last year that a time can name is 9999.
fn end_of(now: Timestamp, span: Duration) -> anyhow::Result<Timestamp> {
    let end = jiff::SignedDuration::try_from(span).and_then(|span| now.checked_add(span));
    end.with_context(|| format!("--for {} is too long", flags::human(span)))
}

fn hold(record: &SiteRecord, until: Option<Timestamp>, reason: &str) -> Change {
    let late =
        if record.phase == Phase::Promoting { "; a promotion has begun, and may be past the last look" } else { "" };
    match until {
        Some(until) => Change {
            annotations: vec![(MAINTENANCE, Some(format!("{until:.0}")))],
            event: format!("maintenance until {until:.0}: {reason}{late}"),
            let_go: false,
        },
        None => Change {
            annotations: vec![(HOLD, Some(reason.to_owned()))],
            event: format!("held: {reason}{late}"),
            let_go: false,
        },
    }
}

/// A site that is held as an old primary is free to lead again after this.
fn release(record: &SiteRecord, map: &Snapshot, reason: &str) -> Option<Change> {
    let annotations = [HOLD, MAINTENANCE].into_iter().filter(|key| map.annotations.contains_key(*key));
    let there: Vec<&str> = annotations.chain((record.phase == Phase::Held).then_some("phase held")).collect();
    (!there.is_empty()).then(|| Change {
        annotations: vec![(HOLD, None), (MAINTENANCE, None)],
        event: format!("released ({}): {reason}", there.join(", ")),
        let_go: record.phase == Phase::Held,
    })
}

/// An approval in advance would be removed by the next run of `promote`: better to say so now.
fn approve(record: &SiteRecord, epoch: Option<u64>, reason: &str) -> anyhow::Result<Option<Change>> {
    let waits = record.next_epoch();
    if !matches!(record.phase, Phase::Suspect | Phase::AwaitingApproval) {
        bail!(
            "no promotion waits for approval: the phase is {}; an approval counts only in the outage in which it is given",
            record.phase
        );
    }
    if let Some(epoch) = epoch.filter(|epoch| *epoch != waits) {
        bail!("the promotion that waits is the one to epoch {waits}, not {epoch}: look at the site again");
    }
    let event = format!("promotion to epoch {waits} approved: {reason}");
    Ok(Some(Change { annotations: vec![(APPROVE, Some(waits.to_string()))], event, let_go: false }))
}

impl Word {
    /// Reads, decides, writes by compare-and-swap, and reads back.
    async fn say(
        self,
        session: &Session,
        decide: impl Fn(&SiteRecord, &Snapshot, &str) -> anyhow::Result<Option<Change>>,
    ) -> anyhow::Result<Report> {
        let (reason, state) = (self.reason.trim(), self.scope.state());
        if reason.is_empty() {
            return misconfigured(Err(anyhow!("--reason is empty: those who come later will want to know")));
        }
        let cluster = session.cluster().await?;
        let who = cluster.own_name().await?;
        for _ in 0..ROUNDS {
            let (mut record, map) = cluster.find_site_record(&self.scope).await?.ok_or_else(|| {
                anyhow!("ConfigMap {state} holds no record yet: the monitor writes it in its first run; is this the standby site?")
            })?;
            let Some(change) = decide(&record, &map, reason).map_err(|error| error.context(Refused))? else {
                return Ok(Report::nothing_to_do("neither held nor in maintenance").with("phase", record.phase));
            };
            let event = format!("{} (by {who})", change.event);
            if session.dry_run {
                return Ok(Report::nothing_to_do(format!("would write: {event}")).with("phase", record.phase));
            }
            record.note(Timestamp::now(), event.clone());
            if change.let_go {
                record.let_go();
            }
            let annotations: Vec<_> = change.annotations.iter().map(|(key, value)| (*key, value.as_deref())).collect();
            match cluster.write_site_record(&self.scope, &record, Some(&map), &annotations).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => continue,
                result => result?,
            };
            let after = cluster.configmap(&state).await?;
            let differs =
                annotations.iter().find(|(key, value)| after.annotations.get(*key).map(String::as_str) != *value);
            if let Some((key, _)) = differs {
                bail!("somebody changed the annotation {key} of ConfigMap {state} right after us: look at it");
            }
            return Ok(Report::done(event).with("phase", record.phase).with("epoch", record.epoch));
        }
        bail!("ConfigMap {state} kept changing under {ROUNDS} attempts; run it again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_is_for_the_promotion_that_waits_only() {
        let mut record = SiteRecord { epoch: 4, ..SiteRecord::new("golddr") };
        for phase in [Phase::Watching, Phase::Promoting, Phase::Promoted, Phase::Held, Phase::Following] {
            record.phase = phase;
            assert!(approve(&record, None, "x").is_err(), "{phase}");
        }
        for phase in [Phase::Suspect, Phase::AwaitingApproval] {
            record.phase = phase;
            let change = approve(&record, Some(5), "x").unwrap().unwrap();
            assert_eq!(change.annotations, [(APPROVE, Some("5".to_owned()))]);
            assert!(approve(&record, Some(4), "x").is_err(), "the epoch of an older alert");
        }
    }

    #[test]
    fn hold_with_a_time_is_a_maintenance() {
        let record = SiteRecord::new("golddr");
        assert_eq!(hold(&record, None, "drill").annotations, [(HOLD, Some("drill".to_owned()))]);
        let until = "2026-01-01T00:00:00Z".parse().unwrap();
        let annotations = hold(&record, Some(until), "drill").annotations;
        assert_eq!(annotations, [(MAINTENANCE, Some("2026-01-01T00:00:00Z".to_owned()))]);
    }

    #[test]
    fn hold_beyond_the_last_year_is_an_error() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(end_of(now, Duration::from_hours(2)).unwrap().to_string(), "2026-01-01T02:00:00Z");
        for span in [Duration::from_hours(24 * 365 * 8000), Duration::MAX] {
            let error = format!("{:#}", end_of(now, span).unwrap_err());
            assert!(error.starts_with("--for "), "{error}");
        }
    }

    #[test]
    fn release_of_nothing_changes_nothing() {
        let (mut record, mut map) = (SiteRecord::new("gold"), Snapshot::default());
        assert_eq!(release(&record, &map, "over"), None);
        map.annotations.insert(HOLD.to_owned(), "drill".to_owned());
        let change = release(&record, &map, "over").unwrap();
        assert_eq!((change.annotations, change.let_go), (vec![(HOLD, None), (MAINTENANCE, None)], false));
        record.phase = Phase::Held;
        assert!(release(&record, &Snapshot::default(), "over").unwrap().let_go);
    }
}
