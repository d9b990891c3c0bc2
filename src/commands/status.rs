//! `status`: both sites, or one, as their own records show them; what `promote` would say now; and plainly, whether one site leads.

use std::{ffi::OsString, fmt::Write, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::{Session, Step, misconfigured},
    flags::{Size, human},
    kubernetes::{Cluster, ClusterOptions},
    outcome::{Conclusion, Report},
    patroni::{ClusterConfig, LeaderRecord, Member, MemberRole, Scope, leader_lsn},
    postgres::{Lsn, SystemId, Timeline},
    site::{APPROVE, HOLD, MAINTENANCE, SiteRecord},
};

/// Show the sites: who leads, how far the standby is, what was probed, and what a promotion would meet
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Patroni's scope on this site
    #[arg(long, env = "LIFEBOAT_SCOPE", value_name = "NAME")]
    scope: Scope,

    /// Context of the kubeconfig that leads to the other site
    #[arg(long, env = "LIFEBOAT_PEER_CONTEXT", value_name = "CONTEXT")]
    peer_context: Option<String>,

    /// Namespace in the other site's cluster (default: the context's)
    #[arg(long, env = "LIFEBOAT_PEER_NAMESPACE", value_name = "NAME", requires = "peer_context")]
    peer_namespace: Option<String>,

    /// Patroni's scope on the other site (default: --scope)
    #[arg(long, env = "LIFEBOAT_PEER_SCOPE", value_name = "NAME", requires = "peer_context")]
    peer_scope: Option<Scope>,

    /// Leave out what a promotion would meet: asking all its guards takes up to one round of Patroni
    #[arg(long, env = "LIFEBOAT_QUICK")]
    quick: bool,

    /// More flags of promote for that question, such as `-- --witness URL`
    #[arg(last = true, value_name = "FLAG")]
    promote: Vec<OsString>,
}

/// What a site is, by its own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Primary,
    Standby,
    /// Its configuration makes it a primary, and its leader has not told of that yet.
    Promoting,
    /// Its leader is not what the configuration says, or nobody leads.
    Leaderless,
    /// Its first copy still runs, or was never begun.
    Uninitialized,
    /// It could not be asked.
    Unknown,
}

/// One site.
#[derive(Debug, Serialize)]
struct Site {
    place: String,
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    leader: Option<String>,
    system_id: Option<SystemId>,
    timeline: Option<Timeline>,
    lsn: Option<Lsn>,
    follows: Option<String>,
    paused: bool,
    members: Vec<MemberLine>,
    record: Option<SiteRecord>,
    /// The operator's annotations.
    words: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
struct MemberLine {
    name: String,
    role: MemberRole,
    state: String,
    timeline: Option<Timeline>,
    lsn: Option<Lsn>,
    replication_state: Option<String>,
    version: Option<String>,
}

impl Status {
    /// Looks and tells; changes nothing.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let cluster = session.cluster().await?;
        let (here, there) = tokio::join!(look("this site", cluster, &self.scope), self.look_there());
        let promotion = match &here {
            Site { role: Role::Standby, record, .. } if !self.quick => {
                let dry = session.dry();
                Some(self.promotion_step(record.as_ref(), &dry)?.run(&dry).await)
            }
            _ => None,
        };
        let sites: Vec<Site> = std::iter::once(here).chain(there).collect();
        let (conclusion, reason) = conclude(&sites);
        let mut report = Report::new(conclusion, reason).with("sites", &sites);
        if let Some(promotion) = &promotion {
            report = report.with("promotion", promotion_json(promotion));
        }
        report.table = Some(table(&sites, promotion.as_ref(), Timestamp::now()));
        Ok(report)
    }

    /// A person's `promote`, to be run dry: it asks every guard, without a probe.
    fn promotion_step(&self, record: Option<&SiteRecord>, session: &Session) -> anyhow::Result<Step> {
        let words = ["promote", "--scope", &self.scope.0, "--confirm", "--reason", "asked by status"];
        let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        words.extend(record.into_iter().flat_map(|record| ["--site".into(), record.site.clone().into()]));
        if let Some(context) = &self.peer_context {
            words.extend(["--peer-context".into(), context.into()]);
            words.extend(self.peer_namespace.iter().flat_map(|name| ["--peer-namespace".into(), name.into()]));
            words.extend(self.peer_scope.iter().flat_map(|scope| ["--peer-scope".into(), scope.0.clone().into()]));
        }
        words.extend(self.promote.iter().cloned());
        misconfigured(Step::parse(&words, session))
    }

