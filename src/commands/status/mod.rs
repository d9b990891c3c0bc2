//! `status`: both sites, or one, as their own records show them; what `promote` would say now; and plainly, whether one site leads.

mod table;

use std::{ffi::OsString, fmt::Write, time::Duration};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use self::table::table;
use crate::{
    cli::{Session, Step, misconfigured},
    flags::human,
    kubernetes::{Cluster, ClusterOptions},
    outcome::{Conclusion, Report},
    patroni::{ClusterConfig, LeaderRecord, Member, MemberRole, Scope, leader_lsn, renews_lease},
    postgres::{Lsn, SystemId, Timeline},
    site::{APPROVE, HOLD, MAINTENANCE, Phase, SiteRecord},
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

    /// Look once: do not watch whether the leaders renew their leases, nor ask what a promotion would meet. Both take up to a round of Patroni and
    /// more
    #[arg(long, env = "LIFEBOAT_QUICK")]
    quick: bool,

    /// More flags of promote for that question, such as `-- --witness URL`
    #[arg(last = true, value_name = "FLAG")]
    promote: Vec<OsString>,
}

/// What a site is, by its own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Primary,
    Standby,
    /// Its configuration makes it a primary, and its leader has not told of that yet.
    Promoting,
    /// By its records the same three, but nobody renews the leader's lease: the records are of a leader that is gone.
    PrimaryNotRenewed,
    StandbyNotRenewed,
    PromotingNotRenewed,
    /// Its leader is not what the configuration says, or nobody leads.
    Leaderless,
    /// Its first copy still runs, or was never begun.
    Uninitialized,
    /// It could not be asked.
    Unknown,
}

impl Role {
    /// Its leader was not seen to renew its lease.
    fn not_renewed(self) -> Self {
        match self {
            Self::Primary => Self::PrimaryNotRenewed,
            Self::Standby => Self::StandbyNotRenewed,
            Self::Promoting => Self::PromotingNotRenewed,
            other => other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Promoting => "promoting",
            Self::PrimaryNotRenewed => "primary (not renewed)",
            Self::StandbyNotRenewed => "standby (not renewed)",
            Self::PromotingNotRenewed => "promoting (not renewed)",
            Self::Leaderless => "leaderless",
            Self::Uninitialized => "uninitialized",
            Self::Unknown => "unknown",
        }
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// Whether the leader lives, by its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Lease {
    Renewed,
    /// Not within a round of Patroni.
    NotRenewed,
    /// `--quick`, or there is no leader that could renew it.
    NotWatched,
}

/// One site.
#[derive(Debug, Serialize)]
struct Site {
    place: String,
    role: Role,
    lease: Lease,
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
    /// Time in which a leader that lives renews its lease.
    #[serde(skip)]
    round: Duration,
    /// Why its leader may lead without that.
    #[serde(skip)]
    leads_without: Option<&'static str>,
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
        let (mut here, mut there) = tokio::join!(look("this site", cluster, &self.scope), self.look_there());
        let mut promotion = None;
        if !self.quick {
            let dry = session.dry();
            let step = here.is_to_follow().then(|| self.promotion_step(here.record.as_ref(), &dry)).transpose()?;
            let ask = async {
                match &step {
                    Some(step) => Some(step.run(&dry).await),
                    None => None,
                }
            };
            let watch_there = async {
                if let Some((site, Some(cluster))) = &mut there {
                    site.watch(cluster, self.scope_there()).await;
                }
            };
            (promotion, (), ()) = tokio::join!(ask, here.watch(cluster, &self.scope), watch_there);
        }
        let now = Timestamp::now();
        let monitor = monitor_says(&here, now);
        let sites: Vec<Site> = std::iter::once(here).chain(there.map(|(site, _)| site)).collect();
        let (conclusion, reason) = conclude(&sites);
        let mut report = Report::new(conclusion, reason).with("sites", &sites).with("monitor", &monitor);
        if let Some(promotion) = &promotion {
            report = report.with("promotion", promotion_json(promotion));
        }
        report.table = Some(table(&sites, monitor.as_deref(), promotion.as_ref(), now));
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

    fn scope_there(&self) -> &Scope {
        self.peer_scope.as_ref().unwrap_or(&self.scope)
    }

