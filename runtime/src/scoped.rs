//! A thread-local value that is set while something runs.
//!
//! A layer polls its call in many short steps. tokio's task-local takes a value by move for each of them
//! and drops it, so that a layer would have to clone it every time; this one is swapped in and out.

use pin_project_lite::pin_project;
use std::{
    cell::RefCell,
    mem,
    pin::Pin,
    task::{Context, Poll},
    thread::LocalKey,
};

/// The storage of the thread-local: the value that is set at the moment.
#[derive(Debug)]
pub struct ScopedCell<T>(RefCell<Option<T>>);

impl<T> ScopedCell<T> {
    /// Returns storage in which no value is set.
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }
}

impl<T> Default for ScopedCell<T> {
    fn default() -> Self {
        Self::empty()
    }
}

/// The thread-local that holds the value.
pub type Key<T> = LocalKey<ScopedCell<T>>;

/// Runs `work` with the value that is set at the moment, if there is one. `work` must not set another.
pub fn with<T, R>(key: &'static Key<T>, work: impl FnOnce(&T) -> R) -> Option<R> {
    key.try_with(|cell| cell.0.borrow().as_ref().map(work))
        .ok()
        .flatten()
}

/// Runs `work` while `value` is set; it is back in its place afterwards, even when `work` panics. On a
/// thread that is ending and has already dropped its locals, `work` runs without it.
pub fn set<T: 'static, R>(
    key: &'static Key<T>,
    value: &mut Option<T>,
    work: impl FnOnce() -> R,
) -> R {
    struct Swapped<'a, T: 'static>(&'static Key<T>, &'a mut Option<T>);
    impl<T> Swapped<'_, T> {
        fn swap(&mut self) {
            // A future may be dropped by the destructor of another thread-local.
            let _gone = self
                .0
                .try_with(|cell| mem::swap(&mut *cell.0.borrow_mut(), self.1));
        }
    }
    impl<T> Drop for Swapped<'_, T> {
        fn drop(&mut self) {
            self.swap();
        }
    }
    let mut swapped = Swapped(key, value);
    swapped.swap();
    let _back = swapped;
    work()
}

pin_project! {
    /// A future for which a value is set whenever it is polled, and while it is dropped.
    #[derive(Debug)]
    pub struct ScopedFuture<T: 'static, F> {
        key: &'static Key<T>,
        value: Option<T>,
        #[pin]
        future: Option<F>,
    }

    impl<T, F> PinnedDrop for ScopedFuture<T, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            set(this.key, this.value, || this.future.set(None));
        }
    }
}

impl<T, F> ScopedFuture<T, F> {
    /// Wraps a future for which `value` is set.
    pub fn new(key: &'static Key<T>, value: T, future: F) -> Self {
        Self {
            key,
            value: Some(value),
            future: Some(future),
        }
    }
}

impl<T, F: Future> Future for ScopedFuture<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future.as_pin_mut();
        let future = future.expect("it is taken only by the drop");
        set(this.key, this.value, || future.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    thread_local! {
        static NAME: ScopedCell<String> = const { ScopedCell::empty() };
    }

    fn name() -> Option<String> {
        with(&NAME, String::clone)
    }

    #[test]
    fn scopes_nest_and_end_with_their_work() {
        let (mut outer, mut inner) = (Some("outer".to_owned()), Some("inner".to_owned()));
        assert_eq!(name(), None);
        set(&NAME, &mut outer, || {
            assert_eq!(name().unwrap(), "outer");
            set(&NAME, &mut inner, || assert_eq!(name().unwrap(), "inner"));
            assert_eq!(name().unwrap(), "outer");
        });
        assert_eq!(name(), None);
        assert_eq!(
            (outer.unwrap(), inner.unwrap()),
            ("outer".into(), "inner".into())
        );
    }

    #[test]
    fn a_panic_returns_the_value() {
        let mut value = Some("set".to_owned());
        let work = AssertUnwindSafe(|| set(&NAME, &mut value, || panic!("expected")));
        assert!(catch_unwind(work).is_err());
        assert_eq!(name(), None);
        assert_eq!(value.unwrap(), "set");
    }

    type Pending = ScopedFuture<String, std::future::Pending<()>>;

    thread_local! {
        static HELD: RefCell<Option<Pending>> = const { RefCell::new(None) };
    }

    fn hold() {
        let future = ScopedFuture::new(&NAME, "held".to_owned(), std::future::pending());
        HELD.with(|held| *held.borrow_mut() = Some(future));
    }

    #[test]
    fn a_thread_may_end_before_a_future_that_it_holds() {
        // The order in which a thread drops its locals depends on which was used first. A panic in
        // such a destructor would abort the process.
        let steps: [fn(); 2] = [hold, || assert_eq!(name(), None)];
        for order in [[0, 1], [1, 0]] {
            let thread = std::thread::spawn(move || order.map(|step: usize| steps[step]()));
            thread.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_future_has_the_value_while_it_is_polled_and_while_it_is_dropped() {
        struct Witness(std::rc::Rc<RefCell<Option<String>>>);
        impl Drop for Witness {
            fn drop(&mut self) {
                *self.0.borrow_mut() = name();
            }
        }
        let seen = std::rc::Rc::default();
        let witness = Witness(std::rc::Rc::clone(&seen));
        let work = async move {
            let _witness = witness;
            assert_eq!(name().unwrap(), "task");
            tokio::task::yield_now().await;
            assert_eq!(name().unwrap(), "task");
            std::future::pending::<()>().await;
        };
        let mut work = Box::pin(ScopedFuture::new(&NAME, "task".to_owned(), work));
        for _ in 0..3 {
            let once = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            assert!(once.is_pending());
            assert_eq!(name(), None);
        }
        drop(work);
        assert_eq!(seen.borrow().as_deref(), Some("task"));
    }
}
