//! What is open in this VM, whichever root context it belongs to: a configuration update makes a new
//! one, and the old one goes on with what it has.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

/// Knows everything that was entered and still lives.
pub struct Registry<T>(RefCell<Vec<Weak<T>>>);

impl<T> Registry<T> {
    /// An empty one.
    pub const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Enters something.
    pub fn enter(&self, entry: &Rc<T>) {
        let mut entries = self.0.borrow_mut();
        // Those that have ended go when their room is needed.
        if entries.len() == entries.capacity() {
            entries.retain(|entry| entry.strong_count() > 0);
        }
        entries.push(Rc::downgrade(entry));
    }

    /// What lives.
    pub fn living(&self) -> Vec<Rc<T>> {
        self.0.borrow().iter().filter_map(Weak::upgrade).collect()
    }
}