    async fn look_there(&self) -> Option<Site> {
        let context = self.peer_context.clone()?;
        let options = ClusterOptions { context: Some(context.clone()), namespace: self.peer_namespace.clone() };
        let (scope, place) = (self.peer_scope.as_ref().unwrap_or(&self.scope), format!("context {context}"));
        Some(match Cluster::connect(&options).await {
            Ok(cluster) => look(&place, &cluster, scope).await,
            Err(error) => Site::unknown(&place, Some(format!("{error:#}"))),
        })
    }
}

/// One site. What could not be asked is said in its place: the other site is still worth showing.
async fn look(place: &str, cluster: &Cluster, scope: &Scope) -> Site {
    let mut site = Site::unknown(place, None);
    if let Err(error) = fill(&mut site, cluster, scope).await {
        site.error = Some(format!("{error:#}"));
    }
    site
}

impl Site {
    fn unknown(place: &str, error: Option<String>) -> Self {
        Self {
            place: place.to_owned(),
            role: Role::Unknown,
            error,
            leader: None,
            system_id: None,
            timeline: None,
            lsn: None,
            follows: None,
            paused: false,
            members: Vec::new(),
            record: None,
            words: Vec::new(),
        }
    }
}

async fn fill(site: &mut Site, cluster: &Cluster, scope: &Scope) -> anyhow::Result<()> {
    let config = ClusterConfig::read(&cluster.configmap(&scope.config()).await?)?;
    let map = cluster.configmap(&scope.leader()).await?;
    site.leader = LeaderRecord::read(&map).map(|record| record.leader);
    (site.system_id, site.paused) = (config.initialize, config.paused);
    site.follows = config.standby_cluster.as_ref().map(|peer| {
        format!(
            "{}:{}",
            peer.host.as_deref().unwrap_or("archive"),
            peer.port.map_or("?".into(), |port| port.to_string())
        )
    });
    if let Some((record, map)) = cluster.find_site_record(scope).await? {
        if record.site != "local" {
            site.place = format!("{} ({})", record.site, site.place);
        }
        site.record = Some(record);
        let word = |key: &str| Some((key.to_owned(), map.annotations.get(key)?.clone()));
        site.words = [HOLD, MAINTENANCE, APPROVE].into_iter().filter_map(word).collect();
    }
    let members = Member::all(cluster, scope).await?;
    let leads = members.iter().find(|member| Some(&member.name) == site.leader.as_ref());
    site.role = match (config.initialize, leads.map(|member| member.role)) {
        (None, _) => Role::Uninitialized,
        (_, Some(MemberRole::Primary)) if config.standby_cluster.is_none() => Role::Primary,
        (_, Some(MemberRole::StandbyLeader | MemberRole::Promoted)) if config.standby_cluster.is_none() => {
            Role::Promoting
        }
        (_, Some(MemberRole::StandbyLeader)) => Role::Standby,
        _ => Role::Leaderless,
    };
    site.timeline = leads.and_then(|member| member.timeline);
    site.lsn = leader_lsn(&map).max(leads.and_then(|member| member.lsn));
    site.members = members
        .into_iter()
        .map(|Member { name, role, state, timeline, lsn, replication_state, version, .. }| MemberLine {
            name,
            role,
            state,
            timeline,
            lsn,
            replication_state,
            version,
        })
        .collect();
    Ok(())
}

