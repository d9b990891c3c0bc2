//! What a terminal shows of the sites.

use std::{fmt::Write, time::Duration};

use jiff::Timestamp;

use super::{Lease, Site};
use crate::{
    flags::{Size, human},
    outcome::Report,
    site::SiteRecord,
};

pub(super) fn table(sites: &[Site], monitor: Option<&str>, promotion: Option<&Report>, now: Timestamp) -> String {
    let mut text = String::new();
    for site in sites {
        site_table(&mut text, site, now);
    }
    if let [one, other] = sites
        && one.timeline == other.timeline
        && let (Some(a), Some(b)) = (one.lsn, other.lsn)
    {
        let _ = writeln!(
            text,
            "\n  between the sites: {} of WAL, as Patroni last told",
            Size(a.max(b).bytes_since(a.min(b)))
        );
    }
    if let Some(monitor) = monitor {
        let _ = writeln!(text, "\n  the monitor of this site: {monitor}");
    }
    if let Some(report) = promotion {
        let passes = report.conclusion.is_success() && !report.evidence.is_empty();
        let answer = if passes { "every guard passes" } else { report.reason.as_str() };
        let _ = writeln!(text, "\n  a promotion by a person now: {answer}");
        for evidence in &report.evidence {
            let mark = if evidence.passed { "ok  " } else { "STOP" };
            let _ = writeln!(text, "    {mark} {:12} {}", evidence.guard, evidence.found);
        }
    }
    text
}

fn site_table(text: &mut String, site: &Site, now: Timestamp) {
    let or = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let role = site.role.word();
    let _ = writeln!(text, "\n  {}: {role}{}", site.place, if site.paused { ", Patroni is paused" } else { "" });
    if let Some(error) = &site.error {
        let _ = writeln!(text, "    {error}");
    }
    if let Some(follows) = &site.follows {
        let _ = writeln!(text, "    follows {follows}");
    }
    let timeline = or(site.timeline.map(|timeline| timeline.to_string()));
    let lsn = or(site.lsn.map(|lsn| lsn.to_string()));
    let lease = match site.lease {
        Lease::Renewed => ", renews its lease",
        Lease::NotRenewed => ", does not renew its lease",
        Lease::NotWatched if site.leader.is_some() => ", lease not watched",
        Lease::NotWatched => "",
    };
    let _ = writeln!(text, "    leader {}{lease}, timeline {timeline}, position {lsn}", or(site.leader.clone()));
    for member in &site.members {
        let replication = member.replication_state.as_deref().unwrap_or("");
        let lsn = or(member.lsn.map(|lsn| lsn.to_string()));
        let role = format!("{:?}", member.role);
        let _ = writeln!(text, "      {:24} {role:14} {:10} {lsn:14} {replication}", member.name, member.state);
    }
    if let Some(record) = &site.record {
        record_table(text, record, now);
    }
    for (key, value) in &site.words {
        let _ = writeln!(text, "    {key}: {value}");
    }
}

fn record_table(text: &mut String, record: &SiteRecord, now: Timestamp) {
    let ago = |time: Timestamp| human(Duration::try_from(now.duration_since(time)).unwrap_or_default());
    let _ = writeln!(text, "    phase {}, epoch {}, {} failures", record.phase, record.epoch, record.failures);
    if let Some(first) = record.first_failure {
        let _ = writeln!(text, "    unreachable since {first:.0} ({} ago)", ago(first));
    }
    if let Some(good) = &record.last_good {
        let lag = good.lag().map_or_else(|| "unknown".to_owned(), |lag| Size(lag).to_string());
        let _ = writeln!(text, "    last good probe {:.0} ({} ago), lag {lag}", good.time, ago(good.time));
    }
    for (url, seen) in &record.witnesses {
        let _ = writeln!(text, "    witness {url} saw the peer {} ago", ago(*seen));
    }
    if let Some(event) = record.audit.back() {
        let _ = writeln!(text, "    last event {:.0}: {}", event.time, event.event);
    }
}
