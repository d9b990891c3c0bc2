//! What `promote` looks at.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, info};

use super::{
    Promote,
    decide::{Facts, Policy, enough_failures, tally},
    guards::{GuardFacts, Lease, Local, MemberFacts, Receiver, SecondPath, WitnessFacts},
};
use crate::{
    http,
    intercom::Intercom,
    kubernetes::{Cluster, Snapshot},
    patroni::{ClusterConfig, LeaderRecord, Member},
    postgres::{self, Server, simple_row},
    probe::{ProbeFacts, Verdict},
    secret,
    site::{APPROVE, HOLD, MAINTENANCE},
};

const POLL: Duration = Duration::from_millis(500);

/// Time limit of one question to the local leader.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A witness probes on request, so it needs longer than one attempt.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Facts, and the record's ConfigMap that a later write is compared with.
pub struct Observed {
    pub facts: Facts,
    pub state_map: Option<Snapshot>,
}

impl Promote {
    /// Looks at everything. What takes time (the lease, the witnesses, the second path) is asked only when the answer can matter.
    /// `lease` is what an earlier look of this run saw: it need not be waited for twice.
    pub async fn observe(&self, cluster: &Cluster, policy: &Policy, lease: Option<Lease>) -> anyhow::Result<Observed> {
        let (record, state_map) = cluster.site_record(&self.scope, &self.site).await?;
        let config = ClusterConfig::read(&cluster.configmap(&self.scope.config()).await?)?;
        let leader = LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?);
        let member = match &leader {
            Some(leader) => Member::of_pod(cluster, &leader.leader).await.map_err(|error| format!("{error:#}")),
            None => Err("no local member holds the leader's lease".to_owned()),
        };
        let local = match &member {
            Ok(member) => self.ask_local(member).await.map_err(|error| format!("{error:#}")),
            Err(why) => Err(why.clone()),
        };
        let now = Timestamp::now();
        let probe = if policy.confirm.is_some() {
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
        let matters = config.standby_cluster.is_some()
            && match &probe {
                Ok(facts) => {
                    facts.verdict == Verdict::Unreachable
                        && enough_failures(&tally(&record, facts, policy.period), policy)
                }
                Err(_) => policy.confirm.is_some(),
            };
        if matters {
            info!("the decision is near: watching the local lease, asking witnesses");
            let watched = async {
                match (lease, &leader) {
                    (Some(seen @ Lease::Renewed), _) => seen,
                    (_, Some(leader)) => self.watch_lease(cluster, leader, config.loop_wait).await,
                    (_, None) => Lease::Unknown,
                }
            };
            (guard.lease, guard.witnesses, guard.second_path) =
                tokio::join!(watched, self.ask_witnesses(), self.ask_second_path());
        }
        let facts = Facts { now: Timestamp::now(), record, probe, config, guard };
        Ok(Observed { facts, state_map })
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
            anyhow::Ok(Local {
                member: member.name.clone(),
                system_id: identity.system_id,
                in_recovery: identity.in_recovery,
                // Patroni asks by IDENTIFY_SYSTEM, which tells what is replayed; SQL without a receiver knows restart points only.
                timeline: identity.timeline.max(member.timeline),
                lsn: identity.lsn,
                receiver,
            })
        };
        tokio::time::timeout(LOCAL_TIMEOUT, ask).await.with_context(|| format!("ask local leader {}", member.name))?
    }

    /// The local leader by its pod's own address: no Service stands between.
    pub fn local_server(&self, member: &Member) -> anyhow::Result<Server> {
        Ok(Server {
            host: member.host.clone(),
            port: member.port,
            credentials: self.credentials.clone(),
            password: self.credentials.password(&member.host, member.port)?,
            tls: self.tls.clone(),
        })
    }

    /// Watches until the lease's stamp changes. Its age says nothing: it is written by another clock.
    async fn watch_lease(&self, cluster: &Cluster, seen: &LeaderRecord, loop_wait: u64) -> Lease {
        let limit = Duration::from_secs(loop_wait + 5);
        let begun = Instant::now();
        while begun.elapsed() < limit {
            match cluster.configmap(&self.scope.leader()).await.map(|map| LeaderRecord::read(&map)) {
                Ok(Some(now)) if now.leader == seen.leader && now.renew_time != seen.renew_time => {
                    return Lease::Renewed;
                }
                Ok(_) => {}
                Err(error) => debug!("watch the lease: {error:#}"),
            }
            tokio::time::sleep(POLL).await;
        }
        Lease::Stale(limit)
    }

    /// Asks every witness at the same time.
    async fn ask_witnesses(&self) -> Vec<WitnessFacts> {
        let asked = self.witness.iter().cloned().map(|url| {
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

    /// Looks at the peer's lease through its own API server. Whether it is renewed is judged by watching it for longer than Patroni's
    /// own round, and by its stamp being older than its time to live.
    async fn ask_second_path(&self) -> Option<SecondPath> {
        let context = self.peer_context.as_ref()?;
        let look = async {
            let options = crate::kubernetes::ClusterOptions {
                context: Some(context.clone()),
                namespace: self.peer_namespace.clone(),
            };
            let peer = Cluster::connect(&options).await?;
            let scope = self.peer_scope.as_ref().unwrap_or(&self.scope);
            let config = ClusterConfig::read(&peer.configmap(&scope.config()).await?)?;
            let Some(first) = LeaderRecord::read(&peer.configmap(&scope.leader()).await?) else {
                return Ok(SecondPath::NoLeader(format!("context {context}: nobody holds the lease")));
            };
            let age = first.renew_time.parse::<Timestamp>().map(|time| Timestamp::now().duration_since(time));
            let limit = Duration::from_secs(config.loop_wait + 5);
            let begun = Instant::now();
            while begun.elapsed() < limit {
                tokio::time::sleep(POLL).await;
                let now = LeaderRecord::read(&peer.configmap(&scope.leader()).await?);
                if now.as_ref().is_some_and(|now| now.renew_time != first.renew_time) {
                    return Ok(SecondPath::Leads(format!("context {context}: {} renews its lease", first.leader)));
                }
            }
            let ttl = SignedDuration::from_secs(i64::try_from(config.ttl).unwrap_or(30));
            anyhow::Ok(match age {
                Ok(age) if age > ttl => {
                    SecondPath::NoLeader(format!("context {context}: the lease of {} ran out", first.leader))
                }
                _ => SecondPath::Leads(format!("context {context}: the lease of {} has not run out yet", first.leader)),
            })
        };
        Some(look.await.unwrap_or_else(|error| SecondPath::Unknown(format!("context {context}: {error:#}"))))
    }
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
    let address = format!("{}/v1/peer", url.trim_end_matches('/'));
    let token = secret::read(None, "LIFEBOAT_WITNESS_TOKEN")?;
    let token = token.as_ref().map(|token| secrecy::ExposeSecret::expose_secret(token).to_owned());
    let answer = http::get_json(address, token, WITNESS_TIMEOUT).await?;
    let facts: ProbeFacts = serde_json::from_value(answer).context("the answer is no probe.json")?;
    let age = Timestamp::now().duration_since(facts.taken);
    if age.abs() > SignedDuration::from_secs(60) {
        return Err(anyhow!("it tells of {} by our clock: too old, or a clock is wrong", facts.taken));
    }
    Ok(facts.verdict)
}
