//! A queue whose entries never move: chunks of equal size, one allocation each. It grows without copying and gives memory
//! back chunk by chunk; a vector that grows by reallocating leaves an allocator with as much again in holes of every size.
//!
//! Clones share the chunks, and whoever changes an entry first copies its chunk: a snapshot costs each command a chunk at most, and
//! not at once what all of them have.

use std::collections::VecDeque;
use std::sync::Arc;

/// Entries are numbered from the front, from 0.
#[derive(Clone, Debug)]
pub struct Chunks<T, const N: usize> {
    chunks: VecDeque<Arc<[T; N]>>,
    /// How many of the first chunk are gone. They are only passed over, so `T` is plain data.
    gone: usize,
    /// How many of the last chunk are not there yet.
    free: usize,
}

impl<T, const N: usize> Default for Chunks<T, N> {
    fn default() -> Chunks<T, N> {
        Chunks { chunks: VecDeque::new(), gone: 0, free: 0 }
    }
}

impl<T: Copy, const N: usize> Chunks<T, N> {
    pub fn get(&self, at: usize) -> Option<&T> {
        let at = self.place(at)?;
        self.chunks.get(at / N)?.get(at % N)
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        let at = self.place(at)?;
        Arc::make_mut(self.chunks.get_mut(at / N)?).get_mut(at % N)
    }

    fn place(&self, at: usize) -> Option<usize> {
        (at < self.len()).then_some(at + self.gone)
    }

    pub fn push_back(&mut self, entry: T) {
        match self.chunks.back_mut() {
            Some(last) if self.free > 0 => {
                Arc::make_mut(last)[N - self.free] = entry;
                self.free -= 1;
            }
            _ => {
                // Any entry does for those that are not there.
                self.chunks.push_back(Arc::new([entry; N]));
                self.free = N - 1;
            }
        }
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let entry = *self.get(0)?;
        self.gone += 1;
        let first = if self.chunks.len() == 1 { N - self.free } else { N };
        if self.gone == first {
            self.chunks.pop_front();
            self.gone = 0;
            if self.chunks.is_empty() {
                self.free = 0;
            }
            if self.chunks.capacity() > 4 * (self.chunks.len() + 4) {
                self.chunks.shrink_to(self.chunks.len() * 2);
            }
        }
        Some(entry)
    }

    pub fn len(&self) -> usize {
        self.chunks.len() * N - self.free - self.gone
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).skip(self.gone).take(self.len())
    }

    pub fn bytes(&self) -> usize {
        // With an Arc's two counters.
        let chunk = N * size_of::<T>() + 2 * size_of::<usize>();
        self.chunks.len() * chunk + self.chunks.capacity() * size_of::<Arc<[T; N]>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec(0u32..5, 0..300), fills in 0u32..40) {
            let (mut chunks, mut queue) = (Chunks::<u32, 4>::default(), VecDeque::new());
            let mut clones = Vec::new();
            for (n, step) in (0..).zip((0..fills).map(|_| 4).chain(steps)) {
                if step < 2 {
                    prop_assert_eq!(chunks.pop_front(), queue.pop_front());
                } else if step == 2 {
                    clones.push((chunks.clone(), queue.clone()));
                    let some = n as usize / 2;
                    chunks.get_mut(some).into_iter().chain(queue.get_mut(some)).for_each(|entry| *entry += 1000);
                } else {
                    chunks.push_back(n);
                    queue.push_back(n);
                }
                prop_assert_eq!(chunks.len(), queue.len());
                prop_assert!(chunks.iter().eq(&queue));
                let middle = queue.len() / 2;
                prop_assert_eq!(chunks.get(middle), queue.get(middle));
                prop_assert_eq!(chunks.get_mut(middle), queue.get_mut(middle));
                prop_assert_eq!(chunks.get(queue.len()), None);
                prop_assert!(chunks.bytes() <= (queue.len() + 8) * 4 + (queue.len() + 40) * 24);
            }
            for (clone, then) in &clones {
                prop_assert!(clone.iter().eq(then), "a clone is of its moment");
            }
        }
    }
}