/// What the sites are together. One site alone is judged by itself.
fn conclude(sites: &[Site]) -> (Conclusion, String) {
    let names = |roles: &[Role]| -> Vec<&str> {
        sites.iter().filter(|site| roles.contains(&site.role)).map(|site| site.place.as_str()).collect()
    };
    let (leading, unknown) = (names(&[Role::Primary, Role::Promoting]), names(&[Role::Unknown]));
    let ids: Vec<SystemId> = sites.iter().filter_map(|site| site.system_id).collect();
    if ids.windows(2).any(|pair| pair[0] != pair[1]) {
        return (
            Conclusion::Unverified,
            "the sites are different databases: their system identifiers differ".to_owned(),
        );
    }
    match (leading.as_slice(), unknown.as_slice()) {
        ([_, _, ..], _) => (
            Conclusion::Unverified,
            format!("BOTH SITES LEAD: {}; keep clients away from one of them", leading.join(" and ")),
        ),
        (_, [first, ..]) => {
            let error = sites.iter().find_map(|site| site.error.clone()).unwrap_or_default();
            (Conclusion::Failed, format!("{first} can't be asked: {error}"))
        }
        ([one], _) => (Conclusion::Done, format!("{one} leads")),
        ([], _) if sites.len() == 1 && sites[0].role == Role::Standby => {
            (Conclusion::Done, format!("{} is a standby", sites[0].place))
        }
        ([], _) => (Conclusion::Unverified, "no site leads".to_owned()),
    }
}

fn promotion_json(report: &Report) -> serde_json::Value {
    serde_json::json!({
        "would": report.conclusion, "reason": report.reason, "evidence": report.evidence,
    })
}

fn table(sites: &[Site], promotion: Option<&Report>, now: Timestamp) -> String {
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
    if let Some(report) = promotion {
        let _ = writeln!(text, "\n  a promotion by a person now: {}", report.reason);
        for evidence in &report.evidence {
            let mark = if evidence.passed { "ok  " } else { "STOP" };
            let _ = writeln!(text, "    {mark} {:12} {}", evidence.guard, evidence.found);
        }
    }
    text
}

fn site_table(text: &mut String, site: &Site, now: Timestamp) {
    let or = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let role = format!("{:?}", site.role).to_lowercase();
    let _ = writeln!(text, "\n  {}: {role}{}", site.place, if site.paused { ", Patroni is paused" } else { "" });
    if let Some(error) = &site.error {
        let _ = writeln!(text, "    {error}");
    }
    if let Some(follows) = &site.follows {
        let _ = writeln!(text, "    follows {follows}");
    }
    let timeline = or(site.timeline.map(|timeline| timeline.to_string()));
    let lsn = or(site.lsn.map(|lsn| lsn.to_string()));
    let _ = writeln!(text, "    leader {}, timeline {timeline}, position {lsn}", or(site.leader.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn site(place: &str, role: Role) -> Site {
        Site {
            role,
            system_id: Some(SystemId(7)),
            lsn: Some(Lsn(0x0100_0000)),
            record: Some(SiteRecord::new(place)),
            words: vec![(HOLD.into(), "drill".into())],
            ..Site::unknown(place, (role == Role::Unknown).then(|| "timed out".into()))
        }
    }

    #[test]
    fn sites_are_judged_together() {
        use Role::{Leaderless, Primary, Promoting, Standby, Unknown};
        for (roles, conclusion, said) in [
            (&[Primary, Standby][..], Conclusion::Done, "gold leads"),
            (&[Primary, Primary], Conclusion::Unverified, "BOTH SITES LEAD: gold and golddr"),
            (&[Primary, Promoting], Conclusion::Unverified, "BOTH SITES LEAD"),
            (&[Standby, Standby], Conclusion::Unverified, "no site leads"),
            (&[Leaderless, Standby], Conclusion::Unverified, "no site leads"),
            (&[Unknown, Standby], Conclusion::Failed, "gold can't be asked: timed out"),
            (&[Standby], Conclusion::Done, "gold is a standby"),
            (&[Leaderless], Conclusion::Unverified, "no site leads"),
        ] {
            let sites: Vec<Site> =
                roles.iter().zip(["gold", "golddr"]).map(|(&role, place)| site(place, role)).collect();
            let (found, reason) = conclude(&sites);
            assert_eq!(found, conclusion, "{roles:?}");
            assert!(reason.contains(said), "{reason}");
        }
        let mut other = site("golddr", Standby);
        other.system_id = Some(SystemId(8));
        assert!(conclude(&[site("gold", Primary), other]).1.contains("different databases"));
    }

    #[test]
    fn table_names_holds_and_the_distance() {
        let mut behind = site("golddr", Role::Standby);
        behind.lsn = Some(Lsn(0x00ff_fc00));
        let text = table(&[site("gold", Role::Primary), behind], None, Timestamp::UNIX_EPOCH);
        for said in
            ["gold: primary", "golddr: standby", "lifeboat/hold: drill", "between the sites: 1KiB", "phase watching"]
        {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }
}
