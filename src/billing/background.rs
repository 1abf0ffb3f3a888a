//! Long work that nobody waits for, beside that of owners, which somebody does.

use std::io;

use parking_lot::Mutex;

/// One at a time in a process, however many shards it has. The thread holds it and not who waits, who may be called away.
static PLACE: Mutex<()> = Mutex::new(());

/// With 19 it would hardly go on beside owners that are busy all the time, and what it reads is kept in memory meanwhile.
const NICENESS: i32 = 10;

/// Does it on a thread of its own, which gives way to all others of the process. An error means that it was not done to its end.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let nice = move || {
        // Linux takes no process for the calling thread (setpriority(2), C library/kernel differences). Without it, it is just
        // one of them.
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        let _ = rustix::process::setpriority_process(None, NICENESS.max(own));
        let _place = PLACE.lock();
        work()
    };
    // A thread cannot become less nice again, so none of the runtime's does it; one waits, for the runtime to know of the work.
    let waiting = tokio::task::spawn_blocking(move || {
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn(nice)?;
        thread.join().map_err(|_| io::Error::other("the work panicked"))
    });
    waiting.await.map_err(io::Error::other)?
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
