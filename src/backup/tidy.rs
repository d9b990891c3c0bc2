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

/// Tidies the sets of these subjects; those of others, which may not have been dumped for long, are left alone. Without the lock it only
/// tells what it would do.
pub fn tidy(
    folder: &Folder,
    keep: &Keep,
    subjects: &BTreeSet<&Subject>,
    lock: Option<&Lock>,
) -> anyhow::Result<Tidied> {
    let found = folder.find()?;
    let mut tidied = Tidied::default();
    for subject in subjects {
        let plan = plan(&found, keep, subject);
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

/// Complete sets alone count, and they alone are pruned: what is foreign, cut off or damaged a person shall look at. The newest verified
/// set stays wherever it is: it may be the only one that is known to be good.
fn plan<'a>(found: &'a [Found], keep: &Keep, subject: &Subject) -> Plan<'a> {
    let sets: Vec<&Found> =
        found.iter().filter(|set| set.name.subject == *subject && set.condition.manifest().is_some()).collect();
    let taken: Vec<Timestamp> = sets.iter().map(|set| set.name.taken).collect();
    let proven = sets.iter().filter(|set| set.verified).map(|set| set.name.taken).max();
    let newest = taken.iter().copied().max();
    let mut plan = Plan::default();
    let mut stays = BTreeSet::new();
    for (&tier, &count) in &keep.0 {
        let kept = kept(tier, count, &taken);
        for &time in &kept {
            let there: Vec<&&Found> = sets.iter().filter(|set| set.name.taken == time).collect();
            if let Some(set) = there.first().filter(|_| !there.iter().any(|set| set.is_in(tier))) {
                plan.link.push((set, tier));
            }
            stays.insert(time);
        }
        let old = sets.iter().filter(|set| set.is_in(tier) && !kept.contains(&set.name.taken));
        plan.prune.extend(old.filter(|set| Some(set.name.taken) != proven));
    }
    // Of a tier that keeps none, as of any: what was just made is somewhere else too, or stays.
    let elsewhere = |set: &Found| Tier::ALL.iter().any(|tier| !keep.0.contains_key(tier) && set.is_in(*tier));
    let safe = newest.is_none_or(|newest| {
        stays.contains(&newest) || sets.iter().any(|set| set.name.taken == newest && elsewhere(set))
    });
    if !safe {
        plan.prune.retain(|set| Some(set.name.taken) != newest);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Condition;

    const SUBJECT: fn() -> Subject = || Subject::Database("shop".into());

    fn set(folder: &str, taken: &str, verified: bool) -> Found {
        let manifest = serde_json::from_value(serde_json::json!({
            "version": 1, "set": "", "subject": {"database": "shop"}, "compression": {"codec": "none"}, "lifeboat": "", "tool": "",
            "database": {"owner": "", "encoding": "", "provider": null, "collate": "", "ctype": "", "locale": null, "settings": []},
            "server": {"version": "", "system_id": null, "timeline": null, "in_recovery": false, "lsn": null},
            "started": taken, "ended": taken, "bytes": 0, "uncompressed": 0, "sha256": "", "tables": []
        }));
        let name = crate::backup::SetName { taken: taken.parse().unwrap(), subject: SUBJECT(), form: "sql".into() };
        Found {
            folder: folder.into(),
            name,
            bytes: 0,
            condition: Condition::Complete(Box::new(manifest.unwrap())),
            verified,
        }
    }

    fn planned(found: &[Found], keep: &str) -> (Vec<(String, Tier)>, Vec<String>) {
        let plan = plan(found, &keep.parse().unwrap(), &SUBJECT());
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
    fn newest_set_stays_though_its_tier_keeps_none() {
        let found = [set("hourly", "2026-03-03T00:00:00Z", false), set("hourly", "2026-03-02T00:00:00Z", false)];
        let keep = Keep([(Tier::Hourly, 0)].into());
        let plan = plan(&found, &keep, &SUBJECT());
        assert_eq!(plan.prune, [&found[1]]);
        let (linked, pruned) = planned(&found, "hourly=0,daily=1");
        assert_eq!(linked, [("03-03T00".to_owned(), Tier::Daily)]);
        assert_eq!(pruned.len(), 2);
    }
}