    /// The other site, and its cluster where that could be connected to.
    async fn look_there(&self) -> Option<(Site, Option<Cluster>)> {
        let context = self.peer_context.clone()?;
        let options = ClusterOptions { context: Some(context.clone()), namespace: self.peer_namespace.clone() };
        let place = format!("context {context}");
        Some(match Cluster::connect(&options).await {
            Ok(cluster) => (look(&place, &cluster, self.scope_there()).await, Some(cluster)),
            Err(error) => (Site::unknown(&place, Some(format!("{error:#}"))), None),
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
            lease: Lease::NotWatched,
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
            round: Duration::ZERO,
            leads_without: None,
        }
    }

    /// It is a standby by its configuration, whether or not anybody leads it.
    fn is_to_follow(&self) -> bool {
        self.follows.is_some() && matches!(self.role, Role::Standby | Role::StandbyNotRenewed | Role::Leaderless)
    }

    /// Watches whether the leader renews its lease: what the records say of a dead one stays.
    async fn watch(&mut self, cluster: &Cluster, scope: &Scope) {
        let Some(leader) = self.leader.clone().filter(|_| self.role.not_renewed() != self.role) else { return };
        match renews_lease(cluster, scope, &leader, self.round).await {
            Ok(true) => self.lease = Lease::Renewed,
            Ok(false) => (self.lease, self.role) = (Lease::NotRenewed, self.role.not_renewed()),
            Err(error) => (self.role, self.error) = (Role::Unknown, Some(format!("{error:#}"))),
        }
    }

    /// What is known of a leader that was not seen to renew its lease.
    fn silence(&self) -> String {
        let leader = self.leader.as_deref().unwrap_or_default();
        let without = self.leads_without.map(|why| format!(" ({why})")).unwrap_or_default();
        format!(
            "{} is {}: {leader} was not seen to renew its lease for {}{without}",
            self.place,
            self.role.word(),
            human(self.round)
        )
    }
}

async fn fill(site: &mut Site, cluster: &Cluster, scope: &Scope) -> anyhow::Result<()> {
    let config = ClusterConfig::read(&cluster.configmap(&scope.config()).await?)?;
    let map = cluster.configmap(&scope.leader()).await?;
    site.leader = LeaderRecord::read(&map).map(|record| record.leader);
    (site.system_id, site.paused) = (config.initialize, config.paused);
    (site.round, site.leads_without) = (config.round(), config.leads_without_lease());
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
        _ if sites.iter().any(|site| site.lease == Lease::NotRenewed) => {
            let leads = leading.first().map_or_else(|| "no site leads".to_owned(), |one| format!("{one} leads"));
            let silent = sites.iter().filter(|site| site.lease == Lease::NotRenewed).map(Site::silence);
            (Conclusion::Unverified, [leads].into_iter().chain(silent).collect::<Vec<_>>().join("; "))
        }
        ([one], _) => (Conclusion::Done, format!("{one} leads")),
        ([], _) if sites.len() == 1 && sites[0].role == Role::Standby => {
            (Conclusion::Done, format!("{} is a standby", sites[0].place))
        }
        ([], _) => (Conclusion::Unverified, "no site leads".to_owned()),
    }
}

/// Where the monitor of this site stands, by its record: only that knows, and it does not know the mode but where one waits for a word.
fn monitor_says(site: &Site, now: Timestamp) -> Option<String> {
    let phase = site.record.as_ref().map(|record| record.phase);
    match (&site.record, site.role) {
        (_, Role::Unknown) => return None,
        _ if site.follows.is_some() => {}
        (Some(record), _) if phase == Some(Phase::Promoted) => {
            return Some(format!("nothing to promote: this site was promoted (epoch {})", record.epoch));
        }
        (Some(_), _) if phase == Some(Phase::Held) => {
            return Some("nothing to promote: this site is held, as its peer led with its database".to_owned());
        }
        (Some(record), _) if phase == Some(Phase::Promoting) => {
            return Some(format!(
                "nothing more to promote: the promotion to epoch {} is not verified yet",
                record.epoch
            ));
        }
        _ => return Some("nothing to promote: this site is no standby".to_owned()),
    }
    let Some(record) = &site.record else { return Some("no run of the monitor is recorded here yet".to_owned()) };
    let epoch = record.next_epoch();
    let mut text = match record.phase {
        Phase::Watching => "watches the peer".to_owned(),
        Phase::Suspect => "does not reach the peer; not yet for long enough, or not every guard passes".to_owned(),
        Phase::AwaitingApproval => {
            format!("every guard passed, and the promotion to epoch {epoch} awaits approval (mode approve)")
        }
        Phase::Promoting => {
            let by = record.promotion.as_ref().map_or("unknown", |promotion| promotion.by.as_str());
            format!("the promotion to epoch {epoch} is decided ({by}), not verified yet")
        }
        Phase::Following => "watches the peer; this site was made a standby again".to_owned(),
        other @ (Phase::Promoted | Phase::Held) => format!("does not promote: the phase is {other}"),
    };
    if let Some(first) = record.first_failure.filter(|_| record.failures > 0) {
        let ago = human(Duration::try_from(now.duration_since(first)).unwrap_or_default());
        let _ = write!(text, "; {} failures in a row since {first:.0} ({ago} ago)", record.failures);
    }
    if let Some((_, word)) = site.words.iter().find(|(key, _)| key == APPROVE) {
        let fits = record.phase.is_outage() && word.trim() == epoch.to_string();
        let what = if fits {
            "is approved: the next run promotes if every guard passes"
        } else {
            "is not the one that is approved"
        };
        let _ = write!(text, "; the promotion to epoch {epoch} {what} (approval {word:?})");
    }
    Some(text)
}

fn promotion_json(report: &Report) -> serde_json::Value {
    serde_json::json!({
        "would": report.conclusion, "reason": report.reason, "evidence": report.evidence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(place: &str, role: Role) -> Site {
        Site {
            role,
            system_id: Some(SystemId(7)),
            lsn: Some(Lsn(0x0100_0000)),
            leader: Some("pg-0".into()),
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
    fn site_whose_leader_does_not_renew_leads_nowhere_and_is_no_success() {
        use Role::{Primary, Standby};
        let dead = |place, role: Role| Site {
            lease: Lease::NotRenewed,
            leader: Some("pg-0".into()),
            round: Duration::from_secs(15),
            ..site(place, role.not_renewed())
        };
        for (sites, said) in [
            (
                vec![dead("gold", Primary), site("golddr", Standby)],
                "no site leads; gold is primary (not renewed): pg-0",
            ),
            (vec![dead("gold", Primary), site("golddr", Primary)], "golddr leads; gold is primary (not renewed)"),
            (vec![site("gold", Primary), dead("golddr", Standby)], "gold leads; golddr is standby (not renewed)"),
            (vec![dead("gold", Primary)], "no site leads"),
            (vec![dead("golddr", Standby)], "was not seen to renew its lease for 15 s"),
        ] {
            let (found, reason) = conclude(&sites);
            assert_eq!(found, Conclusion::Unverified, "{reason}");
            assert!(reason.contains(said), "{said}: {reason}");
        }
        let mut paused = dead("gold", Primary);
        paused.leads_without = Some("its Patroni is paused");
        assert!(conclude(&[paused]).1.contains("its Patroni is paused"));
        for same in [Role::Leaderless, Role::Uninitialized, Role::Unknown] {
            assert_eq!(same.not_renewed(), same);
        }
    }

    #[test]
    fn monitor_says_what_its_record_knows_and_no_more() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-01T00:01:00Z");
        let says = |edit: &dyn Fn(&mut Site)| {
            let mut golddr =
                Site { follows: Some("gold:1".into()), words: Vec::new(), ..site("golddr", Role::Standby) };
            edit(&mut golddr);
            monitor_says(&golddr, now).unwrap_or_default()
        };
        let phase = |site: &mut Site, phase| {
            let record = site.record.as_mut().unwrap();
            (record.phase, record.failures) = (phase, 4);
            record.first_failure = Some(at("2026-01-01T00:00:20Z"));
        };
        assert_eq!(says(&|_| ()), "watches the peer");
        let suspect = says(&|site| phase(site, Phase::Suspect));
        assert!(suspect.ends_with("; 4 failures in a row since 2026-01-01T00:00:20Z (40 s ago)"), "{suspect}");
        let waits = says(&|site| phase(site, Phase::AwaitingApproval));
        assert!(
            waits.contains("to epoch 1 awaits approval (mode approve)") && !waits.contains("is approved"),
            "{waits}"
        );
        let approved = |word: &str| {
            says(&|site| {
                phase(site, Phase::AwaitingApproval);
                site.words = vec![(APPROVE.into(), word.into())];
            })
        };
        assert!(approved("1").contains("the promotion to epoch 1 is approved"));
        assert!(approved("2").contains("epoch 1 is not the one that is approved"));
        assert!(says(&|site| phase(site, Phase::Promoted)).contains("does not promote: the phase is promoted"));
        assert!(says(&|site| site.record = None).contains("no run of the monitor"));
        let leads = says(&|site| (site.follows, site.role) = (None, Role::Primary));
        assert_eq!(leads, "nothing to promote: this site is no standby");
        assert_eq!(says(&|site| *site = Site::unknown("golddr", None)), "");
    }

    #[test]
    fn passed_guards_do_not_read_as_a_promotion() {
        let evidence = vec![crate::outcome::Evidence::new("lag", true, "0B", "at most 16MiB")];
        let report = Report::done("would promote: confirmed by a person: asked by status").with_evidence(evidence);
        let text =
            table(&[site("golddr", Role::Standby)], Some("watches the peer"), Some(&report), Timestamp::UNIX_EPOCH);
        assert!(text.contains("a promotion by a person now: every guard passes\n"), "{text}");
        assert!(text.contains("the monitor of this site: watches the peer"), "{text}");
    }

    #[test]
    fn table_names_holds_and_the_distance() {
        let mut behind = site("golddr", Role::Standby);
        behind.lsn = Some(Lsn(0x00ff_fc00));
        let text = table(&[site("gold", Role::Primary), behind], None, None, Timestamp::UNIX_EPOCH);
        for said in [
            "gold: primary",
            "golddr: standby",
            "leader pg-0, lease not watched",
            "lifeboat/hold: drill",
            "between the sites: 1KiB",
            "phase watching",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }
}
