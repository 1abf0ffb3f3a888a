//! A queue whose entries never move: chunks of equal size, one allocation each. It grows without copying and gives memory
//! back chunk by chunk; a vector that grows by reallocating leaves an allocator with as much again in holes of every size.

use std::collections::VecDeque;

/// Entries are numbered from the front, from 0.
#[derive(Clone, Debug)]
pub struct Chunks<T, const N: usize> {
    chunks: VecDeque<Vec<T>>,
    /// How many of the first chunk are gone. They are only passed over, so `T` is plain data.
    gone: usize,
}

impl<T, const N: usize> Default for Chunks<T, N> {
    fn default() -> Chunks<T, N> {
        Chunks { chunks: VecDeque::new(), gone: 0 }
    }
}

impl<T: Copy, const N: usize> Chunks<T, N> {
    pub fn get(&self, at: usize) -> Option<&T> {
        let at = at + self.gone;
        self.chunks.get(at / N)?.get(at % N)
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        let at = at + self.gone;
        self.chunks.get_mut(at / N)?.get_mut(at % N)
    }

    pub fn push_back(&mut self, entry: T) {
        match self.chunks.back_mut() {
            Some(last) if last.len() < N => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(N);
                chunk.push(entry);
                self.chunks.push_back(chunk);
            }
        }
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let entry = *self.get(0)?;
        self.gone += 1;
        if self.chunks.front().is_some_and(|first| first.len() == self.gone) {
            self.chunks.pop_front();
            self.gone = 0;
            if self.chunks.capacity() > 4 * (self.chunks.len() + 4) {
                self.chunks.shrink_to(self.chunks.len() * 2);
            }
        }
        Some(entry)
    }

    pub fn len(&self) -> usize {
        let last = self.chunks.back().map_or(0, Vec::len);
        self.chunks.len().saturating_sub(1) * N + last - self.gone
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let gone = std::iter::once(self.gone).chain(std::iter::repeat(0));
        self.chunks.iter().zip(gone).flat_map(|(chunk, gone)| &chunk[gone..])
    }

    pub fn bytes(&self) -> usize {
        self.chunks.len() * N * size_of::<T>() + self.chunks.capacity() * size_of::<Vec<T>>()
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
            for (n, step) in (0..).zip((0..fills).map(|_| 4).chain(steps)) {
                if step < 2 {
                    prop_assert_eq!(chunks.pop_front(), queue.pop_front());
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
        }
    }
}
