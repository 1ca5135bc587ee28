//! The WebSockets that are open in this VM, whichever root context they belong to: a configuration
//! update makes a new one, and the old one goes on with what it has.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::websocket::WebSocket;

type Shelf = BTreeMap<u32, Weak<RefCell<WebSocket>>>;

thread_local! {
    /// By the number of their HTTP context, which is unique in the VM.
    static OPEN: RefCell<Shelf> = const { RefCell::new(Shelf::new()) };
}

/// A WebSocket has been opened on the HTTP context `id`.
pub fn enter(id: u32, websocket: &Rc<RefCell<WebSocket>>) {
    OPEN.with_borrow_mut(|open| open.insert(id, Rc::downgrade(websocket)));
}

/// It has ended.
pub fn leave(id: u32) {
    OPEN.with_borrow_mut(|open| open.remove(&id));
}

/// Those that are open.
pub fn open() -> Vec<Rc<RefCell<WebSocket>>> {
    OPEN.with_borrow(|open| open.values().filter_map(Weak::upgrade).collect())
}
