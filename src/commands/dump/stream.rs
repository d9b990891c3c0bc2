//! pg_dump's output on its way to the disk: read, checked, compressed, digested and written in one pass.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, bail};

use crate::{
    backup::{Compression, Compressor, Digested, Digesting, End, Scan, TableRows},
    child::Started,
};

/// Bytes that are read at a time: what a pipe holds, many times over.
const PART: usize = 1 << 18;

/// What came of a dump that ended as it should.
#[derive(Debug)]
pub(super) struct Streamed {
    pub digested: Digested,
    pub uncompressed: u64,
    pub tables: Vec<TableRows>,
}

/// How far a running dump is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub bytes: AtomicU64,
    pub tables: AtomicU64,
}

/// Reads the tool's output to its end into `file`, which is synced. Good only if the tool says so and the dump has its end.
pub(super) fn stream(
    mut tool: Started,
    file: File,
    compression: Compression,
    jobs: usize,
    progress: &Progress,
) -> anyhow::Result<Streamed> {
    let mut scan = Scan::default();
    let copied = copy(tool.stdout()?, file, compression, jobs, &mut scan, progress);
    if copied.is_err() {
        tool.kill();
        let _ = tool.wait();
    } else {
        tool.wait()?;
    }
    let digested = copied.context("write the set")?;
    if scan.end() != Some(End::Database) {
        bail!("pg_dump ended well, but the dump's last line is missing: it was cut off");
    }
    Ok(Streamed { digested, uncompressed: scan.bytes(), tables: scan.tables().to_vec() })
}

fn copy(
    mut from: impl Read,
    file: File,
    compression: Compression,
    jobs: usize,
    scan: &mut Scan,
    progress: &Progress,
) -> io::Result<Digested> {
    let mut part = vec![0; PART];
    let mut to = Compressor::new(compression, jobs, Digesting::new(file))?;
    loop {
        let length = match from.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if length == 0 {
            break;
        }
        scan.feed(&part[..length]);
        to.write_all(&part[..length])?;
        progress.bytes.store(scan.bytes(), Ordering::Relaxed);
        progress.tables.store(scan.tables().len() as u64, Ordering::Relaxed);
    }
    let (file, digested) = to.finish()?.finish();
    file.sync_all()?;
    Ok(digested)
}
