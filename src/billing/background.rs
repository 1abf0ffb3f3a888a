//! Long work that nobody waits for, beside that of owners, which somebody does.

use std::io;

use tokio::sync::{Semaphore, oneshot};

/// One at a time in a process, however many shards it has: each takes as much memory as the shard.
static PLACES: Semaphore = Semaphore::const_new(1);

/// With 19 it would hardly go on beside owners that are busy all the time, and what it reads is kept in memory meanwhile.
const NICENESS: i32 = 10;

/// Does it on a thread of its own, which gives way to all others of the process. An error means that it was not done to its end.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let _place = PLACES.acquire().await.map_err(io::Error::other)?;
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("background".to_owned()).spawn(move || {
        // Linux takes no process for the calling thread (setpriority(2), C library/kernel differences). Without it, it is just
        // one of them.
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        let _ = rustix::process::setpriority_process(None, NICENESS.max(own));
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("the work panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_and_a_panic_is_told() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        assert_eq!(run(own).await.unwrap(), NICENESS.max(before));
        assert_eq!(own(), before, "of that thread alone");
        assert!(run(|| panic!("planned")).await.is_err());
        assert_eq!(run(|| 7).await.unwrap(), 7);
    }
}
