//! What `promote` looks at.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, info, warn};

use super::{
    Promote,
    decide::{Confirm, Facts, Policy, enough_failures, tally},
    guards::{Guard, GuardFacts, Lease, Local, MemberFacts, Receiver, SecondPath, WitnessFacts},
};
use crate::{
    cli::Session,
    commands::witness::ANSWERS_WITHIN,
    http,
    intercom::Intercom,
    kubernetes::{Cluster, Snapshot},
    patroni::{ClusterConfig, LeaderRecord, Member, lease_stamp},
    postgres::{self, Server, Timeline, simple_row},
    probe::{ProbeFacts, Verdict},
    secret,
    site::{APPROVE, HOLD, MAINTENANCE, PeerLease, SiteRecord},
};

const POLL: Duration = Duration::from_millis(500);

/// Time limit of one question to the local leader.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Facts, and the record's ConfigMap that a later write is compared with.
pub struct Observed {
    pub facts: Facts,
    pub state_map: Option<Snapshot>,
    pub seen: Seen,
}

/// What the looks of this run saw so far of what takes time to watch: it need not be waited for twice.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The local leader's lease.
    lease: Lease,
    /// The lease of the peer's leader.
    peer: Option<PeerWatch>,
}

/// The peer's lease as this run sees it.
#[derive(Debug, Clone)]
struct PeerWatch {
    lease: PeerStamp,
    /// Since when it is so, by a clock that nobody sets.
    since: Instant,
    /// It changed while this run watched: somebody lives there.
    renewed: bool,
}

/// Who holds the lease, and the stamp.
type PeerStamp = (Option<String>, Option<String>);

impl PeerWatch {
    /// One more look. The first one says nothing of renewals: what an earlier run saw may have been long before.
    fn see(before: Option<Self>, lease: PeerStamp, now: Instant) -> Self {
        match before {
            Some(before) if before.lease == lease => before,
            before => Self { lease, since: now, renewed: before.is_some() },
        }
    }
}

/// How long to watch the peer's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// One look.
    None,
    /// Until it says that the leader is gone. A lease that is not as the run before saw it says enough: the next run looks again.
    UntilDead,
    /// The same, but only a change within this run says that somebody lives: a person waits, and there may be no next run.
    OfAPerson,
}

