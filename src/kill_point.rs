//! Places where the fault tests kill the process. Compiled to nothing without the feature `kill-points`.

/// Ends the process by SIGKILL when `LIFEBOAT_KILL_AT` names this place: no destructor, no handler, as an evicted pod ends.
#[cfg(feature = "kill-points")]
pub fn kill_point(name: &str) {
    if std::env::var_os("LIFEBOAT_KILL_AT").is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing: the feature `kill-points` is off.
#[cfg(not(feature = "kill-points"))]
pub fn kill_point(_name: &str) {}
