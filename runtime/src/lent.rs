//! A value that is lent to whatever runs on a thread, and taken back afterwards.
//!
//! A layer runs its call in many short pieces. A task-local of tokio's takes the value for each of
//! them and drops it, so that a layer has to clone it every time; this one is swapped in and out.

use pin_project_lite::pin_project;
use std::{
    cell::RefCell,
    mem,
    pin::Pin,
    task::{Context, Poll},
    thread::LocalKey,
};

/// What a thread lends now, as `thread_local!` keeps it.
#[derive(Debug)]
pub struct Lent<T>(RefCell<Option<T>>);

impl<T> Lent<T> {
    pub const fn nothing() -> Self {
        Self(RefCell::new(None))
    }
}

impl<T> Default for Lent<T> {
    fn default() -> Self {
        Self::nothing()
    }
}

/// Where a value is lent.
pub type Key<T> = LocalKey<Lent<T>>;

/// What is lent now to whoever asks. `look` must not lend.
pub fn look<T, R>(key: &'static Key<T>, look: impl FnOnce(&T) -> R) -> Option<R> {
    key.try_with(|lent| lent.0.borrow().as_ref().map(look))
        .ok()
        .flatten()
}

/// Runs `work` while `value` is lent; it is back in its place afterwards, also when `work` panics.
pub fn lend<T: 'static, R>(
    key: &'static Key<T>,
    value: &mut Option<T>,
    work: impl FnOnce() -> R,
) -> R {
    struct Swapped<'a, T: 'static>(&'static Key<T>, &'a mut Option<T>);
    impl<T> Swapped<'_, T> {
        fn swap(&mut self) {
            self.0
                .with(|lent| mem::swap(&mut *lent.0.borrow_mut(), self.1));
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
    /// A future to which a value is lent whenever it runs, and while it is dropped.
    #[derive(Debug)]
    pub struct Lending<T: 'static, F> {
        key: &'static Key<T>,
        value: Option<T>,
        #[pin]
        future: Option<F>,
    }

    impl<T, F> PinnedDrop for Lending<T, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            lend(this.key, this.value, || this.future.set(None));
        }
    }
}

impl<T, F> Lending<T, F> {
    pub fn new(key: &'static Key<T>, value: T, future: F) -> Self {
        Self {
            key,
            value: Some(value),
            future: Some(future),
        }
    }
}

impl<T, F: Future> Future for Lending<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future.as_pin_mut();
        let future = future.expect("it is taken only by the drop");
        lend(this.key, this.value, || future.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    thread_local! {
        static NAME: Lent<String> = const { Lent::nothing() };
    }

    fn name() -> Option<String> {
        look(&NAME, String::clone)
    }

    #[test]
    fn loans_nest_and_end_with_their_work() {
        let (mut outer, mut inner) = (Some("outer".to_owned()), Some("inner".to_owned()));
        assert_eq!(name(), None);
        lend(&NAME, &mut outer, || {
            assert_eq!(name().unwrap(), "outer");
            lend(&NAME, &mut inner, || assert_eq!(name().unwrap(), "inner"));
            assert_eq!(name().unwrap(), "outer");
        });
        assert_eq!(name(), None);
        assert_eq!(
            (outer.unwrap(), inner.unwrap()),
            ("outer".into(), "inner".into())
        );
    }

    #[test]
    fn a_panic_gives_back_what_was_lent() {
        let mut value = Some("lent".to_owned());
        let work = AssertUnwindSafe(|| lend(&NAME, &mut value, || panic!("expected")));
        assert!(catch_unwind(work).is_err());
        assert_eq!(name(), None);
        assert_eq!(value.unwrap(), "lent");
    }

    #[tokio::test]
    async fn a_future_has_it_while_it_runs_and_while_it_is_dropped() {
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
        let mut work = Box::pin(Lending::new(&NAME, "task".to_owned(), work));
        for _ in 0..3 {
            let once = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            assert!(once.is_pending());
            assert_eq!(name(), None);
        }
        drop(work);
        assert_eq!(seen.borrow().as_deref(), Some("task"));
    }
}
