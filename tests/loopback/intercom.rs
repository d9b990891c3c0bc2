//! The files between steps, while their writer is killed or not alone.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    lifeboat::{Ended, Probe, files},
    peers::ClosedPort,
};

const KILLS: u32 = 60;

fn command(probe: &Probe, closed: &ClosedPort) -> Command {
    let port = format!("--port={}", closed.address.port());
    // More attempts make a longer file, so that half of one would be seen.
    probe.command(&["--host=127.0.0.1", &port, "--attempts=100", "--interval=0s"])
}

/// Everything that is there is whole; names of files that were not finished begin with a dot.
fn assert_whole(probe: &Probe) -> usize {
    let all = files(probe.dir.path());
    let whole: Vec<&str> = all.iter().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
    for name in &whole {
        match *name {
            "probe.json" => assert_eq!(probe.facts()["attempts"].as_array().unwrap().len(), 100),
            "health" => assert_eq!(probe.health().as_deref(), Some("unhealthy\n")),
            other => panic!("{other} is none of the files"),
        }
    }
    assert!(!whole.contains(&"health") || whole.contains(&"probe.json"), "health never comes before the facts");
    whole.len()
}

#[test]
fn probe_killed_at_any_moment_leaves_whole_files_or_none() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let whole_run = (0..3).map(|_| Ended::of(&mut command(&probe, &closed)).took).min().unwrap();
    let mut seen = [0; 3];
    for kill in 0..KILLS {
        for name in files(probe.dir.path()) {
            fs::remove_file(probe.dir.path().join(name)).unwrap();
        }
        let mut child = command(&probe, &closed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        // In turn: at some moment of the run's second half, when the first file is begun, and when the first is finished.
        let moment = whole_run / 2 + whole_run * kill / KILLS / 2;
        let come = || match kill % 3 {
            0 => begun.elapsed() >= moment,
            1 => !files(probe.dir.path()).is_empty(),
            _ => probe.dir.path().join("probe.json").exists(),
        };
        while !come() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no file appeared");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        seen[assert_whole(&probe)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] + seen[2] > 0, "kills came before the files and after: {seen:?}");
    // What a killed run left is no hindrance.
    assert_eq!(probe.verdict(&mut command(&probe, &closed))["verdict"], "unreachable");
}

#[test]
fn reader_beside_two_writers_never_sees_half_a_file() {
    let (probe, closed, ended) = (Probe::new(), ClosedPort::new(), AtomicBool::new(false));
    Ended::of(&mut command(&probe, &closed)).assert_code(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !ended.load(Ordering::Relaxed) {
                // Each run begins by removing what an earlier one left.
                if let Ok(text) = fs::read(probe.dir.path().join("probe.json")) {
                    serde_json::from_slice::<serde_json::Value>(&text).expect("whole JSON");
                    reads += 1;
                }
            }
            reads
        });
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..15 {
                        Ended::of(&mut command(&probe, &closed)).assert_code(0);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0, "the reader saw no file at all");
    });
    assert_eq!(files(probe.dir.path()), ["health", "probe.json"], "no unfinished file is left");
}

#[test]
fn port_file_huge_or_binary_is_misconfigured_and_is_not_repeated_in_the_reason() {
    for content in [vec![b'7'; 3 << 20], vec![0xff; 64], vec![0; 3 << 20], b"36760\n".repeat(1000)] {
        let probe = Probe::new();
        let port_file = probe.dir.path().join("tsc_port");
        fs::write(&port_file, content).unwrap();
        let facts = probe.verdict(probe.command(&["--host=127.0.0.1", "--port-file"]).arg(&port_file));
        assert_eq!(facts["verdict"], "misconfigured");
        let size = fs::metadata(probe.dir.path().join("probe.json")).unwrap().len();
        assert!(size < 4096, "probe.json has {size} bytes");
    }
}
