//! The fence: a site that would lead looks at its peer before Patroni starts, and does not lead beside it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use tracing::{info, warn};

use super::{
    Follow, Role,
    birth::{Birth, Facts},
    running::ROUNDS,
};
use crate::{
    alerts::Alert,
    cli::Session,
    commands::pg_probe::probe_server,
    kubernetes::{Cluster, Conflict},
    outcome::{Conclusion, Report},
    patroni::{LeaderRecord, LeaseWatch},
    postgres::{History, Server, SystemId, Timeline},
    probe::ProbeFacts,
    site::Phase,
};

/// What the peer says of itself.
#[derive(Debug, PartialEq, Eq)]
enum Peer {
    /// Nothing: it could not be asked, or did not answer.
    Silent,
    /// It lives, and does not say what it is: it starts, refuses us, is too slow, or any other answer opened no session (TLS that does not fit,
    /// an error of the server's own). Or our own TLS options keep us from asking.
    Untold,
    /// It leads, or is in recovery, with our own database.
    Ours { leads: bool, timeline: Timeline },
    /// It is no second one of us.
    Other,
}

/// The name of the alert about an old primary that is kept from leading.
const HELD: &str = "OldPrimaryHeld";
/// Time that the peer has to answer one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Looks at a peer that does not answer, before Patroni starts without its word: one may be lost on the way.
const LOOKS: u32 = 3;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(3);
/// Time that the peer has to tell its history.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that a peer which lives has to say what it is.
const UNTOLD: Duration = Duration::from_secs(30);

impl Facts {
    /// This site held accepted writes of its own, when it was promoted.
    fn was_promoted(&self) -> bool {
        matches!(self.phase, Some(Phase::Promoted | Phase::Promoting))
    }

    /// Our own database, if there is one.
    fn system_id(&self) -> Option<SystemId> {
        self.config.initialize.or(self.data.map(|data| data.system_id))
    }

    /// The newest timeline that we know of ourselves.
    fn timeline(&self) -> Timeline {
        self.config.timeline.max(self.data.map(|data| data.timeline)).unwrap_or(Timeline(1))
    }

    /// Whether this site would lead with a database that the peer may have too.
    pub(super) fn may_lead_twice(&self) -> bool {
        self.config.standby_cluster.is_none() && self.system_id().is_some()
    }

    /// The history of this timeline as Patroni wrote it down.
    fn history_by_patroni(&self, timeline: Timeline) -> Option<History> {
        (self.config.timeline == Some(timeline)).then(|| self.config.history.clone())
    }

    fn says(&self, probe: &ProbeFacts) -> Peer {
        let peer = &probe.peer;
        match (peer.in_recovery, peer.system_id, peer.timeline) {
            _ if self.no_tls => Peer::Untold,
            _ if !probe.was_answered() => Peer::Silent,
            (_, Some(theirs), _) if Some(theirs) != self.system_id() => Peer::Other,
            (Some(recovers), Some(_), Some(timeline)) => Peer::Ours { leads: !recovers, timeline },
            _ => Peer::Untold,
        }
    }
}

