//! The priority of the threads that learn: below that of the threads that serve, so that calls are answered as
//! fast while the processor is busy with learning. Where nothing else wants the processor it changes nothing.
//!
//! Niceness is not enough: a thread that wakes up for a call waits until the time slice of a nice thread ends,
//! which is milliseconds. An idle thread is put aside at once. It has a share of a processor that others want
//! all the time still, of about three thousandths, so that it ends at some time.

/// Lowers the priority of this thread.
#[cfg(target_os = "linux")]
pub(super) fn lower() {
    use thread_priority::{
        NormalThreadSchedulePolicy::Idle, ThreadPriority, ThreadSchedulePolicy::Normal,
        set_thread_priority_and_policy, thread_native_id,
    };

    // An error of the niceness, which is set after the policy and means little beside it, is none.
    let set = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, Normal(Idle));
    if !is_idle() {
        tracing::warn!(
            ?set,
            "a learner keeps the priority of the threads that serve"
        );
    }
}

#[cfg(target_os = "linux")]
fn is_idle() -> bool {
    use thread_priority::{
        NormalThreadSchedulePolicy::Idle, ThreadSchedulePolicy::Normal, thread_schedule_policy,
    };

    thread_schedule_policy().is_ok_and(|policy| policy == Normal(Idle))
}

/// Other systems have other means.
#[cfg(not(target_os = "linux"))]
pub(super) fn lower() {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn the_priority_of_one_thread_is_lowered() {
        let lowered = std::thread::spawn(|| {
            let before = is_idle();
            lower();
            (before, is_idle())
        });
        assert_eq!(lowered.join().unwrap(), (false, true));
        assert!(!is_idle(), "the others keep theirs");
    }
}
