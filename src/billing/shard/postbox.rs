//! Answers for somebody who has many questions outstanding: they lie in one box, and he is woken once for many of them. A
//! question costs no channel, no task and no timer then.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Failure;
use super::seat::Told;

pub type Answer = Result<Told, Failure>;

/// Where an answer goes.
pub enum Reply {
    Once(oneshot::Sender<Answer>),
    Post(Slip),
}

/// The asker's end. When it is dropped, nobody wants the answers any more.
#[derive(Default)]
pub struct Postbox(Arc<Shared>);

/// A place in a postbox for one answer. If it is dropped without one, that says `Unknown`: so every slip is answered once.
pub struct Slip {
    postbox: Arc<Shared>,
    place: usize,
    answered: bool,
}

/// Those whose postboxes were empty before; they are woken when it is dropped.
#[derive(Default)]
pub struct Bells(Vec<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    /// As many at most as there are slips.
    answers: Mutex<Vec<(usize, Answer)>>,
    asker: AtomicWaker,
    closed: AtomicBool,
}

impl Reply {
    pub fn send(self, answer: Answer) {
        self.send_with(answer, &mut Bells::default());
    }

    /// One of several.
    pub fn send_with(self, answer: Answer, bells: &mut Bells) {
        match self {
            // Whoever does not wait any more does not need it.
            Reply::Once(reply) => drop(reply.send(answer)),
            Reply::Post(mut slip) => slip.answer(answer, bells),
        }
    }

    pub fn is_closed(&self) -> bool {
        match self {
            Reply::Once(reply) => reply.is_closed(),
            Reply::Post(slip) => slip.postbox.closed.load(Relaxed),
        }
    }
}

impl Slip {
    fn answer(&mut self, answer: Answer, bells: &mut Bells) {
        self.answered = true;
        let mut answers = self.postbox.answers.lock();
        if answers.is_empty() {
            bells.0.push(Arc::clone(&self.postbox));
        }
        answers.push((self.place, answer));
    }

    /// There will be no answer, because the asker knows that there was no question.
    pub fn withdraw(mut self) {
        self.answered = true;
    }
}

impl Drop for Slip {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(Failure::Unknown), &mut Bells::default());
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|postbox| postbox.asker.wake());
    }
}

impl Postbox {
    /// `place` comes back with the answer.
    pub fn slip(&self, place: usize) -> Slip {
        Slip { postbox: Arc::clone(&self.0), place, answered: false }
    }

    /// Resolves while there is something in it. One task at a time.
    pub async fn filled(&self) {
        poll_fn(|context| {
            self.0.asker.register(context.waker());
            match self.0.answers.lock().is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Takes all of it, in exchange for an empty one.
    pub fn empty(&self, into: &mut Vec<(usize, Answer)>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.0.answers.lock(), into);
    }
}

impl Drop for Postbox {
    fn drop(&mut self) {
        self.0.closed.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn taken(postbox: &Postbox) -> Vec<usize> {
        let mut answers = Vec::new();
        postbox.empty(&mut answers);
        answers.into_iter().map(|(place, _)| place).collect()
    }

    #[tokio::test]
    async fn every_slip_is_answered_once() {
        let postbox = Postbox::default();
        assert!(postbox.filled().now_or_never().is_none());
        Reply::Post(postbox.slip(7)).send(Err(Failure::Unknown));
        drop(postbox.slip(8));
        postbox.slip(9).withdraw();
        postbox.filled().await;
        assert_eq!(taken(&postbox), [7, 8]);
        assert!(postbox.filled().now_or_never().is_none());
    }

    #[tokio::test]
    async fn the_asker_is_woken_when_all_is_told() {
        let postbox = Postbox::default();
        let slips = [postbox.slip(1), postbox.slip(2)].map(Reply::Post);
        let asker = tokio::spawn(async move {
            postbox.filled().await;
            taken(&postbox)
        });
        tokio::task::yield_now().await;
        let mut bells = Bells::default();
        slips.into_iter().for_each(|reply| reply.send_with(Err(Failure::Unknown), &mut bells));
        tokio::task::yield_now().await;
        assert!(!asker.is_finished());
        drop(bells);
        assert_eq!(asker.await.unwrap(), [1, 2]);
    }

    #[test]
    fn an_owner_sees_that_nobody_waits() {
        let postbox = Postbox::default();
        let reply = Reply::Post(postbox.slip(0));
        assert!(!reply.is_closed());
        drop(postbox);
        assert!(reply.is_closed());
    }
}