impl Promote {
    /// Looks at everything. What takes time (the lease, the witnesses, the second path) is asked only when the answer can matter.
    /// `seen` is what earlier looks of this run saw.
    pub async fn observe(
        &self,
        session: &Session,
        cluster: &Cluster,
        policy: &Policy,
        mut seen: Seen,
    ) -> anyhow::Result<Observed> {
        let (record, state_map) = cluster.site_record(&self.scope, &self.site).await?;
        let config = ClusterConfig::read(&cluster.configmap(&self.scope.config()).await?)?;
        let leader = LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?);
        session.lease().see(leader.as_ref(), Instant::now());
        let member = match &leader {
            Some(leader) => Member::of_pod(cluster, &leader.leader).await.map_err(|error| format!("{error:#}")),
            None => Err("no local member holds the leader's lease".to_owned()),
        };
        let local = match &member {
            Ok(member) => self.ask_local(member).await.map_err(|error| format!("{error:#}")),
            Err(why) => Err(why.clone()),
        };
        let now = Timestamp::now();
        let confirm = self.confirmed().or_else(|| Confirm::unfinished(&record, now));
        let probe = if confirm.is_some() {
            Err("not asked: a person decided".to_owned())
        } else {
            Intercom::new(&self.dir).read_probe(now, self.facts_max_age).map_err(|error| format!("{error:#}"))
        };
        let annotation = |key: &str| state_map.as_ref().and_then(|map| map.annotations.get(key).cloned());
        let mut guard = GuardFacts {
            local,
            member: member.map(|m| MemberFacts {
                role: m.role,
                state: m.state,
                replication_state: m.replication_state,
            }),
            lease: Lease::Unknown,
            witnesses: Vec::new(),
            second_path: None,
            hold: annotation(HOLD),
            maintenance: annotation(MAINTENANCE),
            approval: annotation(APPROVE),
        };
        let asked = config.standby_cluster.is_some();
        let alive = probe.as_ref().is_ok_and(|facts| facts.verdict.is_alive());
        let unreachable = probe.as_ref().is_ok_and(|facts| facts.verdict == Verdict::Unreachable);
        let enough = |facts: &ProbeFacts| enough_failures(&tally(&record, facts, policy.period), policy);
        let near = confirm.is_some() || unreachable && probe.as_ref().is_ok_and(enough);
        if asked && near {
            info!("the decision is near: watching the local lease, asking witnesses");
            let watched = async {
                match (seen.lease, &leader) {
                    (seen @ Lease::Renewed, _) => seen,
                    (_, Some(leader)) => self.watch_lease(session, cluster, leader, config.loop_wait).await,
                    (_, None) => Lease::Unknown,
                }
            };
            let set_aside = |confirm: &Confirm| confirm.overrides.contains(&Guard::SecondPath);
            let patience = match &confirm {
                Some(confirm) if set_aside(confirm) => Patience::None,
                Some(_) => Patience::OfAPerson,
                None => Patience::UntilDead,
            };
            (guard.lease, guard.witnesses, guard.second_path) =
                tokio::join!(watched, self.ask_witnesses(), self.ask_second_path(&record, &mut seen.peer, patience));
            seen.lease = guard.lease;
        } else if asked && (alive || unreachable) {
            // While the peer lives, each must be seen to see it; from its first failure on, its lease is watched.
            let witnesses = async { if alive { self.ask_witnesses().await } else { Vec::new() } };
            (guard.witnesses, guard.second_path) =
                tokio::join!(witnesses, self.ask_second_path(&record, &mut seen.peer, Patience::None));
        }
        let facts = Facts { now: Timestamp::now(), record, confirm, probe, config, guard };
        Ok(Observed { facts, state_map, seen })
    }

    /// Asks the local leader by SQL.
    async fn ask_local(&self, member: &Member) -> anyhow::Result<Local> {
        let server = self.local_server(member)?;
        let session = postgres::attempt(&server, LOCAL_TIMEOUT)
            .await
            .map_err(|failed| anyhow!("ask local leader {}: {} ({})", member.name, failed.error, failed.verdict))?;
        let ask = async {
            let identity = postgres::identity(&session.client).await?;
            let receiver = receiver(&session.client).await?;
            let in_wal = timeline_in_wal(&session.client).await.unwrap_or_else(|error| {
                warn!("{}: {error:#}", member.name);
                None
            });
            anyhow::Ok(Local {
                member: member.name.clone(),
                system_id: identity.system_id,
                in_recovery: identity.in_recovery,
                // SQL without a receiver knows restart points only, and what Patroni tells of a standby leader may be from before a switch.
                timeline: identity.timeline.max(member.timeline).max(in_wal),
                lsn: identity.lsn,
                receiver,
            })
        };
        tokio::time::timeout(LOCAL_TIMEOUT, ask).await.with_context(|| format!("ask local leader {}", member.name))?
    }

    /// The local leader by its pod's own address, so that no Service stands between; or by the address that was given.
    pub fn local_server(&self, member: &Member) -> anyhow::Result<Server> {
        let (host, port) = self.primary.clone().unwrap_or_else(|| (member.host.clone(), member.port));
        Ok(Server {
            password: self.credentials.password(&host, port)?,
            host,
            port,
            credentials: self.credentials.clone(),
            tls: self.tls.clone(),
        })
    }

    /// Watches until the lease's stamp changes, unless this process saw that lately. Its age says nothing: it is written by another
    /// clock.
    async fn watch_lease(&self, session: &Session, cluster: &Cluster, seen: &LeaderRecord, loop_wait: u64) -> Lease {
        let limit = Duration::from_secs(loop_wait + 5);
        let begun = Instant::now();
        loop {
            if session.lease().renewed_within(&seen.leader, limit, Instant::now()) {
                return Lease::Renewed;
            }
            if begun.elapsed() >= limit {
                return Lease::Stale(limit);
            }
            tokio::time::sleep(POLL).await;
            match cluster.configmap(&self.scope.leader()).await.map(|map| LeaderRecord::read(&map)) {
                Ok(now) => session.lease().see(now.as_ref(), Instant::now()),
                Err(error) => debug!("watch the lease: {error:#}"),
            }
        }
    }

    /// Asks every witness at the same time.
    async fn ask_witnesses(&self) -> Vec<WitnessFacts> {
        let asked = self.witness.iter().map(|url| url.trim_end_matches('/').to_owned()).map(|url| {
            tokio::spawn(async move {
                let said = ask_witness(&url).await.map_err(|error| format!("{error:#}"));
                WitnessFacts { url, said }
            })
        });
        let mut all = Vec::new();
        for (task, url) in asked.collect::<Vec<_>>().into_iter().zip(&self.witness) {
            let facts = task.await;
            all.push(facts.unwrap_or_else(|error| WitnessFacts { url: url.clone(), said: Err(error.to_string()) }));
        }
        all
    }

    /// Looks at the peer's lease through its own API server, once. Only where the decision is near, watches it: for the time to live,
    /// less what earlier runs have watched of it, and for a round of Patroni in any case.
    async fn ask_second_path(
        &self,
        record: &SiteRecord,
        watch: &mut Option<PeerWatch>,
        patience: Patience,
    ) -> Option<SecondPath> {
        let context = self.peer_context.clone()?;
        let options = crate::kubernetes::ClusterOptions {
            context: Some(context.clone()),
            namespace: self.peer_namespace.clone(),
        };
        let scope = self.peer_scope.as_ref().unwrap_or(&self.scope);
        let look = async {
            let peer = Cluster::connect(&options).await?;
            let config = ClusterConfig::read(&peer.configmap(&scope.config()).await?)?;
            let id = config.initialize.map(|id| id.to_string()).unwrap_or_default();
            let of = format!("{id}/{}/{}", peer.namespace(), scope.0);
            let mut before = record.peer_lease.clone().filter(|lease| lease.of.as_deref() == Some(&of));
            loop {
                let map = peer.configmap(&scope.leader()).await?;
                let read = (LeaderRecord::read(&map).map(|read| read.leader), lease_stamp(&map));
                let seen = PeerWatch::see(watch.take(), read.clone(), Instant::now());
                let (since, renewed) = (seen.since, seen.renewed);
                *watch = Some(seen);
                let lease = watched(before.as_ref(), read, &of, Timestamp::now());
                let changed = before.as_ref().is_some_and(|before| before.since != lease.since);
                let path = SecondPath {
                    context: context.clone(),
                    lease: Ok(lease.clone()),
                    ttl: Duration::from_secs(config.ttl),
                    watched: since.elapsed(),
                    round: Duration::from_secs(config.loop_wait + 5),
                    leads_without: config.leads_without_lease(),
                    system_id: config.initialize,
                };
                let enough = match patience {
                    Patience::None => true,
                    Patience::UntilDead => renewed || changed,
                    Patience::OfAPerson => renewed,
                };
                // What has no stamp can't be seen to be renewed, however long it is watched.
                let futile = path.leads_without.is_some() || lease.leader.is_some() && lease.renew_time.is_none();
                if enough || futile || path.is_dead(Timestamp::now()) {
                    return anyhow::Ok(path);
                }
                before = Some(lease);
                tokio::time::sleep(POLL).await;
            }
        };
        Some(look.await.unwrap_or_else(|error| SecondPath {
            context: context.clone(),
            lease: Err(format!("{error:#}")),
            ttl: Duration::from_secs(30),
            watched: Duration::ZERO,
            round: Duration::from_secs(15),
            leads_without: None,
            system_id: None,
        }))
    }
}

