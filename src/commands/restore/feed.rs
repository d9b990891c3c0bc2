//! A set's file into psql, which stops at the first error.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;

use crate::{
    backup::{End, Scan, TableRows, expand},
    child::{Running, Started},
    outcome::Unverified,
};

/// Bytes that are given at a time.
const PART: usize = 1 << 18;

/// What psql was given.
#[derive(Debug)]
pub(super) struct Fed {
    pub tables: Vec<TableRows>,
    pub end: Option<End>,
}

/// Feeds a set's file to psql, which this command starts, on a thread that may block.
pub(super) async fn feed(mut command: Command, path: PathBuf, form: &str) -> anyhow::Result<Fed> {
    command
        .args(["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let (_running, psql) = Running::start(&mut command)?;
    let form = form.to_owned();
    tokio::task::spawn_blocking(move || give(psql, &path, &form)).await?
}

/// Reads a set's file to its end.
pub(super) fn read(path: &Path, form: &str) -> anyhow::Result<Scan> {
    let mut scan = Scan::default();
    copy(path, form, io::sink(), &mut scan).with_context(|| format!("read {}", path.display())).context(Unverified)?;
    Ok(scan)
}

fn give(mut psql: Started, path: &Path, form: &str) -> anyhow::Result<Fed> {
    let mut scan = Scan::default();
    let to = psql.stdin()?;
    let given = copy(path, form, to, &mut scan);
    match given {
        // Its standard input is closed: psql comes to its own end.
        Ok(()) => psql.wait()?,
        // It ended before its input did: its own words tell why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            psql.wait()?;
            return Err(error).context("psql ended before the set did");
        }
        Err(error) => {
            psql.kill();
            let _ = psql.wait();
            return Err(error).with_context(|| format!("read {}", path.display()));
        }
    }
    Ok(Fed { tables: scan.tables().to_vec(), end: scan.end() })
}

fn copy(path: &Path, form: &str, mut to: impl Write, scan: &mut Scan) -> io::Result<()> {
    let mut from = expand(form, File::open(path)?)?;
    let mut part = vec![0; PART];
    loop {
        let length = match from.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if length == 0 {
            return to.flush();
        }
        scan.feed(&part[..length]);
        to.write_all(&part[..length])?;
    }
}
