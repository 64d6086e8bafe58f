//! Things that are handed out, in memory that is used again once all who were
//! given them are done.

use std::collections::VecDeque;
use std::sync::Arc;

/// Things that are remembered; beyond it they are left to those who hold them.
const MOST: usize = 1024;

/// What was handed out, the oldest first.
pub struct Pool<T>(VecDeque<Arc<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Pool<T> {
    /// Hands out `thing`, in the place of an older one that nobody holds any
    /// more; gives that one as well.
    pub fn put(&mut self, thing: T) -> (Arc<T>, Option<T>) {
        let free = self
            .0
            .front_mut()
            .is_some_and(|oldest| Arc::get_mut(oldest).is_some());
        let oldest = match free || self.0.len() == MOST {
            true => self.0.pop_front(),
            false => None,
        };
        let (shared, old) = replace(oldest, thing);
        self.0.push_back(Arc::clone(&shared));
        (shared, old)
    }
}

/// `thing` in the memory of `oldest`, unless somebody still holds that.
fn replace<T>(oldest: Option<Arc<T>>, thing: T) -> (Arc<T>, Option<T>) {
    if let Some(mut shared) = oldest
        && let Some(place) = Arc::get_mut(&mut shared)
    {
        let old = std::mem::replace(place, thing);
        return (shared, Some(old));
    }
    (Arc::new(thing), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_nobody_holds_it() {
        let mut pool = Pool::default();
        let (first, old) = pool.put(1);
        assert_eq!((*first, old), (1, None));
        let (second, old) = pool.put(2);
        assert_eq!((*second, old), (2, None), "the first is still held");
        let place = Arc::as_ptr(&first);
        drop(first);
        let (third, old) = pool.put(3);
        assert_eq!((*third, old), (3, Some(1)));
        assert_eq!(Arc::as_ptr(&third), place);
        assert_eq!(*second, 2);
    }

    #[test]
    fn what_is_never_given_back_is_forgotten() {
        let mut pool = Pool::default();
        let held: Vec<_> = (0..MOST + 5).map(|number| pool.put(number).0).collect();
        assert_eq!(pool.0.len(), MOST);
        assert!(held.iter().map(|held| **held).eq(0..MOST + 5));
    }
}
