//! The WebSockets that are open in this VM, whichever root context they belong to: a configuration
//! update makes a new one, and the old one goes on with what it has.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use crate::websocket::WebSocket;

thread_local! {
    static ENTERED: RefCell<Vec<Weak<RefCell<WebSocket>>>> = const { RefCell::new(Vec::new()) };
}

/// A WebSocket has been opened.
pub fn enter(websocket: &Rc<RefCell<WebSocket>>) {
    ENTERED.with_borrow_mut(|entered| {
        // Those that have ended go when their room is needed.
        if entered.len() == entered.capacity() {
            entered.retain(|websocket| websocket.strong_count() > 0);
        }
        entered.push(Rc::downgrade(websocket));
    });
}

/// Those that are open.
pub fn open() -> Vec<Rc<RefCell<WebSocket>>> {
    ENTERED.with_borrow(|entered| entered.iter().filter_map(Weak::upgrade).collect())
}
