//! Which set is meant.

use std::{convert::Infallible, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Found, Subject};
use crate::flags::human;

/// What a person or a values file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The newest complete one.
    Latest,
    /// No set: nothing is to be done.
    Nothing,
    /// A set's name, or a part of its time, such as `2026-11-20T02`.
    Like(String),
}

impl FromStr for Wanted {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "LATEST" => Self::Latest,
            "NONE" => Self::Nothing,
            like => Self::Like(like.to_owned()),
        })
    }
}

/// The set that is meant, or why there is none, for a person.
pub fn choose<'a>(
    found: &'a [Found],
    wanted: &Wanted,
    subject: &Subject,
    max_age: Option<Duration>,
    now: Timestamp,
) -> Result<Option<&'a Found>, String> {
    let mut sets = found.iter().filter(|set| set.name.subject == *subject);
    let chosen = match wanted {
        Wanted::Nothing => return Ok(None),
        Wanted::Latest => {
            let newest = sets.find(|set| set.condition.manifest().is_some() && !set.name.is_from_the_future(now));
            newest.ok_or_else(|| format!("there is no complete set of {subject}"))?
        }
        Wanted::Like(text) if text.is_empty() => {
            return Err("an empty word names no set: write LATEST, or NONE".to_owned());
        }
        Wanted::Like(text) => {
            let fits = |set: &&Found| {
                let name = set.name.to_string();
                name == *text || set.name.taken.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().contains(text.as_str())
            };
            let fitting: Vec<&Found> = sets.filter(fits).collect();
            let first = *fitting.first().ok_or_else(|| format!("there is no set of {subject} that {text:?} names"))?;
            // The same set may lie in several tiers.
            let others: Vec<String> =
                fitting.iter().filter(|set| set.name != first.name).map(|set| set.name.to_string()).collect();
            if !others.is_empty() {
                return Err(format!("{text:?} names {} as well as {}", first.name, others.join(", ")));
            }
            fitting.iter().copied().find(|set| set.condition.manifest().is_some()).unwrap_or(first)
        }
    };
    let age = now.duration_since(chosen.name.taken);
    if let Some(limit) = max_age.filter(|&limit| age > SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX)) {
        let (age, limit) = (human(age.unsigned_abs()), human(limit));
        return Err(format!("{} is too old: taken {age} ago, allowed are {limit}", chosen.name));
    }
    Ok(Some(chosen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{Condition, SetName};

    fn found(taken: &str, condition: Condition) -> Found {
        let subject = Subject::Database("shop".into());
        let name = SetName { taken: taken.parse().unwrap(), subject, form: "sql.gz".into() };
        Found { folder: "hourly".into(), name, bytes: 1, condition, verified: false }
    }

    fn chosen(found: &[Found], wanted: &str, max_age: Option<Duration>) -> Result<Option<String>, String> {
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let subject = Subject::Database("shop".into());
        choose(found, &wanted.parse().unwrap(), &subject, max_age, now).map(|set| set.map(|set| set.name.to_string()))
    }

    #[test]
    fn latest_is_never_a_set_that_is_cut_off_foreign_or_damaged() {
        let sets = [
            found("2026-01-02T03:00:00Z", Condition::Damaged("shorter".into())),
            found("2026-01-02T02:00:00Z", Condition::Foreign),
            found("2026-01-02T01:00:00Z", Condition::Incomplete),
        ];
        assert!(chosen(&sets, "LATEST", None).unwrap_err().contains("no complete set of database shop"));
        assert_eq!(chosen(&sets, "NONE", None), Ok(None));
    }

    #[test]
    fn whole_one_of_two_places_is_taken_and_none_of_a_clock_that_ran_ahead() {
        let complete = || crate::backup::tests::complete("2026-01-02T02:00:00Z");
        let sets = [
            found("2026-01-02T02:00:00Z", Condition::Damaged("shorter".into())),
            found("2026-01-02T02:00:00Z", complete()),
        ];
        let wanted = Wanted::Like("02T02".into());
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let subject = Subject::Database("shop".into());
        assert_eq!(choose(&sets, &wanted, &subject, None, now), Ok(Some(&sets[1])));
        let ahead = [found("2027-01-01T00:00:00Z", complete()), found("2026-01-02T02:00:00Z", complete())];
        assert_eq!(choose(&ahead, &Wanted::Latest, &subject, None, now), Ok(Some(&ahead[1])));
        assert!(chosen(&sets, "", None).is_err());
    }

    #[test]
    fn part_of_a_time_names_one_set_or_none() {
        let sets =
            [found("2026-01-02T02:00:00Z", Condition::Foreign), found("2026-01-02T01:00:00Z", Condition::Foreign)];
        assert_eq!(chosen(&sets, "02T02", None).unwrap().unwrap(), "backup-2026-01-02T02:00:00Z-shop.sql.gz");
        assert!(chosen(&sets, "2026-01-02", None).unwrap_err().contains("as well as"));
        assert!(chosen(&sets, "2025", None).unwrap_err().contains("names"));
        assert!(chosen(&sets, "02T01", Some(Duration::from_hours(22))).unwrap_err().contains("too old"));
        assert!(chosen(&sets, "02T01", Some(Duration::from_hours(23))).is_ok());
    }
}