/// The lease with the time since when it is as it is, by our clock: what its holder's clock says is compared with itself only.
fn watched(before: Option<&PeerLease>, (leader, renew_time): PeerStamp, of: &str, now: Timestamp) -> PeerLease {
    match before {
        // A time in the future is of a clock that was set back since.
        Some(before) if (&before.leader, &before.renew_time) == (&leader, &renew_time) && before.since <= now => {
            before.clone()
        }
        _ => {
            let stamped = before.is_some_and(|before| renew_time.is_some() && before.renew_time != renew_time);
            let renewed = if stamped { Some(now) } else { before.and_then(|before| before.renewed) };
            PeerLease { leader, renew_time, since: now, renewed, of: Some(of.to_owned()) }
        }
    }
}

/// The newest timeline of which WAL was received up to our position: the names of segments begin with it. Needs `pg_monitor`.
async fn timeline_in_wal(client: &tokio_postgres::Client) -> anyhow::Result<Option<Timeline>> {
    let sql = "WITH here AS (SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn - 1 AS at, \
               (SELECT setting::numeric FROM pg_settings WHERE name = 'wal_segment_size') AS segment) \
               SELECT max(('x' || substr(name, 1, 8))::bit(32)::bigint) FROM pg_ls_waldir(), here \
               WHERE name ~ '^[0-9A-F]{24}$' AND ('x' || substr(name, 9, 8))::bit(32)::bigint * trunc(4294967296 / segment) \
               + ('x' || substr(name, 17, 8))::bit(32)::bigint = trunc(at / segment)";
    let row = simple_row(client, sql).await.context("ask for the newest timeline in pg_wal")?;
    Ok(row.get(0).map(str::parse).transpose()?.map(Timeline))
}

