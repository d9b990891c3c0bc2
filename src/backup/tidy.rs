//! Sets into the tiers that they belong to, and out of them what is no longer kept.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Folder, Found, Keep, Lock, Subject, Tier, kept};

/// What was changed, as paths below the target.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Sets that are in a further tier now.
    pub linked: Vec<String>,
    /// Sets that are no longer there.
    pub pruned: Vec<String>,
}

/// What is to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan<'a> {
    link: Vec<(&'a Found, Tier)>,
    prune: Vec<&'a Found>,
}

/// Tidies the sets of these subjects; those of others, which may not have been dumped for long, are left alone. `made` are the names of sets
/// that must stay in any case. Without the lock it only tells what it would do.
pub fn tidy(
    folder: &Folder,
    keep: &Keep,
    subjects: &BTreeSet<&Subject>,
    made: &BTreeSet<String>,
    lock: Option<&Lock>,
) -> anyhow::Result<Tidied> {
    let found = folder.find()?;
    let mut tidied = Tidied::default();
    for subject in subjects {
        let plan = plan(&found, keep, subject, made, Timestamp::now());
        for (set, tier) in plan.link {
            if let Some(lock) = lock {
                folder.link(set, tier, lock)?;
            }
            tidied.linked.push(format!("{tier}/{}", set.name));
        }
        for set in plan.prune {
            if let Some(lock) = lock {
                folder.remove(set, lock)?;
            }
            tidied.pruned.push(format!("{}/{}", set.folder, set.name));
        }
    }
    Ok(tidied)
}

/// Complete sets alone count, and they alone are pruned: what is foreign, cut off or damaged a person shall look at. So are sets from the
/// future, which a clock that ran ahead has left: as the newest of all they would drive out every good one. The newest verified set stays
/// wherever it is: it may be the only one that is known to be good.
fn plan<'a>(found: &'a [Found], keep: &Keep, subject: &Subject, made: &BTreeSet<String>, now: Timestamp) -> Plan<'a> {
    let complete = found.iter().filter(|set| set.name.subject == *subject && set.condition.manifest().is_some());
    let (ahead, sets): (Vec<&Found>, Vec<&Found>) = complete.partition(|set| set.name.is_from_the_future(now));
    for set in ahead {
        tracing::warn!("{}/{} is from the future: a clock ran ahead; it is left alone", set.folder, set.name);
    }
    let taken: Vec<Timestamp> = sets.iter().map(|set| set.name.taken).collect();
    let proven = sets.iter().filter(|set| set.verified).map(|set| set.name.taken).max();
    let newest = taken.iter().copied().max();
    let mut plan = Plan::default();
    let mut linked = BTreeSet::new();
    for (&tier, &count) in &keep.0 {
        let kept = kept(tier, count, &taken);
        for &time in &kept {
            let there: Vec<&&Found> = sets.iter().filter(|set| set.name.taken == time).collect();
            if let Some(set) = there.first().filter(|_| !there.iter().any(|set| set.is_in(tier))) {
                plan.link.push((set, tier));
            }
            linked.insert(time);
        }
        let old = sets.iter().filter(|set| set.is_in(tier) && !kept.contains(&set.name.taken));
        plan.prune.extend(old.filter(|set| Some(set.name.taken) != proven));
    }
    // The newest, and what was just made, stay where they are unless a tier has them too.
    let precious = |set: &Found| made.contains(&set.name.to_string()) || Some(set.name.taken) == newest;
    plan.prune.retain(|set| !precious(set) || linked.contains(&set.name.taken));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Condition;

    const SUBJECT: fn() -> Subject = || Subject::Database("shop".into());

    fn now() -> Timestamp {
        "2026-03-03T01:00:00Z".parse().unwrap()
    }

    fn set(folder: &str, taken: &str, verified: bool) -> Found {
        let name = crate::backup::SetName { taken: taken.parse().unwrap(), subject: SUBJECT(), form: "sql".into() };
        let condition = crate::backup::tests::complete(taken);
        Found { folder: folder.into(), name, bytes: 0, condition, verified }
    }

    fn planned(found: &[Found], keep: &str) -> (Vec<(String, Tier)>, Vec<String>) {
        let plan = plan(found, &keep.parse().unwrap(), &SUBJECT(), &BTreeSet::new(), now());
        let day = |set: &Found| set.name.taken.strftime("%m-%dT%H").to_string();
        let linked = plan.link.iter().map(|(set, tier)| (day(set), *tier)).collect();
        (linked, plan.prune.iter().map(|set| format!("{}/{}", set.folder, day(set))).collect())
    }

    #[test]
    fn new_set_goes_into_each_tier_and_takes_the_place_of_an_earlier_one_of_its_day() {
        let found = [
            set("hourly", "2026-03-02T02:00:00Z", false),
            set("hourly", "2026-03-02T01:00:00Z", false),
            set("daily", "2026-03-02T01:00:00Z", false),
            set("daily", "2026-03-01T01:00:00Z", false),
        ];
        let (linked, pruned) = planned(&found, "hourly=1,daily=2,weekly=1");
        assert_eq!(linked, [("03-02T02".to_owned(), Tier::Daily), ("03-02T02".to_owned(), Tier::Weekly)]);
        assert_eq!(pruned, ["hourly/03-02T01", "daily/03-02T01"]);
    }

    #[test]
    fn newest_verified_set_and_what_is_not_complete_are_never_pruned() {
        let mut cut = set("hourly", "2026-02-01T00:00:00Z", false);
        cut.condition = Condition::Incomplete;
        let found = [
            set("hourly", "2026-03-03T00:00:00Z", false),
            set("hourly", "2026-03-02T00:00:00Z", true),
            set("hourly", "2026-03-01T00:00:00Z", true),
            cut,
        ];
        assert_eq!(planned(&found, "hourly=1").1, ["hourly/03-01T00"]);
    }

    #[test]
    fn set_of_a_clock_that_ran_ahead_drives_no_good_one_out() {
        let found = [set("hourly", "2026-09-01T00:00:00Z", false), set("hourly", "2026-03-03T00:00:00Z", false)];
        assert_eq!(planned(&found, "hourly=1"), (vec![], vec![]));
        let found = [set("hourly", "2026-03-03T00:30:00Z", false), set("hourly", "2026-03-03T00:00:00Z", false)];
        let made = BTreeSet::from([found[1].name.to_string()]);
        let plan = plan(&found, &"hourly=1".parse().unwrap(), &SUBJECT(), &made, now());
        assert_eq!(plan, Plan::default(), "what was just made is older than another, and stays");
    }

    #[test]
    fn newest_set_stays_though_its_tier_keeps_none() {
        let found = [set("hourly", "2026-03-03T00:00:00Z", false), set("hourly", "2026-03-02T00:00:00Z", false)];
        let keep = Keep([(Tier::Hourly, 0)].into());
        let plan = plan(&found, &keep, &SUBJECT(), &BTreeSet::new(), now());
        assert_eq!(plan.prune, [&found[1]]);
        let (linked, pruned) = planned(&found, "hourly=0,daily=1");
        assert_eq!(linked, [("03-03T00".to_owned(), Tier::Daily)]);
        assert_eq!(pruned.len(), 2);
    }
}
