//! Long random runs, for `make soak`: `cargo test … -- --ignored`. The seed is printed; `LIFEBOAT_SEED` repeats a run.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    chain::Chain,
    monitor::{await_metric, monitor},
    pair::{GOLD, GOLDDR, Pair, await_streaming},
    promotion::{audit, cut_gold, timeline},
    system::{Background, await_condition, cluster_script, run},
};

/// A small generator of numbers (Knuth's MMIX): enough to vary times, and the same for the same seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("LIFEBOAT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_millisecond().unsigned_abs());
        println!("LIFEBOAT_SEED={seed}");
        Self(seed)
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(least + (self.0 >> 33) % (most - least))
    }
}

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// The link is away for seconds, again and again, under a monitor that looks each second and would promote after ten.
#[test]
#[ignore = "long: make soak"]
fn blips_of_the_link_never_promote() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let (mut dice, blips) = (Dice::new(), number("LIFEBOAT_SOAK_BLIPS", 20));
    let _monitor =
        monitor(&chain, 18083, &format!("soak-{}", std::process::id()), &["--failures", "5", "--for", "10s"]);
    await_metric(18083, "lifeboat_phase{phase=\"watching\"} 1", Duration::from_secs(30));
    let (mut suspected, begun) = (0, Instant::now());
    for _ in 0..blips {
        {
            let _cuts = cut_gold();
            std::thread::sleep(dice.between(500, 6000));
        }
        suspected += u32::from(GOLDDR.record()["phase"] == "suspect");
        await_condition("the peer is back", Duration::from_mins(1), || {
            let record = GOLDDR.record();
            if record["phase"] == "watching" { Ok(()) } else { Err(format!("{record:#}")) }
        });
        std::thread::sleep(dice.between(0, 3000));
    }
    let record = GOLDDR.record();
    assert_eq!((&record["epoch"], audit(&record, "decided")), (&0.into(), 0), "{record:#}");
    assert!(GOLDDR.is_standby());
    println!("{blips} blips in {:?}, {suspected} of them seen as failures: no promotion", begun.elapsed());
}

/// A hundred times in outage after outage, the monitor or a single run of `promote` is killed at a random moment and started again.
/// Each outage goes on until the site is promoted; then there is a new one.
#[test]
#[ignore = "long: make soak"]
fn monitor_and_promote_killed_at_random_moments_promote_each_outage_once() {
    let (mut dice, kills, begun) = (Dice::new(), number("LIFEBOAT_SOAK_KILLS", 100), Instant::now());
    let mut each = Vec::new();
    while each.iter().sum::<u32>() < kills {
        each.push(killed_until_promoted(&mut dice));
    }
    let all: u32 = each.iter().sum();
    println!(
        "{all} random kills in {} outages, each promoted once; kills until then {each:?}; {:?}",
        each.len(),
        begun.elapsed()
    );
    assert!(each.iter().any(|kills| *kills > 3), "the runs lived for too long to be disturbed");
}

/// How many were killed.
fn killed_until_promoted(dice: &mut Dice) -> u32 {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _cuts = chain.isolate_gold();
    // A run that is killed counts nothing: a longer period forgives the gaps.
    let policy = ["--failures", "4", "--for", "100ms", "--period", "2m"];
    // One identity: a pod that is started again by the kubelet keeps its name, and its Lease.
    let lease = format!("soak-{}", std::process::id());
    let mut kills = 0;
    while kills < 30 && GOLDDR.record()["phase"] != "promoted" {
        let running = if dice.between(0, 3).is_zero() {
            monitor(&chain, 18084, &lease, &policy)
        } else {
            chain.probe(&[]);
            Background::start(chain.promote_command(&[]).stdout(Stdio::null()).stderr(Stdio::null()))
        };
        std::thread::sleep(dice.between(50, 2500));
        drop(running);
        kills += 1;
    }
    let _last = monitor(&chain, 18084, &lease, &policy);
    await_condition("the last one finishes", Duration::from_mins(2), || {
        let record = GOLDDR.record();
        if record["phase"] == "promoted" { Ok(()) } else { Err(format!("{record:#}")) }
    });
    let record = GOLDDR.record();
    // A second promotion would have left a further timeline.
    let promotion = &record["promotion"];
    let (from, to) = (promotion["from_timeline"].as_u64().unwrap(), promotion["to_timeline"].as_u64().unwrap());
    assert_eq!((&record["epoch"], to, u64::from(timeline())), (&1.into(), from + 1, to), "{record:#}");
    assert_eq!((audit(&record, "decided"), audit(&record, "promoted:")), (1, 1), "{record:#}");
    kills
}

/// Both sites lose their power and come back: the standby follows again, nobody is promoted.
#[test]
#[ignore = "long: make soak"]
fn both_sites_restarted_together_come_back_as_they_were() {
    let pair = Pair::ready();
    drop(Chain::calm(&pair));
    GOLD.session().query("CREATE TABLE restarted (id int); INSERT INTO restarted VALUES (1)");
    let rounds = number("LIFEBOAT_SOAK_RESTARTS", 3);
    for round in 1..=rounds {
        let begun = Instant::now();
        for site in ["gold", "golddr"] {
            run(cluster_script("kill").arg(site));
        }
        run(cluster_script("up").args(if round % 2 == 0 { ["gold", "golddr"] } else { ["golddr", "gold"] }));
        await_condition("Gold accepts writes", Duration::from_mins(3), || {
            GOLD.try_session("postgres", "postgres")?.try_query("INSERT INTO restarted VALUES (2)").map(drop)
        });
        await_streaming();
        let record = GOLDDR.record();
        assert_eq!((&record["epoch"], GOLDDR.is_standby()), (&0.into(), true), "{record:#}");
        println!("round {round}: both sites back after {:?}", begun.elapsed());
    }
}