/// The WAL receiver. Without `pg_read_all_stats` its row is there but empty.
async fn receiver(client: &tokio_postgres::Client) -> anyhow::Result<Receiver> {
    let sql = "SELECT count(*), max(status), \
               (extract(epoch FROM clock_timestamp() - max(last_msg_receipt_time)) * 1000)::bigint, \
               (SELECT setting FROM pg_settings WHERE name = 'wal_receiver_timeout') FROM pg_stat_wal_receiver";
    let row = simple_row(client, sql).await.context("ask for the WAL receiver")?;
    let milliseconds =
        |text: &str| Ok::<_, anyhow::Error>(Duration::from_millis(u64::try_from(text.parse::<i64>()?).unwrap_or(0)));
    Ok(match (row.get(0), row.get(1), row.get(2), row.get(3)) {
        (Some("0"), ..) => Receiver::Absent,
        (_, Some(_), Some(ago), Some(timeout)) => {
            Receiver::Heard { ago: milliseconds(ago)?, timeout: milliseconds(timeout)? }
        }
        _ => Receiver::Unknown,
    })
}

async fn ask_witness(url: &str) -> anyhow::Result<Verdict> {
    let address = format!("{url}/v1/peer");
    let token = secret::read(None, "LIFEBOAT_WITNESS_TOKEN")?;
    let token = token.as_ref().map(|token| secrecy::ExposeSecret::expose_secret(token).to_owned());
    let answer = http::get_json(address, token, ANSWERS_WITHIN).await?;
    let facts: ProbeFacts = serde_json::from_value(answer).context("the answer is no probe.json")?;
    let age = Timestamp::now().duration_since(facts.taken);
    if age.abs() > SignedDuration::from_secs(60) {
        return Err(anyhow!("it tells of {} by our clock: too old, or a clock is wrong", facts.taken));
    }
    Ok(facts.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(leader: Option<&str>, renew_time: &str) -> PeerStamp {
        (leader.map(Into::into), Some(renew_time.to_owned()).filter(|stamp| !stamp.is_empty()))
    }

    #[test]
    fn lease_is_watched_from_when_it_was_first_seen_as_it_is() {
        let read = |renew_time| stamp(Some("pg-gold-0"), renew_time);
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = watched(None, read("a"), "x", at(0));
        assert_eq!((first.since, first.renewed), (at(0), None), "the first sight says nothing of renewals");
        assert_eq!(watched(Some(&first), read("a"), "x", at(60)).since, at(0));
        assert_eq!(watched(Some(&first), read("b"), "x", at(60)).since, at(60));
        let renewed = watched(Some(&first), read("b"), "x", at(60));
        assert_eq!(renewed.renewed, Some(at(60)));
        assert_eq!(
            watched(Some(&renewed), stamp(None, "b"), "x", at(120)).renewed,
            Some(at(60)),
            "given up, not renewed"
        );
        let released = watched(Some(&first), stamp(None, "a"), "x", at(60));
        assert_eq!((released.leader.as_deref(), released.since), (None, at(60)));
        assert_eq!(watched(Some(&released), stamp(None, "a"), "x", at(120)).since, at(60));
        assert_eq!(
            watched(Some(&released), stamp(None, "b"), "x", at(120)).since,
            at(120),
            "somebody held it in between"
        );
    }

    #[test]
    fn lease_is_renewed_when_it_changes_between_two_looks_of_one_run() {
        let (read, start) = (|renew_time| stamp(Some("pg-gold-0"), renew_time), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let first = PeerWatch::see(None, read("b"), at(0));
        assert!(!first.renewed, "whatever an earlier run saw");
        let same = PeerWatch::see(Some(first), read("b"), at(30));
        assert_eq!((same.renewed, same.since), (false, at(0)));
        let renewed = PeerWatch::see(Some(same), read("c"), at(31));
        assert!(renewed.renewed && renewed.since == at(31));
        assert!(PeerWatch::see(Some(renewed), read("c"), at(90)).renewed, "for the whole run");
    }
}