impl Follow {
    /// Looks at the peer right now: a pod that is held starts this step again and again, and the peer may change in between. A peer that can't
    /// be asked is no reason not to start; one that lives is asked until it says what it is, for a while.
    pub(super) async fn ask_peer(&self, cluster: &Cluster, mut facts: Facts) -> Facts {
        let server = match self.peer_server() {
            Ok(server) => server,
            Err(error) => {
                info!("the peer is not asked: {error:#}");
                return facts;
            }
        };
        facts.no_tls = self.tls.connector().is_err();
        let (mut lease, begun) = (LeaseWatch::default(), Instant::now());
        loop {
            facts.peer = Some(probe_server(&server, LOOKS, PAUSE, LOOK_TIMEOUT).await);
            let leader = cluster.configmap(&self.scope.leader()).await.ok().as_ref().and_then(LeaderRecord::read);
            lease.see(leader.as_ref(), Instant::now());
            facts.led = leader.is_some_and(|record| lease.renewed_within(&record.leader, UNTOLD, Instant::now()));
            facts.outlived = self.ask_history(&server, &facts).await;
            let unsure = matches!(self.give_way(&facts), Some(Birth::Unsure(_)));
            if !unsure || begun.elapsed() + PAUSE > UNTOLD {
                return facts;
            }
            info!("{}; asking again", facts.peer.as_ref().map_or("", |probe| probe.reason.as_str()));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A promoted site gives way to none but what it became itself: the standby that followed it and was promoted since.
    async fn ask_history(&self, server: &Server, facts: &Facts) -> Option<bool> {
        let Some(Peer::Ours { timeline: theirs, .. }) = facts.peer.as_ref().map(|probe| facts.says(probe)) else {
            return None;
        };
        let timeline = facts.timeline();
        if !self.may_be_outlived(facts) || theirs <= timeline {
            return None;
        }
        let look = async {
            let written =
                facts.data.and(self.data_dir.as_deref()).map(|dir| History::find(dir, timeline)).transpose()?;
            let ours = written.flatten().or_else(|| facts.history_by_patroni(timeline));
            let ours = ours.context("the history of our own timeline is not at hand")?;
            anyhow::Ok(History::ask(server, theirs, HISTORY_TIMEOUT).await?.descends_from(timeline, &ours))
        };
        look.await.map_err(|error| warn!("the peer's history is not known: {error:#}")).ok()
    }

    /// Only where this site was promoted and then made the active one of its release, as the way back says, somebody may have made the peer its
    /// standby. Before that, whatever leads there is the old branch; its history may be equal to ours where it branched off at the same position.
    fn may_be_outlived(&self, facts: &Facts) -> bool {
        facts.was_promoted() && self.role == Role::Active
    }

    fn peer_server(&self) -> anyhow::Result<Server> {
        let (host, port) = self.peer()?;
        let password = self.credentials.password(&host, port)?;
        let (credentials, tls) = (self.credentials.clone(), self.tls.clone());
        Ok(Server { host, port, credentials, password, tls })
    }

    /// People must know, whether or not the record can be written.
    pub(super) async fn report_hold(&self, session: &Session, cluster: &Cluster, facts: &Facts, why: String) -> Report {
        let recorded = if session.dry_run || facts.held { Ok(()) } else { self.record_hold(cluster, true).await };
        let why = match recorded {
            Ok(()) => why,
            Err(error) => {
                format!("{why}. That could not be recorded, so a start while the peer is silent would lead: {error:#}")
            }
        };
        let mut report = Report::new(Conclusion::Refused, why);
        report.alerts.push(Alert::warning(HELD, report.reason.clone()));
        session.tell("follow", &mut report, &self.scope, self.alert_repeat).await;
        report
    }

    /// The record says that this site must not lead, or no longer so.
    pub(super) async fn record_hold(&self, cluster: &Cluster, held: bool) -> anyhow::Result<()> {
        for _ in 0..ROUNDS {
            let (mut record, map) = cluster.site_record(&self.scope, &self.site).await?;
            // Somebody decided on a promotion meanwhile: that is not ours to overwrite.
            if record.phase == Phase::Promoting || held == (record.phase == Phase::Held) {
                return Ok(());
            }
            let event = if held {
                "held: the peer leads with what was our data"
            } else {
                "no longer held: the peer does not lead"
            };
            record.note(Timestamp::now(), event);
            if held {
                record.hold_back();
            } else {
                record.let_go();
            }
            match cluster.write_site_record(&self.scope, &record, map.as_ref(), &[]).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => {}
                result => return result.map(drop),
            }
        }
        bail!("ConfigMap {} kept changing under {ROUNDS} attempts", self.scope.state())
    }

    /// Why this site must not start as it is: its peer leads with the same database, or may. A promoted site gives way to what it became itself
    /// only. One that was held stays so until the peer is met and does not lead, or a person releases it.
    pub(super) fn give_way(&self, facts: &Facts) -> Option<Birth> {
        if !self.fence {
            return None;
        }
        let says = facts.peer.as_ref().map_or(Peer::Silent, |probe| facts.says(probe));
        let place = facts.peer.as_ref().map_or("the peer", |probe| probe.host.as_str());
        let met = facts.peer.as_ref().map_or("", |probe| probe.reason.as_str());
        let (site, timeline) = (&self.site, facts.timeline());
        if facts.held && matches!(says, Peer::Silent | Peer::Untold) {
            return Some(Birth::Held(format!(
                "site {site} was held, as its peer led with this database, and the peer can't be asked now: it may lead still. To lead here all the \
                 same, end the other site, then `lifeboat release`. {met}"
            )));
        }
        if facts.held && facts.system_id().is_none() && self.role == Role::Active {
            return Some(Birth::Held(format!(
                "site {site} was held as an old primary, and its data is gone: it would be born as a new primary. Make it the standby of its peer \
                 (runbook, \"The way back\"), or end the other site and `lifeboat release`"
            )));
        }
        if !facts.may_lead_twice() {
            return None;
        }
        // A promoted site holds the accepted writes: a number that the other branch reached by itself must not end it.
        // Beside a leader of its own site a member only follows.
        let asked = self.may_be_outlived(facts) && !facts.led;
        if facts.was_promoted() && !(asked && facts.outlived == Some(true)) {
            let higher = matches!(says, Peer::Ours { timeline: theirs, .. } if theirs > timeline);
            let untold = asked && higher && facts.outlived.is_none();
            return untold.then(|| {
                Birth::Unsure(format!(
                    "{place} is on a higher timeline of this database than promoted site {site} (ours is {timeline}), and its history could not be \
                     learned (the log says why): it may be what this site became. {site} does not start beside it yet, and asks again"
                ))
            });
        }
        match says {
            Peer::Silent | Peer::Other => None,
            // Beside a leader of its own site it leads nowhere: what is to be kept from is there already, or is not.
            Peer::Untold | Peer::Ours { leads: false, .. } if facts.led && !facts.held => None,
            Peer::Untold if facts.no_tls => Some(Birth::Unsure(format!(
                "the peer can't be asked with our own TLS options: site {site} does not start beside it yet. Mend `peer.tls`; or, where you know \
                 that the peer does not lead, start without the fence (`patroni.fence=false`). {met}"
            ))),
            Peer::Untold => Some(Birth::Unsure(format!(
                "the peer lives, and does not say whether it leads with this database: site {site} does not start beside it yet, and asks again. If \
                 that lasts, mend what it says here; or, where you know that the peer does not lead, end it, or start without the fence \
                 (`patroni.fence=false`): runbook, \"FollowFailed\". {met}"
            ))),
            // A promotion leaves the higher timeline. On the same one nobody knows who is the older: two of the same are no choice.
            Peer::Ours { leads: true, timeline: theirs } => (theirs >= timeline).then(|| {
                Birth::Held(format!(
                    "{place} leads with this database on timeline {theirs} (ours is {timeline}): site {site} would be a second primary, and does \
                     not start. Nothing is changed. To follow the new primary, make this site its standby: runbook, \"The way back\". To lead \
                     again here, end the other site first"
                ))
            }),
            // A standby of ours follows our timelines and no other: this one was promoted, and a primary that restarts is in recovery for a while.
            Peer::Ours { leads: false, timeline: theirs } => (theirs > timeline).then(|| {
                let why = format!(
                    "{place} is in recovery on timeline {theirs} of this database (ours is {timeline}): it was promoted, or follows one that was, and \
                     may lead in a moment. Site {site} does not start beside it yet, and asks again"
                );
                if facts.held { Birth::Held(why) } else { Birth::Unsure(why) }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        commands::follow::birth::tests::follow,
        patroni::ClusterConfig,
        postgres::ControlFile,
        probe::{PeerFacts, Verdict},
    };

    #[test]
    fn old_primary_whose_peer_leads_does_not_start() {
        let peer = |system_id, timeline, in_recovery| {
            let (system_id, timeline) = (Some(SystemId(system_id)), Some(Timeline(timeline)));
            let peer = PeerFacts { system_id, timeline, in_recovery: Some(in_recovery), lsn: None };
            Some(ProbeFacts { peer, ..ProbeFacts::of_verdict(Verdict::Healthy) })
        };
        let config =
            ClusterConfig { initialize: Some(SystemId(7)), timeline: Some(Timeline(2)), ..ClusterConfig::default() };
        let gold = |peer| Facts { config: config.clone(), peer, ..Facts::default() };
        let held = |facts: &Facts| matches!(follow(Role::Active).decide_birth(facts), Birth::Held(_));
        let starts = |facts: &Facts| matches!(follow(Role::Active).decide_birth(facts), Birth::AsItIs(_));
        assert!(held(&gold(peer(7, 3, false))), "the peer was promoted");
        assert!(held(&gold(peer(7, 2, false))), "the peer was promoted while we switched too");
        assert!(!held(&gold(peer(7, 1, false))), "the peer is the older one");
        assert!(!held(&gold(peer(7, 2, true))) && !held(&gold(peer(8, 3, false))) && !held(&gold(None)));
        let gone = peer(7, 3, false)
            .map(|probe| ProbeFacts { peer: probe.peer, ..ProbeFacts::of_verdict(Verdict::Unreachable) });
        assert!(starts(&gold(gone.clone())));
        // What was held stays so until the peer is met and does not lead, nor may in a moment.
        let was_held = |peer| Facts { held: true, phase: Some(Phase::Watching), ..gold(peer) };
        assert!(
            held(&was_held(gone))
                && held(&was_held(None))
                && held(&was_held(Some(ProbeFacts::of_verdict(Verdict::Rejected))))
        );
        assert!(held(&was_held(peer(7, 3, true))), "a promoted peer that restarts");
        assert!(starts(&was_held(peer(7, 2, true))) && starts(&was_held(peer(8, 3, false))));
        let promoted = |peer| Facts { phase: Some(Phase::Promoted), ..gold(peer) };
        for peer in [peer(7, 2, false), peer(7, 1, false), Some(ProbeFacts::of_verdict(Verdict::Rejected))] {
            assert!(starts(&promoted(peer)), "it holds the accepted writes");
        }
        // Higher up: the old primary that switched by itself, or the standby that followed this site and was promoted since.
        let met = |peer, outlived| Facts { outlived, ..promoted(peer) };
        assert!(starts(&met(peer(7, 3, false), Some(false))) && starts(&met(peer(7, 3, true), Some(false))));
        assert!(held(&met(peer(7, 3, false), Some(true))), "the second failover");
        let unsure = |facts: &Facts| matches!(follow(Role::Active).decide_birth(facts), Birth::Unsure(_));
        assert!(unsure(&met(peer(7, 3, true), Some(true))) && unsure(&met(peer(7, 3, false), None)));
        assert!(held(&Facts { held: true, ..promoted(None) }), "it was held so");
        let beside_its_leader = Facts { led: true, ..met(peer(7, 3, false), Some(true)) };
        assert!(starts(&beside_its_leader), "no second primary");
        let yet_a_standby = follow(Role::Standby).decide_birth(&met(peer(7, 3, false), Some(true)));
        assert!(
            matches!(yet_a_standby, Birth::AsItIs(_)),
            "nobody made the peer its standby yet: that is the old branch"
        );
        let emptied = Facts { held: true, peer: peer(7, 3, false), ..Facts::default() };
        assert!(held(&emptied), "no new primary beside the peer");
        let followed = Facts { held: true, phase: Some(Phase::Following), peer: peer(7, 3, false), ..Facts::default() };
        assert_eq!(follow(Role::Active).decide_birth(&followed), Birth::Standby, "it was made a standby before");
        // Installed anew over kept volumes: Patroni's records are gone, the data directory tells who we were.
        let data = Some(ControlFile { system_id: SystemId(7), timeline: Timeline(2) });
        let kept = |peer| Facts { data, peer, ..Facts::default() };
        assert!(held(&kept(peer(7, 3, false))) && !held(&kept(peer(7, 3, true))));
        let standby = follow(Role::Standby);
        assert_eq!(standby.decide_birth(&Facts { peer: peer(7, 3, false), ..Facts::default() }), Birth::Standby);
        assert!(matches!(standby.decide_birth(&kept(peer(7, 3, false))), Birth::Refused(_)));
    }

    #[test]
    fn peer_that_lives_and_does_not_say_what_it_is_is_waited_for() {
        let peer = |timeline, in_recovery| {
            let peer = PeerFacts { system_id: Some(SystemId(7)), timeline, in_recovery, lsn: None };
            Some(ProbeFacts { peer, ..ProbeFacts::of_verdict(Verdict::Healthy) })
        };
        let config =
            ClusterConfig { initialize: Some(SystemId(7)), timeline: Some(Timeline(2)), ..ClusterConfig::default() };
        let gold = |peer| Facts { config: config.clone(), peer, ..Facts::default() };
        let birth = |facts: &Facts| follow(Role::Active).decide_birth(facts);
        for peer in [
            Some(ProbeFacts::of_verdict(Verdict::Rejected)),
            Some(ProbeFacts::of_verdict(Verdict::Starting)),
            Some(ProbeFacts::of_verdict(Verdict::Healthy)),
            peer(None, Some(false)),
            peer(Some(Timeline(3)), None),
            peer(Some(Timeline(3)), Some(true)),
        ] {
            assert!(matches!(birth(&gold(peer.clone())), Birth::Unsure(_)), "{peer:?}");
            let unfenced = Follow { fence: false, ..follow(Role::Active) };
            assert!(matches!(unfenced.decide_birth(&gold(peer.clone())), Birth::AsItIs(_)));
            // Neither who has nothing to lead with nor who follows is a second primary.
            let new = Facts { peer: peer.clone(), ..Facts::default() };
            assert!(matches!(birth(&new), Birth::AsItIs(_)), "{peer:?}");
            assert_eq!(follow(Role::Standby).decide_birth(&new), Birth::Standby);
            let beside_its_leader = Facts { led: true, ..gold(peer.clone()) };
            assert!(matches!(birth(&beside_its_leader), Birth::AsItIs(_)), "{peer:?}");
            let mut follows = gold(peer);
            follows.config.standby_cluster = Some(crate::patroni::StandbyCluster::default());
            assert!(matches!(birth(&follows), Birth::AsItIs(_)));
        }
    }

    /// A certificate that does not fit, an error of the server's own, a session that does not open in time: whoever sent a byte lives.
    #[test]
    fn peer_that_answered_is_not_led_beside_whatever_its_answer_was() {
        let config =
            ClusterConfig { initialize: Some(SystemId(7)), timeline: Some(Timeline(2)), ..ClusterConfig::default() };
        let gold = |peer: &ProbeFacts| Facts { config: config.clone(), peer: Some(peer.clone()), ..Facts::default() };
        let birth = |facts: &Facts| follow(Role::Active).decide_birth(facts);
        for verdict in [Verdict::Unreachable, Verdict::Misconfigured, Verdict::Unknown] {
            let silent = ProbeFacts::of_verdict(verdict);
            assert!(matches!(birth(&gold(&silent)), Birth::AsItIs(_)), "{verdict}");
            let answered = silent.clone().answered();
            let Birth::Unsure(why) = birth(&gold(&answered)) else { panic!("{verdict}: led beside") };
            assert!(why.ends_with(&answered.reason) && why.contains("patroni.fence=false"), "{why}");
            // Once of three times is enough.
            let attempts = [&silent.attempts[..], &answered.attempts, &silent.attempts].concat();
            let once = ProbeFacts { attempts, ..silent.clone() };
            assert!(matches!(birth(&gold(&once)), Birth::Unsure(_)), "{verdict}");
            let beside_its_leader = Facts { led: true, ..gold(&answered) };
            assert!(matches!(birth(&beside_its_leader), Birth::AsItIs(_)), "{verdict}");
            let promoted = Facts { phase: Some(Phase::Promoted), ..gold(&answered) };
            assert!(matches!(birth(&promoted), Birth::AsItIs(_)), "it holds the accepted writes");
            let no_tls = Facts { no_tls: true, ..gold(&silent) };
            assert!(matches!(birth(&no_tls), Birth::Unsure(why) if why.contains("our own TLS options")), "{verdict}");
            let held = Facts { held: true, ..gold(&answered) };
            assert!(matches!(birth(&held), Birth::Held(_)), "{verdict}");
        }
    }
}
