//! Other programs: ended with us, their words in our log, their failure an error that quotes them.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Lines of standard error that are kept for the outcome.
const LAST_LINES: usize = 5;

/// A program that runs; dropped before its end, it is killed. For the side that may be cancelled.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    over: Arc<AtomicBool>,
}

/// The same program, for the thread that works with it.
#[derive(Debug)]
pub struct Started {
    name: String,
    child: Child,
    listener: Option<JoinHandle<Vec<String>>>,
    over: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over.load(Ordering::Acquire) {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

impl Running {
    /// Starts a program. Its standard error goes into our log; what of the other two is piped the command says.
    pub fn start(command: &mut Command) -> anyhow::Result<(Self, Started)> {
        let program = std::path::Path::new(command.get_program());
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
        let listener = child.stderr.take().map(|stderr| thread::spawn(move || listen(stderr)));
        let over = Arc::new(AtomicBool::new(false));
        let running = Self { pid: Pid::from_child(&child), over: Arc::clone(&over) };
        Ok((running, Started { name, child, listener, over }))
    }
}

impl Started {
    /// Its standard output, where the command pipes it; once.
    pub fn stdout(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().with_context(|| format!("read what {} writes", self.name))
    }

    /// Its standard input, where the command pipes it; once.
    pub fn stdin(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().with_context(|| format!("write what {} reads", self.name))
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end. An error quotes its last words.
    pub fn wait(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Release);
        let status = self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        let said = self.listener.take().and_then(|listener| listener.join().ok()).unwrap_or_default();
        if !status.success() {
            bail!("{} ended with {status}: {}", self.name, said.join("; "));
        }
        Ok(())
    }
}

/// Logs each line; returns the last ones.
fn listen(stderr: impl Read) -> Vec<String> {
    let mut last = Vec::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        tracing::warn!("{line}");
        if last.len() == LAST_LINES {
            last.remove(0);
        }
        last.push(line);
    }
    last
}
