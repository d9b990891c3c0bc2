//! Which sets stay, in which tier: the newest of each hour, day, ISO week and month, so many of them. By the sets' own times, in UTC.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

/// A folder of sets, and the span of which it keeps the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The newest of each hour.
    Hourly,
    /// The newest of each day.
    Daily,
    /// The newest of each week, which begins on Monday.
    Weekly,
    /// The newest of each month.
    Monthly,
}

impl Tier {
    /// All of them, the finest first.
    pub const ALL: [Self; 4] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    /// The folder's name.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// Sets with the same are of one span.
    fn span(self, taken: Timestamp) -> (i16, i16, i8) {
        let time = taken.to_zoned(TimeZone::UTC);
        let week = time.date().iso_week_date();
        match self {
            Self::Hourly => (time.year(), time.day_of_year(), time.hour()),
            Self::Daily => (time.year(), time.day_of_year(), 0),
            Self::Weekly => (week.year(), i16::from(week.week()), 0),
            Self::Monthly => (time.year(), i16::from(time.month()), 0),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// How many to keep of each tier. A tier that is not named is left alone; of one with 0 none is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep(pub BTreeMap<Tier, usize>);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || format!("{text:?} must be like hourly=24,daily=7,weekly=4,monthly=12");
        let mut keep = BTreeMap::new();
        for part in text.split(',').map(str::trim) {
            let (tier, count) = part.split_once('=').ok_or_else(hint)?;
            let tier = Tier::ALL.into_iter().find(|known| known.folder() == tier).ok_or_else(hint)?;
            if keep.insert(tier, count.parse().map_err(|_| hint())?).is_some() {
                return Err(format!("{tier} is given twice"));
            }
        }
        if keep.values().all(|&count| count == 0) {
            return Err("that would keep nothing at all".to_owned());
        }
        Ok(Self(keep))
    }
}

/// Which of these times a tier keeps: the newest of each of the newest `count` spans that have one.
#[must_use]
pub fn kept(tier: Tier, count: usize, taken: &[Timestamp]) -> Vec<Timestamp> {
    let mut newest: BTreeMap<(i16, i16, i8), Timestamp> = BTreeMap::new();
    for &time in taken {
        let best = newest.entry(tier.span(time)).or_insert(time);
        *best = time.max(*best);
    }
    newest.into_values().rev().take(count).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(texts: &[&str]) -> Vec<Timestamp> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn newest_of_each_span_is_kept() {
        let taken = times(&[
            "2025-12-28T23:00:00Z", // Sunday of week 52
            "2025-12-29T01:00:00Z", // Monday of week 1 of 2026
            "2025-12-31T23:59:59Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:59:59Z",
            "2026-01-04T12:00:00Z", // Sunday of week 1
            "2026-01-05T00:00:00Z",
        ]);
        let kept = |tier, count| kept(tier, count, &taken);
        assert_eq!(kept(Tier::Hourly, 2), [taken[6], taken[5]]);
        assert_eq!(kept(Tier::Daily, 3), [taken[6], taken[5], taken[4]]);
        assert_eq!(kept(Tier::Weekly, 9), [taken[6], taken[5], taken[0]]);
        assert_eq!(kept(Tier::Monthly, 9), [taken[6], taken[2]]);
        assert_eq!(kept(Tier::Daily, 0), []);
    }

    #[test]
    fn keep_is_read_or_refused_with_a_hint() {
        let keep: Keep = "hourly=24, daily=7,monthly=0".parse().unwrap();
        assert_eq!(keep.0, BTreeMap::from([(Tier::Hourly, 24), (Tier::Daily, 7), (Tier::Monthly, 0)]));
        for bad in ["", "hourly", "yearly=1", "daily=-1", "daily=1,daily=2", "daily=0"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn newest_set_is_always_kept_and_never_more_than_asked(
            seconds in proptest::collection::vec(0i64..4_000_000_000, 1..60), count in 1usize..9
        ) {
            let taken: Vec<Timestamp> = seconds.iter().map(|&at| Timestamp::from_second(at).unwrap()).collect();
            for tier in Tier::ALL {
                let kept = kept(tier, count, &taken);
                prop_assert_eq!(kept.first(), taken.iter().max());
                prop_assert!(kept.len() <= count);
            }
        }

        /// What a tier keeps does not depend on whether older ones were pruned before: runs may be missed.
        #[test]
        fn pruning_after_each_set_keeps_the_same_as_pruning_once(
            mut seconds in proptest::collection::vec(0i64..40_000_000, 1..60), count in 1usize..9
        ) {
            seconds.sort_unstable();
            for tier in Tier::ALL {
                let mut left: Vec<Timestamp> = Vec::new();
                for &at in &seconds {
                    left.push(Timestamp::from_second(at).unwrap());
                    left = kept(tier, count, &left);
                }
                let all: Vec<Timestamp> = seconds.iter().map(|&at| Timestamp::from_second(at).unwrap()).collect();
                prop_assert_eq!(left, kept(tier, count, &all));
            }
        }
    }
}
