//! The priority of the threads that learn: below that of the threads that serve, so that calls are answered as
//! fast while the processor is busy with learning. Where nothing else wants the processor it changes nothing.

/// Lowers the priority of this thread.
#[cfg(target_os = "linux")]
pub(super) fn lower() {
    /// About a third of the share of a thread that serves, when both want the same core.
    const NICENESS: i32 = 5;
    // On Linux each thread has a niceness of its own.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(%error, "a learner keeps the priority of the threads that serve");
    }
}

/// Other systems know the priorities of whole processes alone.
#[cfg(not(target_os = "linux"))]
pub(super) fn lower() {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn the_priority_of_one_thread_is_lowered() {
        let before = niceness();
        let lowered = std::thread::spawn(|| {
            lower();
            niceness()
        });
        assert!(lowered.join().unwrap() > before);
        assert_eq!(niceness(), before, "the others keep theirs");
    }
}
