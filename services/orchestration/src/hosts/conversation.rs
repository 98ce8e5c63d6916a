//! What happens in a session, over any transport: work is taken from those who step the environment, one
//! order is sent at a time, and the host's answer is waited for. Everything that it sends otherwise ends
//! the session, at once.

use super::{
    Fault, Place,
    session::{AgentRows, Idle, Message, Order, Work},
};
use futures_util::{Stream, StreamExt};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Some work for a host. When the reply is dropped, the session has ended.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Vec<AgentRows>>,
}

/// Why a session ended, other than by the host's wish.
#[derive(Debug, PartialEq)]
pub(crate) enum Ended<E> {
    /// The host broke the protocol.
    Fault(Fault),
    /// Its message could not be received.
    Transport(E),
}

impl<E> From<Fault> for Ended<E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A session that is open. Its environment is lent for as long as this exists.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(super) idle: Idle,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) answer_within: Duration,
    pub(super) place: Place,
}

impl Conversation {
    /// Serves until the host hangs up.
    ///
    /// # Errors
    ///
    /// Why the session ended otherwise.
    pub(crate) async fn run<E>(
        self,
        mut messages: impl Stream<Item = Result<Message, E>> + Unpin,
        orders: mpsc::Sender<Order>,
    ) -> Result<(), Ended<E>> {
        let Self {
            mut idle,
            mut asks,
            answer_within,
            place: _place,
        } = self;
        loop {
            let ask = tokio::select! {
                message = messages.next() => {
                    return match message.transpose().map_err(Ended::Transport)? {
                        Some(message) => Err(idle.interrupt(&message).into()),
                        None => Ok(()),
                    };
                }
                Some(ask) = asks.recv() => ask,
            };
            let (asked, order) = idle.ask(ask.work);
            let exchange = async {
                orders.send(order).await.ok()?;
                messages.next().await
            };
            let Ok(message) = timeout(answer_within, exchange).await else {
                return Err(asked.expire(answer_within).into());
            };
            let Some(message) = message.transpose().map_err(Ended::Transport)? else {
                return Ok(());
            };
            let (next, rows) = asked.answer(message)?;
            idle = next;
            // Whoever asked may have stopped.
            ask.reply.send(rows).ok();
        }
    }
}

#[cfg(test)]
#[path = "conversation/tests.rs"]
mod tests;
