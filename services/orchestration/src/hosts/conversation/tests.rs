use super::super::{Hosts, Terms, offer::tests::offer, packed::Packed, session::*};
use super::*;
use tars_runtime::clock::Clock;
use tokio_stream_of::channel;

/// A stream out of a channel.
mod tokio_stream_of {
    use futures_util::{Stream, stream};
    use tokio::sync::mpsc;

    pub(super) fn channel<T: Send + 'static>() -> (
        mpsc::UnboundedSender<T>,
        impl Stream<Item = T> + Unpin + Send,
    ) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let items = stream::unfold(receiver, |mut r| async { Some((r.recv().await?, r)) });
        (sender, Box::pin(items))
    }
}

const MESSAGE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(10);

/// A session and both of its ends.
struct Open {
    hosts: Hosts,
    says: mpsc::UnboundedSender<Result<Message, &'static str>>,
    orders: mpsc::Receiver<Order>,
    session: tokio::task::JoinHandle<Result<(), Ended<&'static str>>>,
}

fn open() -> Open {
    let hosts = Hosts::new(Terms::default(), Clock::system());
    let hello = Some(Message::Hello(offer()));
    let (_, conversation) = hosts.open("user:a", hello, MESSAGE).unwrap();
    let (says, messages) = channel();
    let (sender, orders) = mpsc::channel(1);
    Open {
        hosts,
        says,
        orders,
        session: tokio::spawn(conversation.run(messages, sender)),
    }
}

impl Open {
    /// Asks for a reset of one copy, as a training would.
    async fn ask(&self) -> oneshot::Receiver<Vec<AgentRows>> {
        let lent = self.hosts.find("user:a", "external/my-env").unwrap();
        let (reply, rows) = oneshot::channel();
        let copies = vec![0];
        let work = Work::Reset { copies, seed: 1 };
        lent.work.send(Ask { work, reply }).await.unwrap();
        rows
    }

    async fn end(self) -> Result<(), Ended<&'static str>> {
        let ended = self.session.await.unwrap();
        assert!(self.hosts.environments("user:a").is_empty());
        ended
    }
}

fn answer(id: u64) -> Message {
    let agent = |components| AgentAnswer {
        observations: Some(Packed::numbers(
            &[1, components],
            std::iter::repeat_n(0.25, components),
        )),
        ..AgentAnswer::default()
    };
    let agents = vec![agent(2), agent(1)];
    Message::Reset(Answer { id, agents })
}

#[tokio::test(start_paused = true)]
async fn work_is_sent_and_the_answer_goes_to_whoever_asked() {
    let mut open = open();
    for id in 1..=3 {
        let rows = open.ask().await;
        let order = open.orders.recv().await.unwrap();
        assert_eq!(order.id, id);
        open.says.send(Ok(answer(id))).unwrap();
        assert_eq!(rows.await.unwrap()[1].batch.observations, [0.25]);
    }
    open.says = mpsc::unbounded_channel().0;
    assert_eq!(open.end().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_ends_the_session_at_the_deadline() {
    let mut open = open();
    let began = tokio::time::Instant::now();
    let rows = open.ask().await;
    open.orders.recv().await.unwrap();
    assert!(rows.await.is_err());
    assert_eq!(began.elapsed(), LIMIT);
    assert_eq!(open.end().await, Err(Ended::Fault(Fault::Late(LIMIT))));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_read_is_late_too() {
    let open = open();
    let rows = open.ask().await;
    assert!(rows.await.is_err());
    assert_eq!(open.end().await, Err(Ended::Fault(Fault::Late(LIMIT))));
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_the_session_with_its_first_message() {
    let open = open();
    for _ in 0..1000 {
        open.says.send(Ok(answer(1))).ok();
    }
    let ended = Err(Ended::Fault(Fault::Unexpected("nothing was asked")));
    assert_eq!(open.end().await, ended);
}

#[tokio::test(start_paused = true)]
async fn a_second_hello_ends_the_session() {
    let open = open();
    open.says.send(Ok(Message::Hello(offer()))).unwrap();
    let ended = Err(Ended::Fault(Fault::Unexpected("a session has one hello")));
    assert_eq!(open.end().await, ended);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_goes_away_leaves_nobody_waiting() {
    let mut open = open();
    let (first, second) = (open.ask().await, open.ask().await);
    open.orders.recv().await.unwrap();
    open.says.send(Err("reset")).unwrap();
    assert!(first.await.is_err() && second.await.is_err());
    assert_eq!(open.end().await, Err(Ended::Transport("reset")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_read_is_given_to_nobody() {
    let mut open = open();
    let rows = open.ask().await;
    open.orders.recv().await.unwrap();
    open.says.send(Ok(answer(9))).unwrap();
    assert!(rows.await.is_err());
    let ended = open.end().await.unwrap_err();
    assert!(matches!(ended, Ended::Fault(Fault::Unexpected(_))));
}
